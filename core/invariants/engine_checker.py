"""The invariants on LLM engines: what `checker.InvariantChecker` checks of them while a run goes.

At each step all running requests are counted anew, one by one; the engine's own sums must say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import broken
from ..llm.batch import TokenBatch
from ..llm.policy import All, Step, TokenView
from ..llm.request import Handed, TokenTask
from ..request import Outcome, Outputs, Task

if TYPE_CHECKING:
    from ..llm.serving.pools import PrefillEngine
    from ..llm.serving.speculative_engine import SpeculativeEngine
    from ..llm.serving.worker import TokenWorker


class EngineCheck:
    """What the checker knows of one engine. *asked* holds the true output lengths of live requests."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs]) -> None:
        self.worker = worker
        self.asked = asked
        self.view: TokenView = worker.view
        self.tokens: dict[TokenTask, int] = {}  # generated so far, by the checker's own count
        self.before: dict[TokenTask, int] = {}  # and after the step in flight

    def decided(self, step: Step) -> None:
        """A policy speaks of tasks that are there, of each in one way."""
        view, name = self.view, self.view.name
        gone = {*step.drop, *step.preempt}
        if len(gone) < len(step.drop) + len(step.preempt):
            raise broken(4, f"the policy of {name} drops or preempts a task twice")
        some = () if isinstance(step.decode, All) else step.decode
        used = [*(task for task, _ in step.prefill), *some]
        if len(set(used)) < len(used) or gone & set(used):
            raise broken(4, f"the policy of {name} speaks of a task twice: {step}")
        for task in (*gone, *used):
            if task not in view.waiting and task not in view.running:
                raise broken(4, f"the policy of {name} speaks of {task}, which is not there")

    def started(self, batch: TokenBatch) -> None:
        """A step begins: its counts are those of the tasks, within what the engine allows."""
        view = self.view
        prefilling = {task for task, _, _ in batch.prefill}
        decoding = [t for t in view.running if t.decoding and t not in prefilling and not self.spent(t)]
        chosen = decoding if batch.chosen is None and batch.decode else list(batch.chosen or ())
        if batch.decode != len(chosen) or batch.context != sum(task.computed for task in chosen):
            raise broken(4, f"{batch} of {batch.context} tokens; counted: {[(t.id, t.computed) for t in chosen]}")
        if not batch.decode and not batch.prefill:
            raise broken(4, f"{batch} does nothing")
        tokens = batch.decode * view.limits.tokens_per_decode + sum(n for _, n, _ in batch.prefill)
        if tokens > view.max_batched_tokens and batch.prefill:
            raise broken(4, f"{batch} computes {tokens} tokens; the limit is {view.max_batched_tokens}")
        if len(view.running) > view.max_sequences:
            raise broken(4, f"{len(view.running)} requests run on {view.name}; the limit is {view.max_sequences}")
        self.before = {task: self.tokens.get(task, 0) for task in (*prefilling, *chosen)}
        for task in chosen:
            self.before[task] += batch.count
        for task, n, context in batch.prefill:
            if context + n == task.prompt + task.generated:
                self.before[task] += 1
        self.chosen = chosen

    def spent(self, task: TokenTask) -> bool:
        """Whether *task*, which runs, has its last token in flight."""
        return False

    def stopped(self, batch: TokenBatch) -> None:
        """The executor says that *batch* is done."""
        if not 1 <= batch.count <= max(1, batch.times):
            raise broken(7, f"{batch} ran {batch.count} times on end where {batch.times} were allowed")
        for task in self.chosen:
            self.before[task] += batch.count - 1
        self.tokens.update(self.before)

    def settled(self) -> None:
        """The engine has dealt with an event: invariant 6, and its sums are those of the tasks."""
        view = self.view
        held = self._held() - self._shared() + self._aside()
        if view.free_blocks < 0 or view.free_blocks + held != view.blocks:
            raise broken(6, f"{view.name}: {view.free_blocks} of {view.blocks} blocks are free, {held} are held")
        counts = len([t for t in view.running if t.ticks]), sum(t.computed for t in view.running if t.ticks)
        if counts != (view.decoding, view.context):
            raise broken(6, f"{view.name} counts {(view.decoding, view.context)} decoding and context, not {counts}")
        for task in view.running:
            if self.generated(task) != self.tokens.get(task, 0):
                raise broken(7, f"{task} counts {task.generated} tokens, but generated {self.tokens.get(task, 0)}")

    def cut_off(self, batch: TokenBatch) -> None:
        """*batch* was cut off by a fault; its *count* steps were over."""
        for task in self.chosen if batch.count else ():
            self.tokens[task] = self.tokens.get(task, 0) + batch.count

    def failed(self) -> None:
        """The engine has failed: invariant 15, no KV is left."""
        view = self.view
        if (view.free_blocks, view.decoding, view.context) != (view.blocks, 0, 0):
            raise broken(15, f"{view.name} has failed, and holds {view.blocks - view.free_blocks} blocks of KV")

    def lost(self, task: TokenTask) -> int:
        """The tokens of *task*, which was lost with this engine and is taken up elsewhere."""
        put_out = self.tokens.pop(task, 0)
        if task.generated != put_out:
            raise broken(7, f"{task} was lost with {task.generated} tokens; it generated {put_out}")
        return put_out

    def takes_up(self, task: TokenTask, tokens: int) -> None:
        """*task* is about to come, and its client has got so many *tokens*."""
        if task.generated != tokens or task.computed:
            raise broken(15, f"{task} takes up a visit of which {tokens} tokens were sent, and all KV is lost")
        self.tokens[task] = tokens

    def generated(self, task: TokenTask) -> int:
        """What *task*, which runs, says that it has generated."""
        return task.generated

    def _held(self) -> int:
        """Blocks of those who run."""
        return sum(self.view.blocks_for(task.computed) for task in self.view.running)

    def _others(self) -> Iterable[TokenTask]:
        """Those who hold blocks and do not run."""
        return ()

    def _aside(self) -> int:
        """Blocks that are held by others than those who run."""
        return 0

    def _shared(self) -> int:
        """How many of the blocks that running requests hold are counted more than once, since they share them; and
        the prefix cache, where there is one, knows the same of each."""
        tables = getattr(self.worker.engine, "tables", None)
        cache = self.view.cache
        if tables is None or cache is None:
            return 0
        users = Counter(block for table in tables.values() for block in table)
        if tables.keys() != {*self.view.running, *self._others()}:
            raise broken(6, f"{self.view.name} holds blocks of others than those who run")
        line = [*cache.line]
        if any(block.refs for block in line) or any(block.refs != count for block, count in users.items()):
            raise broken(6, f"{self.view.name} counts other users of its blocks than there are")
        known = {block for copies in cache.cached.values() for block in copies}
        if known != {*users, *(block for block in line if block.key is not None)}:
            raise broken(6, f"{self.view.name} does not find just the blocks that it has")
        if sum(block.count for block in line) != cache.free:
            raise broken(6, f"{self.view.name}: {cache.free} blocks are free, {len(line)} stand in line")
        return users.total() - len(users)

    def ended(self, task: TokenTask) -> None:
        """A request has ended, with this visit."""
        put_out, asked = self.put_out(task), self.asked_of(task)
        finished = task.finished is not None
        if task.generated != put_out or put_out > asked or (finished and put_out != asked):
            raise broken(7, f"{task} ended with {task.generated} tokens; it generated {put_out} of {asked}")
        if task.request.outcome in (Outcome.MET, Outcome.LATE) and not finished:
            raise broken(7, f"{task} never finished, but its request did")
        first = task.first_token
        if (first is None) != (put_out == 0) or (
            first is not None and (task.started is None or first < task.started)
        ):
            raise broken(2, f"{task} was started at {task.started!r}, its first token came at {first!r}")

    def put_out(self, task: TokenTask) -> int:
        """The tokens of *task*, which is asked for for the last time."""
        return self.tokens.pop(task, 0)

    def asked_of(self, task: TokenTask) -> int:
        asked: Any = self.asked[task.id][task.stage.loop or task.stage.name]
        if not isinstance(asked, int):
            visits: list[Task] = [t for t in task.request.tasks if t.stage is task.stage]
            asked = asked[min(visits.index(task), len(asked) - 1)]
        return min(int(asked), task.limit)


