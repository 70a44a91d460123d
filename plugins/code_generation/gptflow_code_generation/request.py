"""What the caller asks for."""

from __future__ import annotations

import ast
import builtins
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gptflow.task import Input, Text
from gptflow_code_generation import source

Mode = Literal["auto", "generate", "complete"]
MAX_TESTS = 64


class CodeRequest(Input):
    """A request in words, or code to be completed. A bare string is the prompt."""

    prompt: Text = Field(max_length=20_000)
    mode: Mode = Field("auto", description="auto: complete what is code, generate from words")
    signature: str | None = Field(
        None, max_length=500, description="how the function begins, such as `def add(a, b):`"
    )
    tests: tuple[Text, ...] = Field(
        (), max_length=MAX_TESTS, description="statements such as `assert add(1, 2) == 3`"
    )
    n: int = Field(1, ge=1, le=20, description="samples to draw")
    temperature: float | None = Field(
        None, ge=0, le=2, description="by default 0 for one sample, 0.7 for more"
    )
    max_new_tokens: int = Field(256, ge=1, le=1024)
    timeout_s: float = Field(
        3.0, ge=1, le=30, description="processor seconds for one sample's tests"
    )

    @field_validator("signature")
    @classmethod
    def _is_signature(cls, signature: str | None) -> str | None:
        if signature is None:
            return None
        signature = signature.strip().removesuffix(":").rstrip() + ":"
        if source.parse(f"{signature} pass") is None:
            raise ValueError("this is not how a function or class begins")
        return signature

    @field_validator("tests")
    @classmethod
    def _are_statements(cls, tests: tuple[str, ...]) -> tuple[str, ...]:
        for number, test in enumerate(tests, 1):
            if source.parse(test) is None:
                raise ValueError(f"test {number} is not Python")
        return tests

    @model_validator(mode="after")
    def _samples_differ(self) -> CodeRequest:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("temperature 0 draws the same sample n times")
        return self

    @property
    def completes(self) -> bool:
        """Whether the prompt is code to go on with, not words."""
        if self.mode == "auto":
            return source.is_code(self.prompt)
        return self.mode == "complete"

    @property
    def opening(self) -> str:
        """The code that the answer has to begin with."""
        if not self.completes:
            return self.signature or _opening_for(self.tests)
        # White space at the end is left to the model, which spells it as part of what follows.
        code = self.prompt.rstrip()
        if self.signature:
            return f"{code}\n{self.signature}"
        ends_line = source.ends_in_comment(code) or not source.opens_block(code)
        return f"{code}\n" if ends_line else code


def _opening_for(tests: tuple[str, ...]) -> str:
    """The beginning of a definition of what the tests call; "" if that cannot be told."""
    for test in tests:
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if not hasattr(builtins, name):
                    return f"class {name}" if name[0].isupper() else f"def {name}("
    return ""
