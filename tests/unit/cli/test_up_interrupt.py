"""Ctrl-C at the first moment that `gptflow up` is ready."""

from __future__ import annotations

from gptflow.cli import up


def test_whoever_interrupts_at_once_ends_it_well(monkeypatch):
    said = []

    def note(text):
        said.append(text)
        if text.startswith("Ready"):
            raise KeyboardInterrupt

    monkeypatch.setattr(up, "note", note)
    assert up._watch({}) == 0
    assert said[1:] == ["Stopping."]
