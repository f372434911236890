"""The sums that an LLM engine keeps of the requests that decode together: a step costs the same for few and many.

A tick of a common clock gives each of them a token (`TokenTask.generated` reads it), their context is a running sum,
how many need a new block at a tick is known by phase (computed tokens modulo the block size), and who puts out the
last token at which tick stands in a bucket of that tick.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappush
from typing import TYPE_CHECKING

from .answers import compared, written
from .tokens import Ticks, TokenTask

if TYPE_CHECKING:
    from .tokens import TokenView


#: What a task counts, and how it says so.
Counts = tuple["Ticks | None", int, int, "float | None", "float | None", int]
COUNTED = ("_ticks", "_generated", "_computed", "started", "first_token", "preemptions")
AS_IT_CAME: Counts = (None, 0, 0, None, None, 0)


class DecodeSums:
    """The sums for the engine of *view*; with *keep_times* also when each token comes out."""

    __slots__ = (
        "_bases", "_books", "_buckets", "_ends", "_first", "_joined", "_leaving", "_lengths", "_marks", "_phases", "_ticks",
        "_trim_at", "booked",
        "headroom", "keep_times", "size", "tick", "view",
    )  # fmt: skip

    def __init__(self, view: TokenView, *, keep_times: bool) -> None:
        self.view, self.keep_times = view, keep_times
        self.size, self.headroom = view.block_size, view.limits.headroom
        self._lengths: dict[TokenTask, int] = {}  # the true ones
        self._ticks = Ticks()
        self.tick = 0  # what they should count
        self._phases = [0] * self.size  # decoding tasks by (computed - ticks) modulo the block size
        self._buckets: dict[int, list[TokenTask]] = {}  # tick -> those that have put out all then
        self._leaving: list[int] = []  # the ticks of the buckets, a heap
        self._ends = array("d")  # of the last ticks, for `TokenTask.times`
        self._first, self._trim_at = 0, 8192  # the former: the tick that *ends* begins with
        self._joined: dict[TokenTask, int] = {}  # the tick after which each began to decode, with keep_times
        self._bases: dict[TokenTask, int] = {}  # the output tokens of each that decodes before the first tick
        self.booked = False  # whether what tasks say is kept here as well, where no policy can look
        self._marks: dict[TokenTask, tuple[float | None, float | None, int]] = {}  # what each of them says besides
        #: What each other task counts that is not as it came, by the engine's own books: what it said when the engine last
        #: wrote it.
        self._books: dict[TokenTask, Counts] = {}

    def _join(self, task: TokenTask) -> None:
        """*task* decodes with the others from now on."""
        view, tick = self.view, self._ticks.count
        computed, generated = task._computed, task._generated
        task._generated = base = generated - tick
        task._ticks = self._ticks
        self._bases[task] = base
        if self.booked:
            self._marks[task] = task.started, task.first_token, task.preemptions
            self._books.pop(task, None)
        view.decoding += 1
        view.context += computed
        self._phases[(computed - tick) % self.size] += 1
        last = tick + self._lengths[task] - generated
        if last in self._buckets:
            self._buckets[last].append(task)
        else:
            self._buckets[last] = [task]
            heappush(self._leaving, last)
        if self.keep_times:
            self._joined[task] = tick

    def _part(self, task: TokenTask) -> None:
        """*task* does not decode with the others any more; its counts are its own again."""
        view, tick = self.view, self._ticks.count
        base = self._bases.pop(task)
        if self.booked:
            self._check_decoding(task, base)
        task._generated = generated = base + tick
        task._computed = computed = task.prompt + generated - 1
        task._ticks = None
        view.decoding -= 1
        view.context -= computed
        self._phases[(computed - tick) % self.size] -= 1
        if self.keep_times:
            self._tell_times(task)
            del self._joined[task]

    def _check(self, task: TokenTask) -> None:
        """Raise `PolicyFault` if *task* does not count what the engine last wrote."""
        if not self.booked:
            return
        known = self._books.get(task, AS_IT_CAME)
        now = (task._ticks, task._generated, task._computed, task.started, task.first_token, task.preemptions)
        if now != known:
            names = list(COUNTED)
            for name in ("_ticks", "_generated", "_computed"):  # also by the names that a policy knows
                names[names.index(name)] = {"_ticks": "ticks", "_generated": "generated", "_computed": "computed"}[name]
            raise compared(self.policies(), f"task {task.id}", names, now, known)

    def _check_decoding(self, task: TokenTask, base: int) -> None:
        """Likewise, of one that decodes with the others."""
        known, now = self._marks.pop(task), (task.started, task.first_token, task.preemptions)
        if task._ticks is not self._ticks:
            raise written(self.policies(), f"generated or computed of task {task.id}", "_ticks", "generated", "computed")
        if task._generated != base or now != known:
            names = ("generated", *COUNTED[3:])
            raise compared(self.policies(), f"task {task.id}", names, (task._generated, *now), (base, *known))

    def _keep(self, task: TokenTask) -> None:
        """The engine has written what *task* counts."""
        if not self.booked:
            return
        self._books[task] = (
            task._ticks, task._generated, task._computed, task.started, task.first_token, task.preemptions
        )  # fmt: skip

    def _came_out(self, task: TokenTask, now: float) -> None:
        """The first token of *task* has come out."""
        if task in self._marks:
            self._marks[task] = self._marks[task][0], now, self._marks[task][2]
        elif task in self._books:
            self._books[task] = (*self._books[task][:4], now, self._books[task][5])

    def policies(self) -> list[object]:
        """Those that are shown the tasks."""
        return []

    def _tell_times(self, task: TokenTask) -> None:
        """Give *task*, which decodes with the others, the times of its tokens so far."""
        tick = self._ticks.count
        first, self._joined[task] = self._joined[task], tick
        task._times.extend(self._ends[first - self._first : tick - self._first])  # type: ignore[union-attr]

    def _blocks_of_a_step(self, chosen: Sequence[TokenTask] | None) -> int:
        """New blocks that a decode step takes."""
        if chosen is None:
            return self._phases[-self._ticks.count % self.size]
        return sum([task.computed % self.size == 0 for task in chosen])

    def _affordable(self, times: int) -> int:
        """For how many steps, up to *times*, all that decode can go on without anybody being preempted."""
        free, phases, size, tick = self.view.free_blocks - self.headroom, self._phases, self.size, self._ticks.count
        for done in range(times):
            free -= phases[-(tick + done) % size]
            if free < 0:
                return done
        return times

    def _trim(self) -> None:
        """Forget the ends of steps that no task needs any more."""
        first = min(self._joined.values(), default=self._ticks.count)
        del self._ends[: first - self._first]
        self._first = first
        self._trim_at = max(8192, 2 * len(self._ends))
