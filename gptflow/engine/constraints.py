"""Constraints: JSON schemas enforced while decoding, by llguidance."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import EngineError, InvalidGrammar, MissingDependency

# One space after comma and colon, none elsewhere: how most JSON in training data looks, and
# no room for a model to go on with white space for ever.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KEPT = 256


class Constraint:
    """What a grammar admits next, for one sequence.

    Raises:
        EngineError: the matcher failed; from any method that asks it something.
    """

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._size = size

    @property
    def complete(self) -> bool:
        """The text is whole and nothing may follow it."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> torch.Tensor:
        """The tokens that may come next, `[vocabulary]` of bool."""
        with self._checked():
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little", count=self._size)
        return torch.from_numpy(bits).bool()

    def advance(self, tokens: Sequence[int]) -> None:
        """Take tokens that `mask` or `forced` allowed."""
        with self._checked():
            self._matcher.consume_tokens(list(tokens))

    def forced(self) -> list[int]:
        """The tokens that alone can come next, taken already; none if there is a choice."""
        with self._checked():
            tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens:
            self.advance(tokens)
        return tokens

    def begin(self) -> None:
        """See whether there is a beginning at all."""
        self.forced()
        if not self.complete:
            self.mask()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust code is not an Exception
            name = type(error).__name__
            raise EngineError(f"The grammar failed while decoding: {name}.") from error
        if self._matcher.is_error():
            # No more than that: the matcher's own words quote the answer.
            reason = self._matcher.stop_reason()
            raise EngineError(f"The grammar failed while decoding: {reason}.")


class Grammars:
    """Compiles schemas for one vocabulary and keeps the ones last used. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # guards what follows; never held while compiling
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, Future[Any]] = OrderedDict()

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """A fresh constraint for a JSON Schema.

        Raises:
            InvalidGrammar: the schema cannot be enforced.
            MissingDependency: llguidance is not installed.
        """
        try:
            key = json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidGrammar(f"The schema is not JSON: {error}.") from None
        with self._lock:
            compiled = self._compiled.get(key)
            mine = compiled is None
            if compiled is None:
                compiled = self._compiled[key] = Future()
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
        if mine:  # whoever needs another schema does not wait for this one
            try:
                compiled.set_result(self._compile(key))
            except BaseException as error:
                with self._lock:
                    if self._compiled.get(key) is compiled:
                        del self._compiled[key]
                if not isinstance(error, Exception):  # others were not interrupted
                    error = EngineError("The grammar was not compiled; try again.")
                compiled.set_exception(error)
                raise
        return Constraint(compiled.result().deep_copy(), self._vocabulary.size)

    def _compile(self, schema: str) -> Any:
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError:
            raise MissingDependency(
                "The Json head needs llguidance.", hint='pip install "gptflow[runtime]"'
            ) from None
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._vocabulary.json,
                    n_vocab=self._vocabulary.size,
                    eos_token=sorted(self._vocabulary.eos_ids) or None,
                )
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_LAYOUT)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise InvalidGrammar(f"The schema cannot be enforced: {error}.") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic, as above
            name = type(error).__name__
            raise EngineError(f"The schema could not be compiled: {name}.") from error
        if matcher.is_error():
            raise InvalidGrammar(f"The schema cannot be enforced: {matcher.get_error()}.")
        try:
            Constraint(matcher.deep_copy(), self._vocabulary.size).begin()
        except EngineError as error:  # such as a reference to itself
            raise InvalidGrammar("No value fits the schema.") from error
        return matcher
