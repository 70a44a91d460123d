"""Several processes that train one run together give what one process gives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptflow.adapter_info import HEAD_WEIGHTS, LORA_WEIGHTS
from gptflow.models.adapter_store import AdapterVersion
from gptflow.training.data.source import Source
from gptflow.training.parts import data_file
from gptflow.training.processes import Processes, launch_command
from gptflow.training.runs import Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.training import begin, train

SCRIPT = """
import importlib.util, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny_conftest", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
from gptflow.models import ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.training.runs import RunTable
from gptflow.training.sitting import Watch
from gptflow.training.training import train
root, run = Path(sys.argv[2]), RunTable(Path(sys.argv[2]) / "runs").find(sys.argv[3])
task = tiny.Topic()
task.check()

def update(made):
    if made.step == int(sys.argv[5]) and os.environ["RANK"] == "1":
        raise KeyboardInterrupt  # as of a signal that only this process has had so far

train(run, task, ModelStore(root / "cache").find(sys.argv[4]), AdapterStore(root / "adapters"),
      context=256, watch=Watch(update=update))
"""


def make_run(tiny: SimpleNamespace, tmp_path: Path, **settings: Any) -> Run:
    task = tiny.Topic()
    task.check()
    path = tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6))
    chosen = {
        "rank": 4, "batch": 15, "epochs": 2, "learning_rate": 3e-3, "head_learning_rate": 1e-2,
        "dropout": 0.0, "storage": "float32", "patience": 99, "device": "cpu",
    }  # fmt: skip
    return begin(
        tiny.table,
        task,
        tiny.model(),
        [data_file(path, "train", "labels", Source())],
        TrainingSettings.of(**chosen | settings),
    )


@pytest.fixture
def launch(tiny: SimpleNamespace, tmp_path: Path) -> Callable[..., int]:
    """Train a run in two processes, which stop after a step where one is given."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    conftest = Path(__file__).with_name("conftest.py")

    def launched(run: Run, stop: int = 0) -> int:
        given = [script, conftest, tmp_path, run.folder.name, tiny.model().path, stop]
        done = subprocess.run(
            launch_command(2, [str(each) for each in given]),
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(done.stdout, done.stderr)
        return done.returncode

    return launched


def saved(tiny: SimpleNamespace, run: Run) -> AdapterVersion:
    assert run.record.version is not None
    version: AdapterVersion = tiny.store.find(run.record.version)
    return version


def test_two_processes_train_what_one_trains(
    tiny: SimpleNamespace, tmp_path: Path, launch: Callable[..., int]
) -> None:
    alone = make_run(tiny, tmp_path, layers="upper")
    train(alone, tiny.Topic(), tiny.model(), tiny.store, context=256)
    together = make_run(tiny, tmp_path, layers="upper")
    assert launch(together, stop=3) != 0  # one of them is told to, and both stop
    assert together.state == "interrupted"
    assert together.log()[-1]["step"] == 3
    assert launch(together) == 0
    first, second = saved(tiny, alone), saved(tiny, together)
    for name in (LORA_WEIGHTS, HEAD_WEIGHTS):
        one, two = load_file(first.folder / name), load_file(second.folder / name)
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-4)
    losses = [[record["loss"] for record in run.log()] for run in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 10
    assert not list(together.folder.glob("checkpoint*"))


def test_a_process_that_nothing_launched_is_the_only_one() -> None:
    alone = Processes.launched()
    assert alone.first
    assert alone.count == 1
    assert alone.share([1, 2, 3]) == [1, 2, 3]
    assert alone.tell("so") == "so"
    shares = [Processes(rank, 2).share(range(5)) for rank in (0, 1)]
    assert sorted(x for share in shares for x in share) == list(range(5))
