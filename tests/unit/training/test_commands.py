"""`gptflow train`, `runs` and `adapters`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Outcome = tuple[int, str, str]
Invoke = Callable[..., Outcome]

QUICK = (
    "--rank", "4", "--batch", "16", "--epochs", "1", "--learning-rate", "3e-3",
    "--head-learning-rate", "1e-2", "--no-serve-floor",
)  # fmt: skip


@pytest.fixture
def rows(tiny: SimpleNamespace, tmp_path: Path) -> str:
    return str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6)))


def test_from_rows_to_a_promoted_adapter_and_back(gptflow: Invoke, rows: str) -> None:
    assert gptflow("adapters", "list")[2].startswith("The store has no adapters")
    code, out, err = gptflow("train", "tiny.topic", "--data", rows, "--licence", "CC0", *QUICK)
    assert code == 0, err
    assert "gptflow adapters promote topic@" in out
    assert "step " in err
    [row] = json.loads(gptflow("adapters", "list", "--json")[1])
    assert row["promoted"] is False
    assert row["task"] == "tiny.topic"

    # A random model loses to naive Bayes, and is not promoted unless somebody insists.
    code, _, err = gptflow("adapters", "promote", "topic")
    assert code == 13
    assert "a simple model reaches" in err
    code, out, err = gptflow("adapters", "promote", "topic", "--force", "--json")
    assert code == 0, err
    assert json.loads(out)["adapter"]["promoted"] is True
    assert "GF905" in err

    code, out, _ = gptflow("adapters", "show", "topic", "--verify", "--json")
    shown = json.loads(out)
    assert shown["manifest"]["data"][0]["licence"] == "CC0"
    assert len(shown["promotions"]) == 1
    assert "CC0" in gptflow("adapters", "show", "topic")[1]

    code, out, _ = gptflow("run", "tiny.topic", "my card is bad", "--local", "--json")
    assert json.loads(out)["provenance"]["adapter"] == f"topic@{row['sha256']}"

    assert json.loads(gptflow("adapters", "rollback", "topic", "--json")[1])["adapter"] is None
    code, _, err = gptflow("adapters", "rollback", "topic")
    assert code == 4
    assert "nothing to undo" in err
    code, out, _ = gptflow("run", "tiny.topic", "my card is bad", "--local", "--json")
    assert json.loads(out)["provenance"]["adapter"] is None


def test_an_adapter_for_another_model_is_not_promoted(
    gptflow: Invoke, rows: str, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gptflow("train", "tiny.topic", "--data", rows, *QUICK)
    monkeypatch.setenv("GPTFLOW_MODEL", str(tiny.model("gpt2").path))
    code, _, err = gptflow("adapters", "promote", "topic", "--force")
    assert code == 1
    assert "GF707" in err


def test_runs_are_listed_shown_and_compared(gptflow: Invoke, rows: str) -> None:
    assert "There are no runs yet" in gptflow("runs", "list")[2]
    for seed in ("1", "2"):
        code, out, err = gptflow(
            "train", "tiny.topic", "--data", rows, "--seed", seed, "--json", *QUICK
        )
        assert code == 0, err
        assert json.loads(out)["settings"]["seed"] == int(seed)
    listed = json.loads(gptflow("runs", "list", "--json")[1])
    assert [row["state"] for row in listed] == ["done", "done"]
    assert listed[0]["figure"] == "macro_f1"
    shown = json.loads(gptflow("runs", "show", "last", "--json")[1])
    assert shown["id"] == listed[1]["run"]
    assert shown["last"]["step"] == shown["last"]["steps"] == shown["history"][-1]["step"]
    assert listed[1]["run"] in gptflow("runs", "show", "last")[1]
    names = [row["run"] for row in listed]
    compared = json.loads(gptflow("runs", "compare", *names, "--json")[1])
    assert [compared[name]["seed"] for name in names] == [1, 2]
    assert "rank" not in compared[names[0]]  # they do not differ in it
    assert "seed" in gptflow("runs", "compare", *names)[1]
    code, out, err = gptflow("runs", "plot", *names)
    assert code == 0, err
    assert Path(out.strip()).read_bytes().startswith(b"\x89PNG")
    code, out, err = gptflow("runs", "plot", "last", "--out", "one.png", "--json")
    assert json.loads(out) == {"runs": [names[1]], "file": "one.png"}
    assert Path("one.png").is_file()
    code, _, err = gptflow("runs", "plot", "last", "--out", "no/such/folder.png")
    assert code == 1
    assert "no/such/folder.png" in err
    code, _, err = gptflow("runs", "show", "topic-2000")
    assert code == 4
    assert "GF902" in err


def test_a_run_is_resumed_by_name(
    gptflow: Invoke, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptflow.training.trainer import Trainer

    update = Trainer._update
    calls: list[int] = []

    def stop_once(self: Any, step: int, batch: Any) -> float:
        calls.append(step)
        if len(calls) == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, in the middle of a step
        return update(self, step, batch)

    monkeypatch.setattr(Trainer, "_update", stop_once)
    code, _, err = gptflow("train", "tiny.topic", "--data", rows, *QUICK)
    assert code == 130
    assert "gptflow train --resume topic-" in err
    [row] = json.loads(gptflow("runs", "list", "--json")[1])
    assert row["state"] == "interrupted"
    code, out, err = gptflow("train", "--resume", "last", "--json")
    assert code == 0, err
    assert json.loads(out)["state"] == "done"
    assert calls[3] == 3  # the step that Ctrl-C came in was finished, and is not done again
    code, _, err = gptflow("train", "--resume", row["run"])
    assert code == 13
    assert "is done" in err


def test_data_sets_that_know_one_head_each_are_trained_on_together(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """As converted from two files that both call their column `label`."""
    for head, labels in (("topic", tiny.TOPICS[:3]), ("mood", ("good", "bad"))):
        rows = [
            {"text": f"it is {labels[n % len(labels)]} {head} {n}", "label": str(n % len(labels))}
            for n in range(24)
        ]
        given = str(tiny.jsonl(tmp_path / f"{head}-raw.jsonl", rows))
        renames = [x for n, label in enumerate(labels) for x in ("--rename", f"{n}={label}")]
        code, _, err = gptflow(
            "data", "convert", given, f"{head}.jsonl", "--label", f"{head}=label", *renames
        )
        assert code == 0, err
    args = (
        "train", "tiny.both", "--data", "topic.jsonl", "--data", "mood.jsonl",
        "--label", "topic=topic", "--json", *QUICK,
    )  # fmt: skip
    code, out, err = gptflow(*args, "--label", "mood=mood")
    assert code == 0, err
    made = json.loads(out)
    assert made["rows"] == {"train": 43, "dev": 5}
    assert {"topic.macro_f1", "mood.macro_f1"} <= set(made["metrics"])
    code, _, err = gptflow(*args, "--label", "mood=mod")
    assert code == 2
    assert "No file has the field 'mod'" in err


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "Say what to train"),
        (("tiny.topic",), 2, "Say what to train"),
        (("tiny.topik", "--data", "ROWS"), 4, "Did you mean 'tiny.topic'"),
        (("tiny.topic", "--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("tiny.topic", "--data", "ROWS", "--gate", "accuracy"), 2, "FIGURE=VALUE"),
        (("tiny.topic", "--data", "ROWS", "--adapter", "mood"), 13, "GF904"),
        (("tiny.topic", "--data", "ROWS", "--dev-share", "2"), 10, "dev"),
        (("tiny.topic", "--data", "ROWS", "--method", "head", "--layers", "upper"), 10, "layers"),
        (("--resume", "nothing"), 4, "GF902"),
        (("tiny.topic", "--resume", "last"), 2, "--resume takes"),
        (("tiny.names", "--data", "ROWS"), 13, "not trained on labels"),
        (("tiny.topic", "--data", "ROWS", "--track", "x"), 2, "'x' is not one of 'mlflow'"),
    ],
)
def test_what_is_wrong_is_told(
    gptflow: Invoke, rows: str, args: tuple[str, ...], code: int, told: str
) -> None:
    given = [rows if each == "ROWS" else each for each in args]
    found, _, err = gptflow("train", *given)
    assert found == code, err
    assert told in err


SEARCH = ("--space", "learning_rate=1e-3:1e-2:log", "--space", "rank=2,4", "--epochs", "1")


def test_a_search_ends_with_the_command_that_trains_the_best(gptflow: Invoke, rows: str) -> None:
    args = ("tune", "tiny.topic", "--data", rows, "--batch", "16", *SEARCH)
    code, out, err = gptflow(*args, "--study", "mine", "--trials", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [trial["state"] for trial in found["trials"]] == ["done", "done"]
    assert found["figure"] == "macro_f1"
    assert found["space"].keys() == {
        "rank", "learning_rate", "dropout", "head_learning_rate", "class_weights"
    }  # fmt: skip
    best = found["best"]["settings"]
    assert found["command"][:9] == [
        "gptflow", "train", "tiny.topic", "--data", rows, "--epochs", "1", "--batch", "16",
    ]  # fmt: skip
    assert "trial 0 of 2: " in err

    code, out, err = gptflow(*found["command"][1:], "--json")
    assert code == 0, err
    made = json.loads(out)
    assert {name: made["settings"][name] for name in best} == best

    # The same name goes on, as --resume does; the table ends with the command.
    code, out, err = gptflow(*args, "--study", "mine", "--trials", "3")
    assert code == 0, err
    assert "trial 2 of 3" in err
    assert "trial 0 of" not in err
    assert "gptflow train tiny.topic" in out
    assert out.count("done") == 3
    code, again, err = gptflow("tune", "--resume", "last")
    assert (code, again) == (0, out)


def test_ctrl_c_stops_a_search_between_steps_and_keeps_it(
    gptflow: Invoke, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from gptflow.training.trainer import Trainer

    update = Trainer._update
    calls: list[int] = []

    def stop_once(self: Any, step: int, batch: Any) -> float:
        calls.append(step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, batch)

    monkeypatch.setattr(Trainer, "_update", stop_once)
    args = ("--data", rows, "--batch", "16", *SEARCH, "--study", "mine", "--trials", "1")
    code, _, err = gptflow("tune", "tiny.topic", *args)
    assert code == 130
    assert "`gptflow tune --resume mine` goes on" in err
    code, out, err = gptflow("tune", "--resume", "mine", "--json")
    assert code == 0, err
    assert [trial["state"] for trial in json.loads(out)["trials"]] == ["done"]
    assert calls[3] == 3


def test_a_search_whose_time_is_up_says_how_to_go_on(gptflow: Invoke, rows: str) -> None:
    args = ("tune", "tiny.topic", "--data", rows, *SEARCH, "--study", "mine")
    code, out, err = gptflow(*args, "--timeout", "0.001")
    assert code == 0, err
    assert "`gptflow tune --resume mine` goes on" in err
    assert "gptflow train" not in out


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "Say what to train"),
        (("tiny.topic", "--data", "ROWS", "--test", "ROWS"), 2, "never chosen by test rows"),
        (("tiny.topic", "--data", "ROWS", "--space", "rnak=1,2"), 10, "Did you mean 'rank'"),
        (
            ("tiny.topic", "--data", "ROWS", "--space", "rank=1,2", "--rank", "2"),
            2,
            "rank is given",
        ),
        (("tiny.topic", "--data", "ROWS", "--study", "a/b"), 10, "cannot be called"),
        (("tiny.topic", "--data", "ROWS", "--trials", "0"), 2, "trials"),
        (("tiny.topic", "--data", "ROWS", "--timeout", "nan"), 2, "timeout"),
        (("tiny.topik", "--data", "ROWS"), 4, "Did you mean 'tiny.topic'"),
        (("tiny.names", "--data", "ROWS", "--trials", "1"), 13, "not trained on labels"),
        (("--resume", "nothing"), 4, "GF910"),
        (("tiny.topic", "--resume", "last"), 2, "--resume takes"),
    ],
)
def test_what_is_wrong_with_a_search_is_told(
    gptflow: Invoke, rows: str, args: tuple[str, ...], code: int, told: str
) -> None:
    given = [rows if each == "ROWS" else each for each in args]
    found, _, err = gptflow("tune", *given)
    assert found == code, err
    assert told in err


def test_raw_text_gives_an_adapter_or_a_model(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n\n".join(
        f"the {topic} is {mood}.\nplease help me."
        for topic in tiny.TOPICS
        for mood in ("good", "bad")
    )
    (tmp_path / "plain.txt").write_text(text)
    args = ("pretrain", "--data", "plain.txt", "--window", "32", "--batch", "4", "--rank", "4")
    code, out, err = gptflow(*args, "--learning-rate", "3e-3", "--adapter", "moods")
    assert code == 0, err
    assert "perplexity_fall: 0." in out
    assert "gptflow adapters promote moods@" in out
    assert gptflow("adapters", "promote", "moods")[0] == 0

    from gptflow.training.trainer import Trainer

    update = Trainer._update
    stop = iter([True])

    def stop_once(self: Any, step: int, batch: Any) -> float:
        if next(stop, False):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, batch)

    monkeypatch.setattr(Trainer, "_update", stop_once)
    shape = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(shape))
    code, out, err = gptflow(*args, "--config", "small.json", "--learning-rate", "1e-2")
    assert code == 130
    code, out, err = gptflow("pretrain", "--resume", "last", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["settings"]["method"] == "full"
    assert record["task"] == ""
    assert record["metrics"]["perplexity_fall"]["value"] > 0
    monkeypatch.setenv("GPTFLOW_CACHE_DIR", str(tmp_path / "cache"))
    assert gptflow("models", "pull", record["trained_model"])[0] == 0
    assert record["id"] in gptflow("models", "list")[1]
    assert record["id"] in gptflow("runs", "list")[1]
    assert record["id"] in gptflow("runs", "show", record["id"])[1]
    for wrong, code in (
        (("--kind", "labels"), 2),
        (("--resume", "last"), 2),
        (("--config", "none.json"), 10),
        (("--config", "small.json", "--method", "lora"), 13),
    ):
        assert gptflow(*args, *wrong)[0] == code
