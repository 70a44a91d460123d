"""Linear floors: naive Bayes, and TF-IDF with logistic regression, over words and word pairs.

Both are one matrix over counted terms, so one class serves either: fitted with scikit-learn,
kept as a table of terms and safetensors, and asked without scikit-learn. A task whose model
does not beat its floor serves this: a head's, in an adapter's folder, is `floor-HEAD.json` and
`floor-HEAD.safetensors`.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gptflow.errors import AdapterCorrupt, MissingDependency
from gptflow.terms import terms

Kind = Literal["naive_bayes", "tfidf_logistic"]
Floats = NDArray[np.float64]

TERMS = "terms.json"
WEIGHTS = "floor.safetensors"

_IMPOSSIBLE = -1e4
_UNLIKELY = -20.0

SMOOTHING = 0.1
"""Of naive Bayes, in counts."""

PENALTY = 10.0
"""scikit-learn's `C`; tuned on nothing."""

_MANY = 1000
"""Rows of which a term may be asked to occur twice."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearText:
    """A classifier whose logits are linear in the counts of a text's terms.

    Attributes:
        labels: in the order of the columns of `weights`.
        vocabulary: a term's row.
        weights: `[terms, labels]`.
        bias: `[labels]`.
        idf: `[terms]` where counts are damped, weighted and scaled to length 1; empty where
            they are taken as they are.
    """

    kind: Kind
    labels: tuple[str, ...]
    vocabulary: Mapping[str, int]
    weights: Floats
    bias: Floats
    idf: Floats

    @classmethod
    def fit(cls, kind: Kind, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Fit on texts and their labels; of the classes, those that occur.

        Raises:
            MissingDependency: scikit-learn is not installed.
        """
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
            from sklearn.linear_model import LogisticRegression
            from sklearn.naive_bayes import MultinomialNB
        except ImportError:
            raise MissingDependency(
                "The floors need scikit-learn.", hint="Type `pip install 'gptflow[train]'`."
            ) from None
        if kind == "naive_bayes":
            counter = CountVectorizer(analyzer=terms)
            counts = counter.fit_transform(texts)
            bayes = MultinomialNB(alpha=SMOOTHING).fit(counts, labels)
            classes, idf = bayes.classes_, np.empty(0)
            weights, bias = bayes.feature_log_prob_.T, bayes.class_log_prior_
        else:
            # Terms that occur once are most of the terms, and little of the accuracy.
            counter = CountVectorizer(analyzer=_marked, min_df=2 if len(texts) >= _MANY else 1)
            counts = counter.fit_transform(texts)
            tfidf = TfidfTransformer(sublinear_tf=True)
            fitted = LogisticRegression(C=PENALTY, max_iter=100, tol=1e-3)
            with warnings.catch_warnings():
                # A hundred steps are enough for a floor.
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted.fit(tfidf.fit_transform(counts), labels)
            classes, idf = fitted.classes_, tfidf.idf_
            weights, bias = fitted.coef_.T, fitted.intercept_
            if len(classes) == 2:  # of two classes, only the second has a column
                weights = np.hstack([np.zeros_like(weights), weights])
                bias = np.concatenate([np.zeros_like(bias), bias])
        return cls(
            kind=kind,
            labels=tuple(str(label) for label in classes),
            vocabulary={term: int(row) for term, row in counter.vocabulary_.items()},
            weights=np.ascontiguousarray(weights, dtype=np.float64),
            bias=np.asarray(bias, dtype=np.float64),
            idf=np.asarray(idf, dtype=np.float64),
        )

    @property
    def nbytes(self) -> int:
        """That its numbers take in memory."""
        return self.weights.nbytes + self.bias.nbytes + self.idf.nbytes

    def trimmed(self, most: int) -> Self:
        """The same with so many terms at most: those that tell labels apart the best.

        A term that is left out counts for nothing, like one that was never seen.
        """
        if len(self.vocabulary) <= most:
            return self
        spread = np.ptp(self.weights, axis=1) * (self.idf if len(self.idf) else 1.0)
        kept = np.sort(np.argsort(-spread, kind="stable")[:most])
        places = {int(old): new for new, old in enumerate(kept)}
        return dataclasses.replace(
            self,
            vocabulary={t: places[row] for t, row in self.vocabulary.items() if row in places},
            weights=self.weights[kept],
            idf=self.idf[kept] if len(self.idf) else self.idf,
        )

    def rounded(self, most_bytes: int) -> Self:
        """As it is read from files in half precision that take so many bytes at most."""
        small, most = self, len(self.vocabulary)
        while most and (size := sum(map(len, small.files(np.float16)))) > most_bytes:
            most = max(most * most_bytes // size - 1, 0)
            small = small.trimmed(most)
        return self.parse(*small.files(np.float16), name="memory")

    def logits(self, text: str, labels: Sequence[str]) -> list[float]:
        """One per label, in this order; a label that never occurred is as good as impossible."""
        own = dict(zip(self.labels, self._logits(text).tolist(), strict=True))
        return [own.get(label, _IMPOSSIBLE) for label in labels]

    def log_probs(self, text: str, labels: Sequence[str]) -> list[float]:
        """One per label, in this order; of one that is next to impossible, a bound."""
        logits = np.array(self.logits(text, labels))
        top = logits.max()
        found = logits - top - np.log(np.exp(logits - top).sum())
        bounded: list[float] = np.maximum(found, _UNLIKELY).tolist()
        return bounded

    def probs(self, texts: Sequence[str]) -> Floats:
        """`[texts, labels]`; terms that were not seen in training count for nothing."""
        logits = np.stack([self._logits(text) for text in texts]) if texts else np.empty((0, 1))
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: Floats = odds / odds.sum(axis=1, keepdims=True)
        return softmax

    def _logits(self, text: str) -> Floats:
        cut = terms if self.kind == "naive_bayes" else _marked
        counted = Counter(
            row for term in cut(text) if (row := self.vocabulary.get(term)) is not None
        )
        if not counted:
            return self.bias
        rows = np.fromiter(counted, dtype=np.intp, count=len(counted))
        counts = np.fromiter(counted.values(), dtype=np.float64, count=len(counted))
        if len(self.idf):
            counts = (1 + np.log(counts)) * self.idf[rows]
            counts /= np.linalg.norm(counts)
        logits: Floats = counts @ self.weights[rows] + self.bias
        return logits

    def files(self, dtype: type[np.floating[Any]] = np.float32) -> tuple[bytes, bytes]:
        """What `parse` reads: the terms as JSON, the numbers as safetensors."""
        from safetensors.numpy import save

        described: dict[str, Any] = {
            "kind": self.kind,
            "labels": self.labels,
            "terms": sorted(self.vocabulary, key=self.vocabulary.__getitem__),
        }
        tensors = {
            name: np.ascontiguousarray(getattr(self, name), dtype=dtype)
            for name in ("weights", "bias", "idf")
        }
        return json.dumps(described, ensure_ascii=False).encode(), save(tensors)

    def save(self, folder: Path) -> None:
        """Write `terms.json` and `floor.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip((TERMS, WEIGHTS), self.files(), strict=True):
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            AdapterCorrupt: a file is missing, or does not fit the other.
        """
        try:
            terms, weights = (folder / TERMS).read_bytes(), (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise AdapterCorrupt(
                f"The floor in {folder} cannot be read: {error}.", hint="Train the task again."
            ) from None
        return cls.parse(terms, weights, name=str(folder))

    @classmethod
    def parse(cls, terms: bytes, numbers: bytes, *, name: str) -> Self:
        """Read what `files` gave.

        Raises:
            AdapterCorrupt: it is malformed, or one does not fit the other.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            described = json.loads(terms)
            tensors = load(numbers)
            weights, bias, idf = (
                tensors[name].astype(np.float64) for name in ("weights", "bias", "idf")
            )
            found = cls(
                kind=described["kind"],
                labels=tuple(described["labels"]),
                vocabulary={term: row for row, term in enumerate(described["terms"])},
                weights=weights,
                bias=bias,
                idf=idf,
            )
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise AdapterCorrupt(
                f"The floor in {name} cannot be read: {error}.", hint="Train the task again."
            ) from None
        shape = (len(found.vocabulary), len(found.labels))
        fits = weights.shape == shape and bias.shape == shape[1:] and len(idf) in (0, shape[0])
        if found.kind not in ("naive_bayes", "tfidf_logistic") or not fits:
            raise AdapterCorrupt(
                f"The floor in {name} has weights of another shape than its terms and labels.",
                hint="Train the task again.",
            )
        return found


def _marked(text: str) -> list[str]:
    return terms(text, marks=True)
