"""The parts of a visit to an engine of a language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .alone import TokensAlone
from .causes import Cause, Part, Ran
from .engine_memory import Memory
from .visits import Visit


@dataclass
class Progress:
    """How far a request has come: tokens *generated*, *computed* ones whose KV stands, the most that it ever had."""

    prompt: int
    generated: int = 0
    computed: int = 0
    most: int = 0
    begun: bool = False
    lost: bool = False

    @property
    def tokens(self) -> tuple[int, int]:
        return self.generated, self.computed

    @property
    def pending(self) -> int:
        return self.prompt + self.generated - self.computed

    def start_again(self, generated: int) -> None:
        """Its engine has failed: it has nothing left but the tokens *generated* so far."""
        self.generated, self.computed, self.begun, self.lost = generated, 0, False, False

    def take(self, one: Ran, number: int) -> bool:
        """Take part in *one*; whether most of what it computes had been computed before."""
        self.begun, self.lost = True, False
        piece = one.prefill.get(number)
        if piece is None:
            self.generated += 1
            self.computed = self.most = self.prompt + self.generated - 1
            return False
        count, before = piece
        again = 2 * (self.most - before) > count
        self.computed = before + count
        self.most = max(self.most, self.computed)
        if self.pending <= 0:
            self.generated += 1
        return again


def engine_time(
    visit: Visit,
    index: int,
    ran: Sequence[Ran],
    *,
    memory: Memory | None,
    alone: TokensAlone | None,
    at: Progress | None = None,
) -> Iterator[Part]:
    """The parts of *visit*, number *index* of its request, to an engine whose steps are *ran*.

    Without *memory* nothing is known of its blocks, and who lacks them counts as waiting in the queue. *at* is how
    far it has come elsewhere.
    """
    at = at or Progress(visit.stay["prompt"])
    now = visit.came
    for one in ran:
        if visit.request in one.preempted and at.begun and one.start >= visit.came:
            at.lost = True
            if memory is None or not memory.keeps:
                at.computed = 0
        if one.end <= now or one.start >= visit.until:
            continue
        if one.start > now:
            yield Part(index, Cause.HOST, now, one.start, tokens=at.tokens)
            now = one.start
        end = min(one.end, visit.until)
        own = visit.request in one.requests and one.start >= visit.came and end == one.end
        if own and one.cut:
            yield Part(index, Cause.FAILURE, now, end, one, True, tokens=at.tokens)
        elif own:
            yield _served(visit, index, one, now, at, alone)
        else:
            yield Part(index, _wait(visit, one, at, memory), now, end, one, tokens=at.tokens)
        now = end
    if now < visit.until:
        yield Part(index, Cause.HOST, now, visit.until, tokens=at.tokens)


def _served(visit: Visit, index: int, one: Ran, now: float, at: Progress, alone: TokensAlone | None) -> Part:
    context, piece = at.computed, one.prefill.get(visit.request)
    again = at.take(one, visit.request)
    seconds = None
    if alone is not None and not again:
        seconds = alone.decode(context) if piece is None else alone.prefill(piece[0])
    cause = Cause.RECOMPUTED if again else Cause.ALONE
    return Part(index, cause, now, one.end, one, True, seconds, tokens=at.tokens)


def _wait(visit: Visit, one: Ran, at: Progress, memory: Memory | None) -> Cause:
    """Why it was not in *one*."""
    if one.start < visit.came:
        return Cause.IN_FRONT
    if at.begun:
        return Cause.PREEMPTED if at.lost else Cause.STALLED
    if visit.admitted is None or one.start < visit.admitted:
        return Cause.JOINED_LATE
    return Cause.MEMORY if memory is not None and memory.lacks(at.pending, one.free) else Cause.QUEUE