class AheadCheck(EngineCheck):
    """Likewise, of an engine that decides ahead: steps count from when they were decided, and `put_out` does without
    those that are still in flight."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs]) -> None:
        super().__init__(worker, asked)
        self.flights: list[set[TokenTask]] = []  # who gets a token with each step in flight

    def started(self, batch: TokenBatch) -> None:
        super().started(batch)
        self.flights.append({task for task, n in self.before.items() if n > self.tokens.get(task, 0)})
        self.tokens.update(self.before)

    def spent(self, task: TokenTask) -> bool:
        return self.tokens.get(task, 0) == self.asked_of(task)

    def stopped(self, batch: TokenBatch) -> None:
        if batch.count != 1:
            raise broken(7, f"{batch} ran {batch.count} times on end, but it was decided ahead")
        self.flights.pop(0)

    def cut_off(self, batch: TokenBatch) -> None:
        """It counts as done since it was decided, until `failed`."""

    def failed(self) -> None:
        for task in (task for flight in self.flights for task in flight):
            if task in self.tokens:
                self.tokens[task] -= 1
        self.flights.clear()
        super().failed()

    def put_out(self, task: TokenTask) -> int:
        lost = sum(task in flight for flight in self.flights)
        for flight in self.flights:
            flight.discard(task)
        return super().put_out(task) - lost


class PipelineCheck(AheadCheck):
    """Likewise, of an engine with stages: who has a token in flight is in no other step."""

    def spent(self, task: TokenTask) -> bool:
        return any(task in flight for flight in self.flights)

    def started(self, batch: TokenBatch) -> None:
        if twice := [task for task in batch.tasks if self.spent(task)]:
            raise broken(4, f"{batch} has {twice[0]}, of which a token is in flight")
        super().started(batch)


class SpeculativeCheck(EngineCheck):
    """Likewise, of an engine that drafts tokens: a step gives each that decodes one token, and its drafts at most;
    memory is taken for all of them."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs]) -> None:
        super().__init__(worker, asked)
        self.gave: set[TokenTask] = set()  # who decoded in the step that is over, and has not been counted

    def _held(self) -> int:
        engine: SpeculativeEngine = self.worker.engine  # type: ignore[assignment]
        if engine.held.keys() != set(self.view.running):
            raise broken(6, f"{self.view.name} holds blocks of others than those who run")
        for task, blocks in engine.held.items():
            if blocks < self.view.blocks_for(task.computed):
                raise broken(6, f"{task} holds {blocks} blocks, for {task.computed} tokens")
        return sum(engine.held.values())

    def started(self, batch: TokenBatch) -> None:
        for task in [*self.gave]:
            self._count(task)
        super().started(batch)

    def settled(self) -> None:
        for task in [*self.gave]:
            self._count(task)
        super().settled()

    def put_out(self, task: TokenTask) -> int:
        self._count(task)
        return super().put_out(task)

    def _count(self, task: TokenTask) -> None:
        """Take what *task* has generated in the last step for its count, if it can be."""
        least = self.tokens.get(task, 0)
        if task in self.gave and least <= task.generated <= least + self.view.limits.num_speculative_tokens:
            self.tokens[task] = task.generated
        self.gave.discard(task)

    def stopped(self, batch: TokenBatch) -> None:
        super().stopped(batch)
        self.gave = set(self.chosen)


