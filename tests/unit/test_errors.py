"""The error tree: what the docstring draws is what there is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow import errors
from gptflow.errors import ErrorInfo, GPTFlowError, JobFailed
from gptflow.result import from_info
from gptflow.tracebacks import raised_at


def classes(cls=GPTFlowError):
    """Every class of the tree that GPTFlow itself defines."""
    yield cls
    for child in cls.__subclasses__():
        if child.__module__.startswith("gptflow."):
            yield from classes(child)


def drawn():
    """The docstring's tree as {name: (code, parent)}."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"(    [│├└─ ]*)(\w+) +(GF\d{3})", line):
            depth = (len(match[1]) - 4) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = (match[3], path[depth - 1] if depth else "Exception")
    return tree


def test_the_docstring_draws_the_tree_as_it_is():
    assert drawn() == {cls.__name__: (cls.code, cls.__base__.__name__) for cls in classes()}


def test_every_code_is_unique():
    codes = [cls.code for cls in classes()]
    assert len(codes) == len(set(codes))


def test_exit_codes_tell_families_apart_and_fit_a_shell():
    assert all(1 <= cls.exit_code < 126 for cls in classes())
    families = {cls.exit_code for cls in GPTFlowError.__subclasses__() if cls.exit_code != 1}
    assert len(families) >= 7


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
def test_every_error_survives_the_wire_as_its_own_class(cls):
    back = from_info(cls("It broke.", hint="Mend it.").info.as_dict())
    assert type(back) is cls
    assert (back.message, back.hint) == ("It broke.", "Mend it.")


@given(st.text(), st.none() | st.text())
def test_messages_and_hints_survive_the_wire(message, hint):
    info = JobFailed(message, hint=hint).info
    assert from_info(info).info == info


def test_a_code_from_the_future_is_a_failed_job_that_names_it():
    error = from_info({"code": "GF999", "message": "New trouble."})
    assert type(error) is JobFailed
    assert error.message == "[GF999] New trouble."


def test_a_message_is_followed_by_its_hint():
    assert str(GPTFlowError("No such thing.", hint="Try another.")) == "No such thing. Try another."
    assert str(GPTFlowError("No such thing.")) == "No such thing."
    assert GPTFlowError("x").info == ErrorInfo("GF000", "x", None)


def test_an_exception_is_traced_to_the_packages_own_line():
    with pytest.raises(re.error) as caught:
        re.compile("(")
    own, foreign = raised_at(caught.value, __name__), raised_at(caught.value, "elsewhere")
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+", own)
    assert "re" in foreign
    assert foreign != own


def test_a_syntax_error_is_traced_to_the_line_it_is_in():
    with pytest.raises(SyntaxError) as caught:
        compile("fine = 1\nfine fine\n", "plugin.py", "exec")
    assert raised_at(caught.value, "plugin") == "plugin.py:2"


def test_an_exception_that_was_never_raised_comes_from_nowhere():
    assert raised_at(ValueError(), "plugin") == "?"
