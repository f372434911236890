"""The schedulers of the NeuStream artifact, written down once more from the description of what its code does.

Plain and slow, and in its own terms (queues of entries, a tracker, threads), so that the policies can be held against
them decision by decision. Times are whatever the caller says they are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from queue import PriorityQueue


@dataclass
class Job:
    id: int
    deadline: float
    steps: int
    left: int = 0
    waits: int = 0

    def __post_init__(self) -> None:
        self.left = self.steps


class Entry:
    """In a queue; compared by its key only, which is fixed when it is made."""

    def __init__(self, key: float, job: Job) -> None:
        self.key = key
        self.job = job

    def __lt__(self, other: Entry) -> bool:
        return self.key < other.key


class NeuStreamWorker:
    """The looped stage's worker: *step* is an iteration's time alone, *tail* what follows it."""

    def __init__(self, bound: int, step: float, tail: float, front: bool) -> None:
        self.bound, self.step, self.tail, self.front = bound, step, tail, front
        self.high: PriorityQueue[Entry] = PriorityQueue()
        self.low: PriorityQueue[Entry] = PriorityQueue()
        self.batch: list[Entry] = []
        self.clock = 1.7e9  # Unix time: far above any count of waits

    def drain(self, job: Job, now: float) -> bool:
        if job.deadline < now + job.steps * self.step + self.tail:
            return False
        self.clock += 1
        self.high.put(Entry(self.clock, job))
        return True

    def round(self, now: float) -> tuple[list[int], list[int]]:
        """Scatter, expire, form; gives the batch and what was dropped."""
        for entry in self.batch:
            if entry.job.left:
                (self.high if self.front or entry.job.waits == 0 else self.low).put(entry)
        dropped = []
        for queue in (self.high, self.low):
            valid = []
            while not queue.empty():
                entry = queue.get()
                if entry.job.deadline - now <= entry.job.left * self.step + self.tail:
                    dropped.append(entry.job.id)
                else:
                    valid.append(entry)
            for entry in valid:
                queue.put(entry)
        self.batch = []
        while not self.high.empty() and len(self.batch) < self.bound:
            self.batch.append(self.high.get())
        while not self.high.empty():
            job = self.high.get().job
            job.waits += 1
            self.low.put(Entry(job.waits, job))
        while not self.low.empty() and len(self.batch) < self.bound:
            self.batch.append(self.low.get())
        still = []
        while not self.low.empty():
            job = self.low.get().job
            job.waits += 1
            still.append(job)
        for job in still:
            self.low.put(Entry(job.waits, job))
        return [e.job.id for e in self.batch], dropped

    def computed(self) -> None:
        for entry in self.batch:
            entry.job.left -= 1


class Tracker:
    """Believes in expected durations, hears of completions, and gives up on a batch that is overdue."""

    def __init__(self, lag: float = 0.01, future: float = 0.001) -> None:
        self.lag, self.future = lag, future
        self.begin = 0.0
        self.outstanding: deque[float] = deque()

    def add(self, duration: float, now: float) -> None:
        if not self.outstanding:
            self.begin = max(now, self.begin)
        self.outstanding.append(duration)

    def success(self, now: float) -> None:
        self.outstanding.popleft()
        self.begin = now

    def available(self, now: float) -> float:
        begin = self.begin
        if self.outstanding and begin + self.outstanding[0] + self.lag < now:
            begin = now - self.lag - self.outstanding[0]
        return max(begin + sum(self.outstanding), now + self.future)


class ClockworkController:
    """The controller of DiT and Palette: *duration* gives the time of a batch by (steps, size), up to *most*."""

    def __init__(
        self, duration, most: int, classes: range, ahead: float = 0.01, tracker: Tracker | None = None
    ) -> None:
        self.duration, self.most, self.ahead = duration, most, ahead
        self.queues = {s: {n: deque() for n in range(1, most + 1)} for s in classes}
        self.tracker = tracker or Tracker()

    def pull(self, job: Job) -> None:
        for queue in self.queues[job.steps].values():
            queue.append(job)

    def strategies_of(self, steps: int, most: int) -> list[tuple[int, int, float]]:
        found = []
        for n in range(self.most, 0, -1):
            queue = self.queues[steps][n]
            if n <= most and len(queue) >= n:
                found.append((steps, n, queue[0].deadline - self.duration(steps, n)))
        return found

    def schedule(self, now: float) -> list[int]:
        """One pass of the controller: the batch that it sends, if any."""
        strategies = [s for steps in self.queues for s in self.strategies_of(steps, self.most)]
        while strategies:
            free = self.tracker.available(now)
            if now + self.ahead < free:
                break
            strategies.sort(key=lambda s: s[2], reverse=True)
            steps, n, _ = strategies.pop()
            strategies = [s for s in strategies if s[0] != steps]
            batch = self.dequeue(free, steps, n)
            if batch:
                self.tracker.add(self.duration(steps, len(batch)), now)
                return [job.id for job in batch]
            strategies += self.strategies_of(steps, n - 1)
        return []

    def dequeue(self, free: float, steps: int, least: int) -> list[Job]:
        queues = self.queues[steps]
        for n, queue in queues.items():
            while queue and queue[0].deadline < free + self.duration(steps, n):
                queue.popleft()
        k = 1
        while k < len(queues) and len(queues[k + 1]) >= k + 1:
            k += 1
        if len(queues[k]) < k or k < least:
            return []
        batch = [queues[k].popleft() for _ in range(k)]
        for queue in queues.values():
            while queue and queue[0].id <= batch[-1].id:
                queue.popleft()
        return batch


class ClockworkByTable:
    """The controller of Stable Diffusion, whose helper threads are asked as often as it is."""

    def __init__(self, duration, most: int, classes: range) -> None:
        self.duration = duration
        self.lists = {s: {n: [] for n in range(1, most + 1)} for s in classes}
        self.busy_until = -1e9

    def pull(self, job: Job) -> None:
        for waiting in self.lists[job.steps].values():
            waiting.append(job)

    def turn(self, now: float) -> list[int]:
        if now < self.busy_until - 0.005:
            return []
        candidates = []
        for s, lists in self.lists.items():
            for n, waiting in lists.items():
                waiting[:] = self.still_feasible(waiting, now + self.duration(s, n))
                if waiting:
                    candidates.append((waiting[0].deadline - self.duration(s, n), s, n))
        for latest, s, n in sorted(candidates):
            if now <= latest and len(self.lists[s][n]) == n:
                batch = list(self.lists[s][n])
                for waiting in self.lists[s].values():
                    waiting[:] = [job for job in waiting if job not in batch]
                self.busy_until = now + self.duration(s, n)
                return [job.id for job in batch]
        return []

    @staticmethod
    def still_feasible(waiting: list[Job], end: float) -> list[Job]:
        return [job for job in waiting if job.deadline >= end]
