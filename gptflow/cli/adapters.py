"""`gptflow adapters`: trained adapters, and which of them is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table

if TYPE_CHECKING:
    from gptflow.models.adapter_store import AdapterStore, AdapterVersion


@click.group(short_help="List adapters, promote one, roll back.")
def adapters() -> None:
    """Show trained adapters, and choose which of them workers serve.

    A REFERENCE is an alias, or alias@version; the beginning of a hash does for a version.
    """


@adapters.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List all versions of all adapters."""
    store = _store(session)
    found = [version for alias in store.aliases() for version in store.versions(alias)]
    if as_json:
        print_json([_row(version) for version in found])
        return
    print_table(
        ("adapter", "task", "promoted", "figure", "floor", "made"),
        (
            (
                version.reference,
                version.manifest.task or "any",
                "yes" if version.promoted else "",
                *_figures(version),
                version.manifest.created,
            )
            for version in found
        ),
        empty="The store has no adapters. `gptflow train TASK --data FILE` makes one.",
    )


@adapters.command()
@click.argument("reference")
@click.option("--verify", is_flag=True, help="Compute every checksum again.")
@json_option
@click.pass_obj
def show(session: Session, reference: str, verify: bool, as_json: bool) -> None:
    """Show one adapter: what it is for, what it was made of, how good it is."""
    store = _store(session)
    version = store.find(reference)
    if verify:
        store.verify(version)
    manifest = version.manifest
    history = [p.model_dump(mode="json") for p in store.history(version.alias)]
    if as_json:
        print_json(
            _row(version) | {"manifest": manifest.model_dump(mode="json"), "promotions": history}
        )
        return
    rows: list[tuple[str, Any]] = [
        ("adapter", version.reference),
        ("sha256", version.sha256),
        ("folder", version.folder),
        ("promoted", "yes" if version.promoted else "no"),
        ("task", manifest.task or "any"),
        ("base model", manifest.base.id),
        ("heads", ", ".join(f"{name} ({spec.kind})" for name, spec in manifest.heads.items())),
        ("LoRA rank", manifest.lora_rank or "none"),
        ("made", f"{manifest.created} by {manifest.code}"),
    ]
    rows += [
        (
            f"data: {data.split or 'all'}",
            f"{data.name}, {data.rows} rows, {data.licence}, sha256 {data.sha256[:12]}…",
        )
        for data in manifest.data
    ]
    rows += [
        (
            name,
            f"{metric.value:.4f}"
            + (f" (floor {metric.floor:.4f})" if metric.floor is not None else ""),
        )
        for name, metric in manifest.metrics.items()
    ]
    rows += [(f"gate: {name}", f"{gate:g}") for name, gate in manifest.gates.items()]
    rows += [
        (
            f"answers: {name}",
            f"a simple model ({floor.kind}), which is as good"
            if floor.weight is None
            else f"the head, and with weight {floor.weight:g} a simple model ({floor.kind})",
        )
        for name, floor in manifest.floors.items()
    ]
    rows += [("against promotion", words) for words in manifest.missed()]
    print_table(("field", "value"), rows)


@adapters.command()
@click.argument("reference")
@click.option("--force", is_flag=True, help="Although it misses a gate, or is worse than a floor.")
@json_option
@click.pass_obj
def promote(session: Session, reference: str, force: bool, as_json: bool) -> None:
    """Let an alias stand for a version. Running workers serve it within seconds.

    Without a version, the newest one of the alias is meant.
    """
    from gptflow.errors import GateMissed

    store = _store(session)
    version = store.find(reference) if "@" in reference else _newest(store, reference)
    store.verify(version, base=_base(session))
    if missed := version.manifest.missed():
        told = f"{version.reference}: {'; '.join(missed)}."
        if not force:
            raise GateMissed(told, hint="Train it better, or promote it with `--force`.")
        note(f"warning [{GateMissed.code}]: {told}")
    store.promote(version)
    _tell(store.find(version.reference), as_json)


@adapters.command()
@click.argument("alias")
@json_option
@click.pass_obj
def rollback(session: Session, alias: str, as_json: bool) -> None:
    """Undo the last promotion of an alias."""
    store = _store(session)
    before = store.rollback(alias)
    if before is not None:
        _tell(store.find(f"{alias}@{before.version}"), as_json)
    elif as_json:
        print_json({"alias": alias, "adapter": None})
    else:
        click.echo(f"{alias} stands for nothing, as before its first promotion.")


def _tell(version: AdapterVersion, as_json: bool) -> None:
    if as_json:
        print_json({"alias": version.alias, "adapter": _row(version)})
    else:
        click.echo(f"{version.alias} stands for {version.reference}.")


def _store(session: Session) -> AdapterStore:
    from gptflow.models.adapter_store import AdapterStore

    return AdapterStore(session.settings().adapters_dir)


def _newest(store: AdapterStore, alias: str) -> AdapterVersion:
    versions = store.versions(alias)
    return versions[-1] if versions else store.find(alias)


def _base(session: Session) -> str | None:
    """The hash of the model that the settings name; None if it is not on this machine."""
    from gptflow.errors import ModelError
    from gptflow.models import ModelStore

    settings = session.settings()
    try:
        return ModelStore(settings.cache_dir, offline=True).find(settings.model).sha256
    except ModelError:
        note(f"The model {settings.model!r} is not on this machine: workers check that it fits.")
        return None


def _row(version: AdapterVersion) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "reference": version.reference,
        "alias": version.alias,
        "version": version.name,
        "sha256": version.sha256,
        "promoted": version.promoted,
        "task": manifest.task,
        "base": manifest.base.id,
        "primary": manifest.primary or None,
        "metrics": {n: m.model_dump(mode="json") for n, m in manifest.metrics.items()},
        "created": manifest.created,
        "folder": str(version.folder),
    }


def _figures(version: AdapterVersion) -> tuple[str, str]:
    manifest = version.manifest
    metric = manifest.metrics.get(manifest.primary)
    if metric is None:
        return "", ""
    floor = "" if metric.floor is None else f"{metric.floor:.3f}"
    return f"{manifest.primary} {metric.value:.3f}", floor
