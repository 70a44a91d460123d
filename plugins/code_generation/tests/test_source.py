"""From what a model wrote to Python source."""

from __future__ import annotations

import ast
import textwrap

import pytest

from gptflow_code_generation import source
from gptflow_code_generation.imports import imports_for, undefined_names

ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "text",
    [
        "    return a + b",
        "\n    return a + b\n",
        "\n    return a + b\n```\nThis function adds two numbers.",
        "\n    return a + b\n\nprint(add(1, 2))\n",
        "\n    return a + b\n\n\nif __name__ == '__main__':\n    print(add(1, 2))",
        "\n    return a + b\n\nassert add(1, 1) == 2\nresult = add(2, 3)",
        "\n    return a + b\n\n# Example usage:\n",
        "\n    return a + b\n\n\ndef sub(a, b):\n    return (a -",
        "\n\treturn a + b\n",
        "def add(a, b):\n    return a + b",
        "\ndef add(a, b):\n    return a + b",
        "```python\ndef add(a, b):\n    return a + b\n```\nDone.",
        "Here it is:\n```py\ndef add(a, b):\n    return a + b\n```",
    ],
)
def test_many_ways_to_write_the_same_function(text: str) -> None:
    prefix = "def add(a, b):" if not text.startswith("    ") else "def add(a, b):\n"
    assert source.clean(prefix, text) == ADD


@pytest.mark.parametrize(
    "text", ["", "Sorry.", "\n    return (", "\n    # to do\n", '\n    """Doc."""\n']
)
def test_no_function_no_code(text: str) -> None:
    assert source.clean("def add(a, b):", text) == ""


def test_a_fence_without_a_language_at_the_start_opens_a_block() -> None:
    assert source.unfence("```\nx = 1\n```\ny") == "x = 1\n"


def test_a_block_that_is_not_closed_reaches_to_the_end() -> None:
    assert source.unfence("Sure:\n```python\nx = 1\n") == "x = 1\n"


def test_what_comes_before_a_repeated_definition_stays() -> None:
    code = source.clean("import os\n\ndef cwd():", "def cwd():\n    return os.getcwd()")
    assert code == "import os\n\ndef cwd():\n    return os.getcwd()\n"


def test_the_callers_own_statements_stay() -> None:
    prefix = "print('start')\n\ndef add(a, b):\n    pass\n\nprint('end')\ndef sub(a, b):"
    assert source.clean(prefix, "\n    return a - b\nprint(1)") == f"{prefix}\n    return a - b\n"


def test_a_constant_that_a_function_uses_stays() -> None:
    text = "def f():\n    return LIMIT\n\nLIMIT = 3\nunused = f()\n"
    assert source.clean("", text) == "def f():\n    return LIMIT\n\nLIMIT = 3\n"


def test_sample_input_named_like_a_parameter_goes() -> None:
    text = "def f(text):\n    return text\n\ntext = 'hello'\n"
    assert source.clean("", text) == "def f(text):\n    return text\n"


def test_a_continuation_follows_the_prompts_tabs() -> None:
    code = source.clean("def f(a):\n\tif a:", "\n        return 1\n    return 2")
    assert code == "def f(a):\n\tif a:\n\t\treturn 1\n\treturn 2\n"


def test_an_indented_answer_is_moved_to_the_margin() -> None:
    assert source.clean("", textwrap.indent(ADD, "    ")) == ADD


def test_statements_after_a_prompt_that_begins_no_definition_are_kept() -> None:
    assert source.clean("x = [3, 1]\n", "x.sort()\nprint(x") == "x = [3, 1]\nx.sort()\n"


def test_a_script_without_a_definition_is_no_answer_to_words() -> None:
    assert source.clean("", "print('hello')") == ""


def test_a_long_block_without_its_end_goes_and_what_is_before_it_stays() -> None:
    block = "    try:\n" + "        a += b\n" * 100
    assert source.clean("def add(a, b):", f"\n    a = +a\n{block}") == (
        "def add(a, b):\n    a = +a\n"
    )


def test_a_long_list_without_its_end_goes_and_what_is_before_it_stays() -> None:
    assert source.clean("", ADD + "x = (\n" + "1,\n" * 6000) == ADD


@pytest.mark.parametrize(
    ("end", "attempts"),
    [
        ("x = (\n" + "1,\n" * 6000, 2),
        ("x = 1 + \\\n" * 6000, 2),
        ("def f(a):\n" * 6000, 3),
        ("\0\n" * 6000, 50),
        ("@a\n" * 6000, 50),
    ],
)
def test_however_long_the_broken_end_few_attempts_find_the_program(
    end: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse(text: str) -> ast.Module:
        parsed.append(text)
        return compile(text, "sample", "exec", ast.PyCF_ONLY_AST)

    monkeypatch.setattr(ast, "parse", parse)
    assert source.clean("", end) == ""
    assert len(parsed) <= attempts


@pytest.mark.filterwarnings("error")
def test_odd_but_valid_code_raises_no_warning() -> None:
    assert source.clean("def f(s):", "\n    return '\\d' is s") != ""


@pytest.mark.parametrize(
    "prompt",
    [
        "def add(a, b):",
        "    def method(self):\n",
        "async def fetch(url):",
        "class Stack:",
        "import math\n",
        "from math import pi",
        "for i in range(3):",
        "x = 1\ny = 2",
        "def f(a, b",
        '"""A module."""\nimport os',
        "# reverse a string",
        'def f():\n    """Add two',
        "print(1)",
    ],
)
def test_this_is_code(prompt: str) -> None:
    assert source.is_code(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "Write a function that adds two numbers",
        "Write a function as follows:",
        "fibonacci",
        "sort [3, 1, 2]",
        "import the data and print it",
        "class that counts words",
        "Don't use loops.",
        "返回列表中的最大值",
        "if a number is even, halve it",
    ],
)
def test_this_is_not_code(prompt: str) -> None:
    assert not source.is_code(prompt)


def test_missing_imports_are_put_on_top() -> None:
    code = source.clean("def f(x):", "\n    return math.sqrt(x), Counter(x), reduce(max, x)")
    assert code.startswith(
        "import math\nfrom collections import Counter\nfrom functools import reduce\n\n\ndef f"
    )


def test_imports_come_after_those_of_the_future() -> None:
    code = source.clean("from __future__ import annotations\n\ndef f(x):", "\n    return math.pi")
    assert code.startswith("from __future__ import annotations\nimport math\n")


def test_a_variable_named_like_a_module_is_not_imported() -> None:
    assert imports_for("def f():\n    return string") == ""
    assert imports_for("def f(math):\n    return math.pi") == ""


def test_undefined_names_have_the_first_line_that_uses_them() -> None:
    found = undefined_names("def f(a):\n    b = c\n    return c + d + b + len(a)\n")
    assert [(it.name, it.line) for it in found] == [("c", 2), ("d", 3)]


def test_code_that_does_not_parse_has_no_undefined_names() -> None:
    assert undefined_names("def f(") == []
