"""Undefined names, and the imports that define those of the standard library."""

from __future__ import annotations

import ast
import dataclasses
import sys
import warnings

from pyflakes.checker import Checker
from pyflakes.messages import UndefinedName

_MODULES = {
    name: module
    for module, names in {
        "collections": "Counter OrderedDict defaultdict deque namedtuple",
        "dataclasses": "dataclass",
        "functools": "cache cmp_to_key lru_cache partial reduce",
        "itertools": "accumulate chain combinations groupby permutations product",
        "math": "ceil comb factorial floor gcd isclose log prod sqrt",
        "typing": "Any Callable Dict Iterable List Optional Set Tuple Union",
    }.items()
    for name in names.split()
}
"""Names that are customarily imported by themselves, and from where."""


@dataclasses.dataclass(frozen=True, slots=True)
class Undefined:
    """A name that nothing defines, and the first line, from 1, that uses it."""

    name: str
    line: int


def undefined_names(source: str) -> list[Undefined]:
    """The names that the program uses and nothing defines; none if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            messages = Checker(ast.parse(source), withDoctest=False).messages
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    first: dict[str, int] = {}
    for message in messages:
        if isinstance(message, UndefinedName):
            name = str(message.message_args[0])
            first[name] = min(message.lineno, first.get(name, message.lineno))
    return [Undefined(name, line) for name, line in sorted(first.items(), key=lambda it: it[1])]


def imports_for(source: str) -> str:
    """Import statements for what the program uses of the standard library, one a line."""
    names = [undefined.name for undefined in undefined_names(source)]
    owners = {
        node.value.id
        for node in (ast.walk(ast.parse(source)) if names else ())
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    # A module's name counts only as `name.something`: `string` alone is more often a variable.
    modules = [f"import {name}" for name in names if name in owners & sys.stdlib_module_names]
    members = [f"from {_MODULES[name]} import {name}" for name in names if name in _MODULES]
    return "\n".join(sorted(modules) + sorted(members))


def add_imports(source: str) -> str:
    """The program with the imports that it forgot at its top."""
    imports = imports_for(source)
    if not imports:
        return source
    lines = source.split("\n")
    future = [i for i, line in enumerate(lines, 1) if line.startswith("from __future__ ")]
    at = future[-1] if future else 0
    return "\n".join([*lines[:at], imports, *lines[at:]] if at else [imports, "", "", *lines])
