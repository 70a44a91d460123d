"""From what a model wrote to Python source that can be used.

The steps, in order: take the code out of Markdown, take out a repeated prompt, make the
indentation uniform, cut the longest prefix of whole statements that parses, drop demonstration
code after the definitions, and prepend imports of the standard library that are missing.
"""

from __future__ import annotations

import ast
import codeop
import re
import textwrap
import warnings

from gptflow_code_generation.imports import add_imports

_FENCE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
_LEADING = re.compile(r"^[ \t]+", re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


_PATIENCE = 32
"""Attempts to parse a sample before blocks are cut off it, not lines."""


def parse(source: str) -> ast.Module | None:
    """The syntax tree, or None where there is none."""
    tree = _parse_or_line(source)
    return tree if isinstance(tree, ast.Module) else None


def is_code(prompt: str) -> bool:
    """Whether the prompt is the beginning of a program rather than a request in words."""
    prompt = textwrap.dedent(prompt)
    return _is_open(prompt) or ((tree := parse(prompt)) is not None and not _is_words(tree))


def opens_block(prompt: str) -> bool:
    """Whether the prompt stops inside something that it began, such as a function."""
    return _is_open(prompt.rstrip()) or _last_line(prompt)[:1].isspace()


def ends_in_comment(prompt: str) -> bool:
    """Whether the prompt's last line that is not blank is a comment."""
    return _last_line(prompt).lstrip().startswith("#")


def clean(prefix: str, text: str) -> str:
    """The program that a continuation makes of its prefix; "" if nothing of it parses.

    Args:
        prefix: code that the prompt ended with. It opens the program unless the continuation
            starts over.
        text: what the model wrote after it.
    """
    tabs = re.search(r"^\t", prefix, re.MULTILINE) is not None
    prefix, text = _indent(prefix, tabs=tabs), _indent(unfence(text), tabs=tabs)
    lines = textwrap.dedent(_join(prefix, text)).rstrip().split("\n")
    given = prefix.rstrip().count("\n")
    source, tree = _longest_program(lines)
    # What is longer holds all that is shorter: if this is of no use, no part of it is.
    if not _is_useful(tree, source, prefix):
        return ""
    return add_imports(_without_demonstration(source, tree, given=given))


def unfence(text: str) -> str:
    """The first fenced block, or all before the first fence where that closes a block.

    A fence opens a block if it names a language or has nothing before it.
    """
    fence = _FENCE.search(text)
    if fence is None:
        return text
    before, rest = text[: fence.start()], text[fence.end() + 1 :]
    if before.strip() and fence.group().strip() == "```":
        return before
    closing = _FENCE.search(rest)
    return rest[: closing.start()] if closing else rest


def _longest_program(lines: list[str]) -> tuple[str, ast.Module]:
    """The longest run of lines from the first one that parses, and its tree.

    What does not parse still does not with more lines after the error, so each attempt ends
    before the last one's error: one or two are usual. Where the errors only creep up, as in a
    long `try` without its `except`, whole blocks go, and at the margin ever more lines.
    """
    end, stride, attempts = len(lines), 1, 0
    while end > 0:
        source = "\n".join(lines[:end]).rstrip()
        tree = _parse_or_line(source)
        if isinstance(tree, ast.Module):
            return source, tree
        attempts += 1
        end = min(end, tree or end) - 1
        if attempts > _PATIENCE:
            block = _block(lines, end)
            stride *= 1 if block else 2
            end = block or end - stride
    return "", ast.Module(body=[], type_ignores=[])


def _block(lines: list[str], end: int) -> int:
    """Where the block that holds the line before `end` begins; 0 at the margin."""
    last = next((line for line in reversed(lines[:end]) if line.strip()), "")
    depth = _depth(last)
    at = range(end - 1, 0, -1)
    return next((n for n in at if lines[n].strip() and _depth(lines[n]) < depth), 0)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _parse_or_line(source: str) -> ast.Module | int | None:
    """The syntax tree, or else the line, from 1, of the error where that is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the code's style, such as an invalid escape
        try:
            return ast.parse(source)
        except SyntaxError as error:
            return error.lineno
        except (ValueError, RecursionError, MemoryError):
            return None


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def _is_open(prompt: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return codeop.compile_command(prompt, "prompt", "exec") is None
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False


def _is_words(tree: ast.Module) -> bool:
    """A single word, a quotation and `sort [3, 1, 2]` parse too."""
    return bool(tree.body) and all(
        isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) for node in tree.body
    )


def _indent(text: str, *, tabs: bool) -> str:
    """Leading white space all in tabs, or all in spaces, four to a tab."""

    def uniform(match: re.Match[str]) -> str:
        spaces = match.group().expandtabs(4)
        return spaces.replace("    ", "\t") if tabs else spaces

    return _LEADING.sub(uniform, text)


def _join(prefix: str, text: str) -> str:
    """Prefix and continuation; where the continuation starts over with one of the prefix's
    definitions, only what comes before that definition is taken from the prefix.
    """
    lines = prefix.split("\n")
    for number, line in enumerate(lines):
        head = line.strip()
        if head.startswith(("def ", "class ", "async def ")) and text.lstrip().startswith(head):
            return "\n".join([*lines[:number], text.lstrip("\n")])
    return prefix + text


def _is_useful(tree: ast.Module, source: str, prefix: str) -> bool:
    """Whether it holds a definition with a body, or at least more than it was given."""
    if any(_has_body(node) for node in tree.body):
        return True
    asked_for_definition = re.search(r"^\s*(async\s+def|def|class)\s", prefix, re.MULTILINE)
    return not asked_for_definition and len(source) > len(prefix.strip()) > 0


def _has_body(node: ast.stmt) -> bool:
    if not isinstance(node, _DEFINITIONS):
        return False
    return any(
        not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
        for child in node.body
    )


def _without_demonstration(source: str, tree: ast.Module, *, given: int) -> str:
    """Drop what follows a definition at the top level and no definition uses.

    Such statements show the code off or test it, and would run when the module is loaded.

    Args:
        given: that many lines are the caller's own and stay.
    """
    definitions = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    if not definitions:
        return source + "\n"
    used = set[str]().union(*map(_free_names, definitions))
    lines = source.split("\n")
    last = given
    for node in tree.body:
        start, end = node.lineno, node.end_lineno or node.lineno
        if start > max(given, definitions[0].lineno) and not _belongs(node, used):
            lines[start - 1 : end] = [""] * (end - start + 1)
        else:
            last = max(last, end)
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines[:last])).rstrip() + "\n"


def _free_names(definition: ast.stmt) -> set[str]:
    """The names that a definition reads and does not bind."""
    nodes = list(ast.walk(definition))
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    read: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    return read - bound


def _belongs(node: ast.stmt, used: set[str]) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, ast.Name) and target.id in used for target in targets)
    return isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))
