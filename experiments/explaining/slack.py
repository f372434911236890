"""How much of a request's deadline was left at each moment, and the decision at which it was lost.

The slack at a time is the deadline, less that time, less what the request would still take if it were served alone
from then on (`servetwin.experiments.explaining.alone`). The decision at which it was lost is the last one before
which the slack was not negative and after which it was: from its end on, no schedule could meet the deadline, not
even one that serves nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from servetwin.core import slo

from .alone import TokensAlone
from .causes import Part
from .visits import Visit


@dataclass(frozen=True)
class Slack:
    """*seconds* left at a time (in seconds since the run began), for *what*: the deadline, a token, a limit."""

    at: float
    seconds: float
    what: str

    @property
    def lost(self) -> bool:
        return self.seconds < -slo.slack(self.at)


@dataclass(frozen=True)
class Lost:
    """The *part* in which a request was lost, and the slack *before* and *after* it. Without *part* there was none
    when the request came, which *before* and *after* tell alike."""

    part: Part | None
    before: Slack
    after: Slack


def lost_at(start: Slack, parts: Sequence[Part], after: Sequence[Slack]) -> Lost | None:
    """Where a request was lost, whose slack was *start* before the *parts* and then what *after* says of each; None
    if there was slack to the end."""
    found = [start, *after]
    last = max((i for i, s in enumerate(found) if not s.lost), default=-1)
    if last == len(found) - 1:
        return None
    if last < 0:
        return Lost(None, start, start)
    return Lost(parts[last], found[last], found[last + 1])


def of_deadline(
    deadline: float, arrival: float, parts: Sequence[Part], left: Callable[[Part | None], float]
) -> tuple[Slack, list[Slack]]:
    """The slack before a deadline for the whole request, when it came and after each of its *parts*; *left* gives
    what it would still take alone after a part, or (None) in all."""

    def at(when: float, part: Part | None) -> Slack:
        return Slack(when, deadline - when - left(part), "the deadline")

    return at(arrival, None), [at(part.end, part) for part in parts]


class TokenSlack:
    """The slack of the tokens of a *visit* to a language model, whose record says what they are promised.

    Of a request that did not finish, the next token counts, since nobody knows how many would have come; where only
    the last counts, or the mean gap, as many as it may generate, with which it had the most room.
    """

    def __init__(self, visit: Visit, alone: TokensAlone) -> None:
        stay = visit.stay
        self.alone, self.prompt = alone, int(stay["prompt"])
        self.generated = int(stay.get("generated", 0))
        self.whole = self.generated if visit.finished else int(stay["limit"])
        self.limits: Mapping[str, float] | None = stay.get("limits")
        self.sent = float(stay.get("sent", 0.0))
        self.decoded = alone.decoded(self.whole)
        self.known = self.generated if visit.finished else self.generated + 1
        self.best: np.ndarray | None = None
        if "due" in stay:
            first, each, more = stay["due"]
            steps = np.arange(self.whole, dtype=float)
            self.due = np.concatenate([[inf], first + steps * each + steps * (steps + 1.0) / 2.0 * more])
            counts = np.zeros(self.whole + 1, dtype=bool)
            counts[-1 if stay.get("meets") == "last" else slice(1, self.known + 1)] = True
            self.counts = counts
            room = np.where(counts, self.due - self.decoded[: self.whole + 1], inf)
            self.best = np.minimum.accumulate(room[::-1])[::-1]  # the least from each token on
        self.first: float | None = stay.get("first_token")
        self.times: list[float] = []
        self.past: list[tuple[float, str]] = []

    def start(self, at: float) -> Slack:
        """When the request has come."""
        return self._slack(at, 0, 0)

    def after(self, part: Part) -> Slack:
        """After *part* of the visit, in order."""
        generated, computed = part.tokens or (0, 0)
        if generated > len(self.times):
            self._came_out(part.end)
        return self._slack(part.end, generated, computed)

    def _came_out(self, at: float) -> None:
        number = len(self.times) + 1
        if number == 1 and self.first is not None:
            at = self.first  # the same, where the records of steps say for sure who was in them
        if self.best is not None and number <= self.whole and self.counts[number]:
            self.past.append((float(self.due[number]) - at, f"token {number}"))
        if self.limits is not None:
            if number == 1 and "ttft" in self.limits:
                self.past.append((self.sent + self.limits["ttft"] - at, "ttft"))
            if number > 1 and "itl" in self.limits:
                self.past.append((self.limits["itl"] - (at - self.times[-1]), "itl"))
            if number == self.whole and "e2el" in self.limits:
                self.past.append((self.sent + self.limits["e2el"] - at, "e2el"))
            if number == self.whole > 1 and "tpot" in self.limits:
                self.past.append((self.limits["tpot"] * (number - 1) - (at - self.times[0]), "tpot"))
        self.times.append(at)
        self.past = [min(self.past)] if self.past else []

    def _slack(self, at: float, generated: int, computed: int) -> Slack:
        """With so many tokens out and so many computed."""
        pending = self.prompt + generated - computed
        decoding = generated > 0 and pending <= 1 and computed >= self.prompt
        first = 0.0 if decoding else self.alone.prefill(pending)  # until the token comes from which on it decodes
        base = generated if decoding else generated + 1
        found = list(self.past)
        if generated < self.whole:
            begins = at + first - float(self.decoded[min(base, self.whole)])
            if self.best is not None:
                room = float(self.best[generated + 1])
                number = generated + 1 + int(np.argmin(self._room(generated + 1)))
                found.append((room - begins, f"token {number}"))
            elif self.limits is not None:
                found += self._limits(self.limits, at, first, begins, generated)
        seconds, what = min(found, default=(inf, "nothing"))
        return Slack(at, seconds, what)

    def _room(self, token: int) -> np.ndarray:
        until = self.whole + 1
        return np.where(self.counts[token:until], self.due[token:until] - self.decoded[token:until], inf)

    def _limits(
        self, limits: Mapping[str, float], at: float, first: float, begins: float, generated: int
    ) -> list[tuple[float, str]]:
        """By each limit; token j comes at ``begins + decoded[j]`` if served alone."""
        found = []
        if "e2el" in limits:
            found.append((self.sent + limits["e2el"] - (begins + float(self.decoded[self.known])), "e2el"))
        if not generated and "ttft" in limits:
            found.append((self.sent + limits["ttft"] - (at + first), "ttft"))
        if "tpot" in limits and self.whole > 1:
            one = self.times[0] if self.times else at + first
            last = begins + float(self.decoded[self.whole])
            found.append((limits["tpot"] * (self.whole - 1) - (last - one), "tpot"))
        if "itl" in limits and generated:
            following = begins + float(self.decoded[generated + 1])
            found.append((limits["itl"] - (following - self.times[-1]), "itl"))
        return found


def judged(visit: Visit) -> bool:
    """Whether the record of *visit* says what its tokens are promised."""
    stay: Mapping[str, Any] = visit.stay
    return "due" in stay or "limits" in stay
