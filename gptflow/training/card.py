"""The model card: an adapter's README, for people."""

from __future__ import annotations

from gptflow.adapter import Manifest
from gptflow.training.runs import RunRecord


def model_card(manifest: Manifest, record: RunRecord) -> str:
    """Markdown: what the adapter is for, what it was made of, how good it is."""
    use = f"`{manifest.task}`" if manifest.task else "any task that generates text"
    lines = [f"# {record.adapter}: an adapter for {use}", ""]
    for name, spec in manifest.heads.items():
        labels = getattr(spec, "labels", ())
        told = f": {', '.join(labels)}" if labels else ""
        lines.append(f"- Head `{name}` ({spec.kind}){told}")
        if (simple := manifest.floors.get(name)) is not None:
            how = (
                "is as good, and answers in its place"
                if simple.weight is None
                else f"answers with it: its log-probabilities count {simple.weight:g}"
            )
            lines.append(f"  - A simple model ({simple.kind}) {how}.")
    settings = record.settings
    how = {
        "lora": f"LoRA of rank {settings.rank} on {settings.layers} layers",
        "head": "the head alone, on the frozen model",
        "full": "all weights of the model",
    }[settings.method]
    lines += [
        f"- Base model: {manifest.base.id}, {', '.join(manifest.base.sha256)}",
        f"- Trained: {how}, on {record.rows.get('train', 0)} rows, {record.steps} steps of "
        f"{settings.batch}, {record.tokens} tokens, {settings.precision}, seed {settings.seed}",
        f"- Made {manifest.created} by {manifest.code}, run {record.id}",
        "",
        "## Figures",
        "",
        "| figure | value | best simple model |",
        "|---|---|---|",
    ]
    for name, metric in manifest.metrics.items():
        floor = "" if metric.floor is None else f"{metric.floor:.4f}"
        lines.append(f"| {name} | {metric.value:.4f} | {floor} |")
    measured = (
        "the test file"
        if "test" in record.rows
        else ("the development split, by which the weights were chosen: they flatter")
    )
    lines += ["", f"Measured on {measured}. `metrics.json` has the rest.", ""]
    if missed := manifest.missed():
        lines += [*(f"**Not good enough:** {words}." for words in missed), ""]
    if record.warnings:
        lines += [*(f"**Warning:** {words}." for words in record.warnings), ""]
    lines += ["## Data", "", "| data | split | rows | licence | SHA-256 |", "|---|---|---|---|---|"]
    for data in manifest.data:
        lines.append(
            f"| {data.name} | {data.split} | {data.rows or ''} | {data.licence} | `{data.sha256}` |"
        )
    return "\n".join([*lines, ""])
