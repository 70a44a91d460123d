"""Schemas as a person reads them: one line a field, those that are needed first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_WORDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "true or false",
}
_LIMITS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)
_LONGEST_DEFAULT = 40


def outline(schema: Schema) -> str:
    """The fields of an object's JSON schema, and below each those of the objects it holds."""
    return "\n".join(_lines(schema, schema.get("$defs", {}), ()))


def _lines(schema: Schema, definitions: Schema, inside: tuple[str, ...]) -> Iterator[str]:
    required = schema.get("required", ())
    fields = sorted(
        schema.get("properties", {}).items(), key=lambda field: field[0] not in required
    )
    for name, field in fields:
        notes = [_type(field, definitions), *_limits(field)]
        if name in required:
            end = " (required)"
        elif field.get("default") is None:
            end = ""
        else:
            default = json.dumps(field["default"], ensure_ascii=False)
            end = f" = {default}" if len(default) <= _LONGEST_DEFAULT else ""
        yield f"{'  ' * len(inside)}{name}: {', '.join(notes)}{end}"
        for object_name in _objects(field, definitions):
            if object_name not in inside:
                yield from _lines(definitions[object_name], definitions, (*inside, object_name))


def _type(field: Schema, definitions: Schema) -> str:
    if "$ref" in field:
        name = _name(field)
        target = definitions.get(name, {})
        return name if "properties" in target else _type(target, definitions)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(each, definitions) for each in field["anyOf"]))
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    if "const" in field:
        return repr(field["const"])
    if field.get("type") == "array" and "items" in field:
        return f"list of {_type(field['items'], definitions)}"
    kind = str(field.get("type", "any"))
    return _WORDS.get(kind, kind)


def _limits(field: Schema) -> Iterator[str]:
    options = (field, *field.get("anyOf", ()))
    if (bound := _first(options, "exclusiveMinimum")) is not None:
        yield f"above {bound}"
    for least_name, most_name, unit in _LIMITS:
        least = _first(options, least_name)
        most = _first(options, most_name)
        if least is not None and most is not None:
            yield f"{least} to {most}{unit}"
        elif least is not None:
            yield f"{least} or more{unit}"
        elif most is not None:
            yield f"at most {most}{unit}"


def _first(options: tuple[Schema, ...], name: str) -> Any:
    return next((option[name] for option in options if name in option), None)


def _objects(field: Schema, definitions: Schema) -> Iterator[str]:
    """The names of the objects that a field holds, in lists and alternatives too."""
    if "$ref" in field and "properties" in definitions.get(_name(field), {}):
        yield _name(field)
    for part in (*field.get("anyOf", ()), field.get("items")):
        if isinstance(part, Mapping):
            yield from _objects(part, definitions)


def _name(field: Schema) -> str:
    return str(field["$ref"]).rpartition("/")[2]
