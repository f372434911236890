"""Engines of which some prefill and others decode (prefill and decode apart), each of any kind: with a prefix cache,
with adapters, with a step decided ahead.

Source of what happens: DistServe (Zhong et al., OSDI 2024, section 4.3: the decode side fetches KV when it has
room), Splitwise (Patel et al., ISCA 2024), and vLLM's KV connectors (0.27: ``v1/core/sched/scheduler.py``,
``distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py``), whose decode engine reserves blocks first. With
prefix caching, as there: where a prompt was computed its blocks stay in use until they have been sent, and can be
found by others all the while and after that; the engine that decodes has only those sent that its own cache does not
hold, and what came can be found there from then on.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from ...serving.worker import Loop
from ..batch import Piece, TokenBatch
from ..policy import Chunk
from ..prefix_cache import Block
from ..request import Adapted, CachingTask, Handed, HandedAdapterTask, HandedTask, TokenTask
from .adapter_engine import Adapting
from .async_engine import Flight, TokenEngineAhead
from .caching import Caching
from .engine import TokenEngine
from .handover import Handover
from .host import LLMWorker

# What each of the following is put before (`in_role`), for type checkers an engine itself.
if TYPE_CHECKING:
    _Base = TokenEngine
    _Ahead = TokenEngineAhead
    _Caching = Caching
    _Adapting = Adapting
else:
    _Base = _Ahead = _Caching = _Adapting = object


class PrefillEngine(_Base):
    """Computes prompts, and keeps their KV until it has been handed over. A request of a single token ends here,
    unless first tokens come from decode engines."""

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        assert worker.handover is not None
        self.handover: Handover = worker.handover
        self.kept: dict[Handed, None] = {}  # whose prompts stand and whose KV is needed; they do not run any more
        self.sending = 0  # prompts that are on their way from here

    @property
    def stands_still(self) -> bool:
        """Whether it sends, and computes nothing meanwhile."""
        return self.sending > 0 and not self.handover.transfer.overlap

    def turn(self, now: float, fresh: bool = False) -> None:
        if self.handover.transfer.overlap or not self.handover.standstill(self):
            super().turn(now, fresh)

    def _prefilled(self, pieces: Sequence[Piece], now: float) -> None:
        here = self.handover.transfer.first_token == "prefill"
        for piece in pieces:
            task: Any = piece[0]
            if task.base_computed < task.prompt or task.request.outcome is not None:
                self.keep_books(task)
                continue
            self._fruitless = 0
            if here:
                task.base_generated, task.first_token = 1, now
                if self.keep_times:
                    task.token_times.append(now)
                if self.lengths[task] == 1:
                    self.finish(task, now)
                    continue
            else:
                task.base_computed -= 1
            self._hand_over(task, now)

    def _hand_over(self, task: Handed, now: float) -> None:
        del self.view.running[task]
        self.kept[task] = None
        task.prefilled, task.prefilled_by = now, self.worker.place
        length = self.lengths.pop(task)
        if self.booked:
            self.check_out(task)
        self.handover.offer(task, length, self)

    def let_go(self, task: Handed) -> None:
        """The KV of *task* is not needed here any more."""
        del self.kept[task]
        self._frees(task)
        self.wake()

    def _frees(self, task: Handed) -> None:
        """The blocks of *task*, whose KV is needed no more, come free."""
        self.view.free_blocks += self.view.blocks_for(task.prompt)

    def wake(self) -> None:
        """Ask the policy again, unless it will be anyway."""
        if self.view.in_flight is None and not self.deciding and not self.loop.stopped:
            self.loop.call(self.worker)

    def withdraw(self, task: TokenTask, now: float) -> None:
        if task in self.kept:
            self.handover.release(task)
        else:
            super().withdraw(task, now)


class _PrefillCaching(_Caching):
    """With a prefix cache."""

    def _frees(self, task: Handed) -> None:
        self._catch_up()
        table = self.tables.pop(task)
        blocks, full = self.view.blocks_for(task.prompt), task.prompt // self.size
        freed = blocks - self.cache.give_back(
            table, unnamed=max(0, full - len(table)), partial=blocks - max(full, len(table))
        )
        self._known += freed
        self.view.free_blocks += freed


class _PrefillAhead(_Ahead):
    """With steps that are decided ahead: the token that a prompt gives is the last one here."""

    handover: Handover

    def _preempt(self, task: TokenTask) -> None:
        # What is in flight of it is dropped and computed anew, as in vLLM where KV has to be delivered
        # (`requires_kv_delivery`): the KV of a prompt that was about to be handed over is lost.
        self._revoke(task)
        super()._preempt(task)

    def _owes(self, flight: Flight, task: TokenTask) -> None:
        self.keep_books(task)
        flight.owed[task] = flight.leaving[task] = None

    def finish(self, task: TokenTask, now: float) -> None:
        here = self.handover.transfer.first_token == "prefill"
        if here and self.lengths[task] == 1:
            super().finish(task, now)
            return
        self._check(task)
        if not here:  # it is thrown away
            task.base_generated, task.first_token = 0, None
            task.base_computed -= 1
            cast("array[float]", task.token_times).pop()
        self._hand_over(task, now)  # type: ignore[attr-defined]


class DecodeEngine(_Base):
    """Decodes what others have prefilled.

    Who has been handed over waits as one that was swapped out does: one token is pending, and the KV before it
    stands elsewhere. Being admitted, it reserves its memory and has its KV sent here, which takes no step of this
    engine; then it decodes with the others. A place among the sequences that may run is taken meanwhile. Who is
    preempted here is computed anew here, prompt and tokens.
    """

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        assert worker.handover is not None
        self.handover: Handover = worker.handover
        self.seen = False  # requests have arrived when they came to the engine that prefilled them
        self.away: set[TokenTask] = set()  # whose KV is not here; those whose memory is reserved are on the wire
        self.here: list[Handed] = []  # whose KV has come while a step was in flight
        self.first_tokens: set[TokenTask] = set()  # those that decode without a token that has come out

    def take_over(self, task: Handed, length: int) -> None:
        """*task*, whose prompt stands elsewhere, goes on here."""
        self.lengths[task] = length
        task.worker = self.worker.place
        self._comes(task)
        self.keep_books(task)
        if self._outgrown(task):
            del self.lengths[task]
            if self.booked:
                self.check_out(task)
            self.handover.release(task)
            tokens = task.prompt + task.base_generated
            self.loop.fail(task.request, f"its {tokens} tokens do not fit into {self.view.name}")
            return
        self.away.add(task)
        self.worker.inbox.append(task)
        self._untaken += 1
        if self.view.in_flight is None and not self.deciding and not self.loop.stopped:
            if self.host:
                self._rest(0.0)
            else:
                self.loop.call(self.worker)

    def _comes(self, task: Handed) -> None:
        """*task* is here from now on, and has nothing to do with the engine that prefilled it but for its KV."""
        if not self.keep_times:
            task.token_times = None
        elif task.token_times is None:
            task.token_times = array("d", [] if task.first_token is None else [task.first_token])
        assert isinstance(task, CachingTask)
        task.cache_lookup, task.cache_serial, task.cache_seen = None, 0, -1

    def _wake(self) -> None:
        if self.view.in_flight is None and not self.deciding and not self.loop.stopped:
            self.loop.call(self.worker)

    def seconds_alone(self, request: Any, now: float) -> float:
        return self.view.solo(next(task for task in reversed(request.tasks) if task.stage is self.stage))

    def turn(self, now: float, fresh: bool = False) -> None:
        if self.here and self.view.in_flight is None:
            self._join_all()
        super().turn(now, fresh)

    # -- memory and the way here ------------------------------------------------------------------------------

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        pieces = super()._admit(prefill, chosen, decode, crowded, now)
        away = self.away
        kept = [piece for piece in pieces if piece[0] not in away] if away else pieces
        self.fetched = len(kept) < len(pieces)
        if self.fetched:
            for task, _, _ in pieces:
                if task in away:
                    self._fetch(cast("Handed", task))
        return kept

    def _fetch(self, task: Handed) -> None:
        """*task* has been admitted with the one token that it has pending: have what is before it sent."""
        view = self.view
        del view.running[task]
        self._reserved(task)
        view.max_sequences -= 1
        self.worker.coming[task] = None
        self.handover.fetch(task, self, task.prompt - (task.found or 0))

    def _reserved(self, task: Handed) -> None:
        """*task* computes nothing in the step that admitted it, and keeps memory for its prompt."""
        view = self.view
        view.free_blocks += view.blocks_for(task.base_computed) - view.blocks_for(task.prompt)
        task.base_computed -= 1
        if task.base_computed:
            self.swapped -= view.blocks_for(task.base_computed)

    def kv_came(self, task: Handed) -> None:
        """The KV of *task* is here."""
        self.here.append(task)
        if self.view.in_flight is None and not self.deciding:
            self._join_all()
            self._wake()

    def _join_all(self) -> None:
        """All whose KV is here decode from now on, if they may."""
        here, self.here = self.here, []
        for task in here:
            if not self._may_begin(task):
                self.here.append(task)
                continue
            del self.worker.coming[task]
            self.away.discard(task)
            self.view.max_sequences += 1
            self.view.running[task] = None
            if not task.base_generated:
                self.first_tokens.add(task)
            # (The block of a last token that is computed again is taken with its step.)
            self._arrived(task, self.view.blocks_for(task.prompt) - self.view.blocks_for(task.base_computed))
            self._join(task)

    def _may_begin(self, task: Handed) -> bool:
        """Whether *task*, whose KV is here, may decode beside those that run."""
        return True

    def _arrived(self, task: Handed, more: int) -> None:
        """The KV of *task* is here, and it is about to decode; *more* blocks were reserved than that takes."""
        self.view.free_blocks += more

    def _leave_wire(self, task: Handed) -> None:
        """*task*, whose request has ended, is not waited for any more."""
        del self.worker.coming[task]
        if task in self.here:
            self.here.remove(task)
        self.view.max_sequences += 1
        self._unreserve(task)
        self._visit_over(task)

    def _unreserve(self, task: Handed) -> None:
        """The memory that *task* was to have comes free."""
        self.view.free_blocks += self.view.blocks_for(task.prompt)

    def withdraw(self, task: TokenTask, now: float) -> None:
        if task in self.worker.coming:
            self._leave_wire(cast("Handed", task))
            return
        super().withdraw(task, now)
        if task in self.away:  # not taken in yet
            self.away.discard(task)
            self.handover.release(cast("Handed", task))

    # -- steps ----------------------------------------------------------------------------------------------

    def settle(self, batch: TokenBatch) -> float:
        now = super().settle(batch)
        if self.here:
            self._join_all()
        return now

    def _all_decode(self, repeat: Any, fresh: bool, now: float) -> bool:
        # When first tokens come out is to be known of each.
        return super()._all_decode(None if self.first_tokens else repeat, fresh, now)

    def _tick(self, batch: TokenBatch, now: float) -> None:
        if self.first_tokens:
            self._first_came(list(self.first_tokens), now)
        super()._tick(batch, now)

    def _advance(self, chosen: Sequence[TokenTask], now: float) -> None:
        if self.first_tokens:
            self._first_came([task for task in chosen if task in self.first_tokens], now)
        super()._advance(chosen, now)

    def _first_came(self, tasks: Sequence[TokenTask], now: float) -> None:
        self.first_tokens.difference_update(tasks)
        for task in tasks:
            task.first_token = now
            if self.booked:
                self._came_out(task, now)

    # -- ends ---------------------------------------------------------------------------------------------------

    def _release(self, task: TokenTask) -> None:
        self.first_tokens.discard(task)
        super()._release(task)

    def _visit_over(self, task: TokenTask) -> None:
        super()._visit_over(task)
        self.away.discard(task)
        self.handover.release(cast("Handed", task))
        self.handover.freed(self.stage)

    def finish(self, task: TokenTask, now: float) -> None:
        super().finish(task, now)
        self.handover.freed(self.stage)


class _DecodeCaching(_Caching):
    """With a prefix cache: what is found there is not sent."""

    away: set[TokenTask]

    def _comes(self, task: Handed) -> None:
        super()._comes(task)  # type: ignore[misc]
        assert isinstance(task, CachingTask)
        task.cache_lookup = self._lookup
        if task.cached_tokens is None:
            task.cached_tokens = 0  # where it was prefilled there was no cache

    def _begin(self, task: CachingTask, count: int, more: int, now: float) -> bool:
        if task not in self.away:
            return super()._begin(task, count, more, now)
        view, store = self.view, self.cache
        found = store.found(task)
        keys = store.keys(task, found // self.size)
        needed = view.blocks_for(task.base_computed + count) - len(keys)
        if store.free - needed < view.watermark + store.idle(keys):
            return False
        self.tables[task] = store.share(keys)
        store.take(view.blocks_for(task.prompt) - len(keys))
        cast("Handed", task).found = min(found, task.prompt)
        del view.waiting[task]
        view.running[task] = None
        return True

    def _reserved(self, task: Handed) -> None:
        pass  # as it was admitted

    def _arrived(self, task: Handed, more: int) -> None:
        assert isinstance(task, CachingTask)
        self._catch_up()
        super()._arrived(task, more)  # type: ignore[misc]
        self._catch_up()
        if more > 0:
            self.cache.give_back((), unnamed=0, partial=more)
            self._known += more
        self.cache.register(self.tables[task], task.prompt_content, task.prompt, task.prompt)

    def _unreserve(self, task: Handed) -> None:
        self._catch_up()
        table: Sequence[Block] = self.tables.pop(task)
        blocks = self.view.blocks_for(task.prompt)
        freed = blocks - self.cache.give_back(table, unnamed=0, partial=blocks - len(table))
        self._known += freed
        self.view.free_blocks += freed


class _DecodeAhead(_Ahead):
    """With steps that are decided ahead. As on the other side what is in flight of a preempted request is dropped
    (vLLM's connectors have both roles, ``kv_both``), unless it has become too long for the engine by that."""

    first_tokens: set[TokenTask]

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.firsts: dict[Flight, dict[TokenTask, None]] = {}  # whose first token comes with each step

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        first = self.first_tokens if chosen is None else self.first_tokens.intersection(chosen)
        firsts = dict.fromkeys(sorted(first, key=_number)) if decode else {}
        super()._launch(decode, context, pieces, chosen, now)
        if firsts:
            self.first_tokens.difference_update(firsts)
            self.firsts[self.flights[-1]] = firsts

    def settle(self, batch: TokenBatch) -> float:
        firsts = self.firsts.pop(self.flights[0], ())
        if firsts:
            now = self.loop.now()
            for task in firsts:
                task.first_token = now
                self._came_out(task, now)
        return super().settle(batch)

    def _preempt(self, task: TokenTask) -> None:
        fits = self.view.blocks_for(task.prompt + task.generated) <= self.view.blocks - self.view.watermark
        # (With headroom, which vLLM has without asynchronous scheduling only, one alone would lose it for ever.)
        if fits and not self.headroom:
            self._revoke(task)
        super()._preempt(task)

    def _revoke(self, task: TokenTask) -> None:
        for firsts in self.firsts.values():
            firsts.pop(task, None)
        super()._revoke(task)


class _DecodeAdapting(_Adapting):
    """With adapters. As in vLLM that of one whose KV is on its way is not among those of the requests that run; when
    it has come, its request waits until its adapter may be."""

    away: set[TokenTask]

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.view.away = self.away

    def _comes(self, task: Handed) -> None:
        super()._comes(task)  # type: ignore[misc]
        cast("Adapted", task).adapter = self.of_class.get(task.request.class_name)

    def _may_begin(self, task: Handed) -> bool:
        return not self._barred()(task)

    def _load(self, task: Adapted) -> None:
        if task not in self.away:
            super()._load(task)

    def _arrived(self, task: Handed, more: int) -> None:
        super()._arrived(task, more)  # type: ignore[misc]
        self._load(cast("Adapted", task))


def _number(task: TokenTask) -> int:
    return task.id


_made: dict[tuple[str, str], type[TokenEngine]] = {}


def in_role(role: Literal["prefill", "decode"], kind: type[TokenEngine]) -> type[TokenEngine]:
    """Engines of *kind* that do only what their *role* says."""
    if (role, kind.__name__) in _made:
        return _made[role, kind.__name__]
    parts: list[type] = [PrefillEngine] if role == "prefill" else [DecodeEngine]
    adapts = issubclass(kind, Adapting)
    if adapts and role == "decode":
        parts.insert(0, _DecodeAdapting)
    if issubclass(kind, Caching):
        parts.insert(0, _PrefillCaching if role == "prefill" else _DecodeCaching)
    if issubclass(kind, TokenEngineAhead):
        parts.insert(0, _PrefillAhead if role == "prefill" else _DecodeAhead)
    name = "".join(part.__name__.strip("_") for part in (*parts, kind))
    made = type(name, (*parts, kind), {"kind": HandedAdapterTask if adapts else HandedTask})
    return _made.setdefault((role, kind.__name__), made)
