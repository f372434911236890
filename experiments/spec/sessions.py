"""What an experiment file says of requests that are sent when others have ended: sessions, and closed loops.

Times are in seconds. See docs/guides/sessions.md.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field
from pydantic_core import PydanticCustomError

from .keys.field_types import Count, NotNegative, PositiveWait, Strict, Wait


class ConstantSeconds(Strict):
    """The same every time."""

    draw: Literal["constant"]
    seconds: Wait


class ExponentialSeconds(Strict):
    """Exponentially distributed, *mean* seconds on average."""

    draw: Literal["exponential"]
    mean: PositiveWait


class UniformSeconds(Strict):
    """Anything from *low* to *high*, equally likely."""

    draw: Literal["uniform"]
    low: Wait
    high: PositiveWait


class LognormalSeconds(Strict):
    """Lognormal with this *median* and 90th percentile *p90*, and cut to *high*."""

    draw: Literal["lognormal"]
    median: PositiveWait
    p90: PositiveWait
    high: PositiveWait


SecondsDraw = Annotated[
    ConstantSeconds | ExponentialSeconds | UniformSeconds | LognormalSeconds, Discriminator("draw")
]


#: Where times are drawn: what users, tools and clients wait for.
WAITS = (
    ("workload", "sessions", "think"),
    ("workload", "sessions", "tools", "seconds"),
    ("workload", "arrivals", "think"),
)


class ConstantTurns(Strict):
    """The same for every session."""

    draw: Literal["constant"]
    turns: Count


class UniformTurns(Strict):
    """Any whole number from *low* to *high*, both included, equally likely."""

    draw: Literal["uniform"]
    low: Count
    high: Count


class ChoiceTurns(Strict):
    """One of *values*, with probabilities proportional to *weights* (equal if left out)."""

    draw: Literal["choice"]
    values: Annotated[list[Count], Field(min_length=1)]
    weights: list[NotNegative] | None = None


class GeometricTurns(Strict):
    """After each turn the session ends with the same probability, so that it has *mean* turns on average."""

    draw: Literal["geometric"]
    mean: Annotated[float, Field(ge=1, le=1e6)]


class TraceTurns(Strict):
    """What the trace file says: its columns ``session``, and ``delay``, the time from an answer to the next turn."""

    draw: Literal["trace"]


TurnsDraw = Annotated[ConstantTurns | UniformTurns | ChoiceTurns | GeometricTurns | TraceTurns, Discriminator("draw")]


class ToolCalls(Strict):
    """Before a *share* of the turns after the first a tool is called, which takes so many *seconds*, in place of the
    time to think."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    seconds: SecondsDraw


class SessionsSpec(Strict):
    """Requests are the *turns* of sessions: each is sent when the one before it has been answered and its user has
    had time to *think* (null: none), or a tool has been called (*tools*).

    At a language model the prompt of a turn is all that was said in the session before, answers too, and what the
    workload's lengths give for this turn; what they give as *prefix* stands before the first. *after_drop*: when a
    turn is dropped or fails, the session's remaining turns are never sent ("end"), or the next comes all the same,
    with as much of the answer in its prompt as was generated ("continue").
    """

    turns: TurnsDraw
    think: SecondsDraw | None = None
    tools: ToolCalls | None = None
    after_drop: Literal["end", "continue"] = "end"


def _no_rate(value: Any) -> None:
    if value is not None:
        right = "none: in a closed loop it follows from clients, think and how fast they are answered"
        raise PydanticCustomError("no_rate", right)


class ClosedLoop(Strict):
    """A closed loop: each of *clients* clients sends a request (with sessions: all turns of one), and the next when
    that has ended and it has had time to *think* (null: none), until all have been sent.

    Their first requests are spread evenly over *ramp* seconds. There is no *rate*.
    """

    process: Literal["closed"]
    clients: Count
    think: SecondsDraw | None = None
    ramp: Wait = 0.0
    rate: Annotated[None, BeforeValidator(_no_rate)] = None