class PrefillCheck(EngineCheck):
    """Likewise, of an engine that hands its prompts over. *tokens* are counted for all engines of the stage together:
    a request is at one of them at a time."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs], tokens: dict[TokenTask, int]) -> None:
        super().__init__(worker, asked)
        self.tokens = tokens

    def started(self, batch: TokenBatch) -> None:
        super().started(batch)
        if batch.decode:
            raise broken(4, f"{batch} decodes, on an engine that prefills")
        assert self.worker.handover is not None
        if self.worker.handover.transfer.first_token == "decode":
            self.before = dict.fromkeys(self.before, 0)

    def _others(self) -> Iterable[TokenTask]:
        engine: PrefillEngine = self.worker.engine  # type: ignore[assignment]
        return engine.kept

    def _aside(self) -> int:
        return sum(self.view.blocks_for(task.prompt) for task in self._others())


class DecodeCheck(EngineCheck):
    """Likewise, of an engine that is handed prompts, of which none is computed or counted twice."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs], tokens: dict[TokenTask, int]) -> None:
        super().__init__(worker, asked)
        self.tokens = tokens

    def started(self, batch: TokenBatch) -> None:
        super().started(batch)
        for task, _, _ in batch.prefill:
            if not task.preemptions:
                raise broken(7, f"{batch} computes the prompt of {task}, which was computed elsewhere")
        for task in self.chosen:
            if isinstance(task, Handed) and (task.handed is None or task.handed > batch.start):
                raise broken(2, f"{task} decodes at {batch.start!r}, and its KV came at {task.handed!r}")

    def settled(self) -> None:
        super().settled()
        most, here = self.view.limits.max_sequences, len(self.view.running) + len(self.worker.coming)
        if here > most or self.view.max_sequences != most - len(self.worker.coming):
            raise broken(4, f"{here} requests run on {self.view.name}, or are sent there; the limit is {most}")

    def _others(self) -> Iterable[TokenTask]:
        coming: Iterable[TokenTask] = self.worker.coming  # type: ignore[assignment]
        return coming

    def _aside(self) -> int:
        return sum(self.view.blocks_for(task.prompt) for task in self._others())

    def ended(self, task: TokenTask) -> None:
        super().ended(task)
        assert isinstance(task, Handed)
        way = [at for at in (task.started, task.prefilled, task.sent, task.handed, task.finished) if at is not None]
        if way != sorted(way) or task.prefilled is None or (task.finished is not None and task.handed is None):
            raise broken(2, f"{task} was handed over at {way}")


