"""What `recommend.rank` takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gptflow.task import Input, Output, Text
from gptflow_recommendation_scoring import defaults
from gptflow_recommendation_scoring.blend import Blend
from gptflow_recommendation_scoring.defaults import EventKind

Strategy = Literal["interest", "preselected", "without_model", "cold_user"]
DropReason = Literal["seen", "duplicate", "category_cap"]


def _in_utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


Time = Annotated[datetime, AfterValidator(_in_utc)]
"""ISO 8601 or Unix seconds; UTC where it names no zone."""

Id = Annotated[Text, Field(max_length=256)]
Title = Annotated[Text, Field(max_length=20_000)]
ItemText = Annotated[str, Field(max_length=20_000)]


class Event(Input):
    """Something the user did with an item."""

    item_id: Id
    text: ItemText = ""
    event: EventKind = "view"
    ts: Time | None = Field(None, description="when; without it, the event counts as just now")


class User(Input):
    id: Id
    history: tuple[Event, ...] = Field((), max_length=10_000, description="oldest first")
    profile: str = Field("", max_length=2_000, description="the user's interests in a few words")


class Candidate(Input):
    item_id: Id
    text: ItemText = Field("", description="title and short description; the model reads it")
    category: str | None = None
    features: dict[Id, FiniteFloat | None] = Field({}, max_length=64)

    @field_validator("features")
    @classmethod
    def _names_are_free(cls, features: dict[str, float | None]) -> dict[str, float | None]:
        for name in (defaults.INTEREST, defaults.SIMILARITY):
            if name in features:
                raise ValueError(f"{name!r} is computed here and cannot be given")
        return features


class RankInput(Input):
    user: User
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=5_000)
    k: int = Field(10, ge=1, le=1_000, description="how many items to return at most")
    weights: dict[str, FiniteFloat] = Field(
        {}, description="replaces the default weights of the signals that it names"
    )
    blend: Blend | None = Field(
        None, description="fitted weights of raw signals, in place of `weights`; see the README"
    )
    event_weights: dict[EventKind, Annotated[float, Field(ge=0, le=1_000)]] = Field(
        {}, description="replaces the default weights of the kinds that it names"
    )
    half_life_days: float = Field(defaults.HALF_LIFE_DAYS, gt=0, le=36_500)
    diversity: float = Field(
        defaults.DIVERSITY, ge=0, le=1, description="0 ranks by score alone; 1 by difference alone"
    )
    category_cap: int | None = Field(None, ge=1, description="most items of one category")
    drop_seen: bool = Field(True, description="False where people buy the same things again")
    max_model_candidates: int = Field(defaults.MODEL_CANDIDATES, ge=0, le=500)
    judge: Literal["likelihood", "yes_no", "trained"] = Field(
        "likelihood", description="how the model is asked for its interest; see the README"
    )
    now: Time | None = Field(None, description="by default the time at which the job runs")

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        raise PydanticCustomError(
            "recommend_input",
            "a bare string is neither a user nor candidates; give "
            '{"user": {"id": ..., "history": [...]}, "candidates": [...]}',
        )

    @field_validator("weights")
    @classmethod
    def _interest_counts_for(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights.get(defaults.INTEREST, 0.0) < 0:
            raise ValueError("the weight of 'interest' is negative; 0 leaves the model out")
        return weights

    @model_validator(mode="after")
    def _weighed_once(self) -> Self:
        if self.blend is not None and self.weights:
            raise ValueError("`blend` and `weights` exclude each other")
        return self


class Interest(Output):
    """What the model makes of one item.

    Attributes:
        margin: how much the history speaks for the item, in nats; None where the model did not
            read it.
        p: the logistic of the margin. An order, not a frequency, as `calibrated` says.
    """

    margin: float | None = None
    p: float | None = None
    calibrated: Literal[False] = False


class RankedItem(Output):
    """One recommended item.

    Attributes:
        score: the sum of `contributions`.
        p: the probability that the user takes it, where a `blend` was given; else null.
        contributions: per signal, its weight times its value in -1..1; of a `blend`, times its
            distance from the mean.
        missing: signals in use that are not known of this item. Each contributes 0, but for the
            interest of an item that preselection left out, which takes the least.
        cold: it has no text, or none of the features in use.
        explanation: the contributions in words, and what in the history is nearest.
    """

    item_id: str
    rank: int
    score: float
    p: float | None = None
    interest: Interest
    contributions: dict[str, float]
    missing: list[str]
    cold: bool
    explanation: str


class Dropped(Output):
    item_id: str
    reason: DropReason


class RankOutput(Output):
    """The ranking.

    Attributes:
        strategy: `interest`: the model read every item that has a text. `preselected`: only
            the best by all other signals. `without_model`: none. `cold_user`: nothing is
            known of the user, so only the given features count.
        model_read: how many candidates the model read.
        weights: of the signals in use.
    """

    items: list[RankedItem]
    dropped: list[Dropped]
    strategy: Strategy
    model_read: int
    weights: dict[str, float]
