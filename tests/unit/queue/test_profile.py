"""Which device a worker's model runs on."""

from __future__ import annotations

import pytest

from gptflow import config
from gptflow.queue import worker
from gptflow.queue.worker import Profile, with_profile


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize(("profile", "expected"), [("gpu", "cuda"), ("cpu", "cpu")])
def test_a_profile_beats_the_device_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, device: str, profile: Profile, expected: str
) -> None:
    monkeypatch.setenv("GPTFLOW_DEVICE", device)
    assert with_profile(config.load(), profile).device == expected


def test_without_a_profile_the_settings_stay_as_they_are() -> None:
    settings = config.load(device="cuda")
    assert with_profile(settings, None) is settings


def test_the_gpu_process_uses_the_gpu_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gptflow_workers import start

    devices: list[str] = []

    def stop(settings: config.Settings, **_: object) -> None:
        devices.append(settings.device)
        raise SystemExit(0)

    monkeypatch.setenv("GPTFLOW_DEVICE", "cpu")
    monkeypatch.setattr(worker, "make_app", stop)
    with pytest.raises(SystemExit):
        start("gpu")
    assert devices == ["cuda"]