class _ApartAhead(AheadCheck):
    """Of both, where steps are decided ahead: what is in flight of one who is preempted is lost."""

    def started(self, batch: TokenBatch) -> None:
        for task in batch.preempted:
            for flight in self.flights:
                if task in flight and self.drops(task):
                    flight.discard(task)
                    self.tokens[task] -= 1
        super().started(batch)

    def stopped(self, batch: TokenBatch) -> None:
        for task in self.flights[0]:
            if task in self.view.waiting and self.drops(task):  # preempted, and nothing has begun since
                self.tokens[task] -= 1
        super().stopped(batch)

    def drops(self, task: TokenTask) -> bool:
        """Whether *task* loses what is in flight of it, if it is preempted."""
        return True


class PrefillAheadCheck(_ApartAhead, PrefillCheck):
    """`PrefillCheck` of an engine that decides ahead."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs], tokens: dict[TokenTask, int]) -> None:
        PrefillCheck.__init__(self, worker, asked, tokens)
        self.flights = []

    def generated(self, task: TokenTask) -> int:
        assert self.worker.handover is not None
        # Where the first token comes from elsewhere the one in flight here is thrown away.
        return 0 if self.worker.handover.transfer.first_token == "decode" else task.generated


class DecodeAheadCheck(_ApartAhead, DecodeCheck):
    """`DecodeCheck` of an engine that decides ahead."""

    def __init__(self, worker: TokenWorker, asked: Mapping[int, Outputs], tokens: dict[TokenTask, int]) -> None:
        DecodeCheck.__init__(self, worker, asked, tokens)
        self.flights = []

    def drops(self, task: TokenTask) -> bool:
        needed = self.view.blocks_for(task.prompt + self.tokens[task])
        return needed <= self.view.blocks - self.view.watermark and not self.view.limits.headroom
