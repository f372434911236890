"""Policies for language models: what one sees of an LLM engine, and says, once per engine step.

An LLM *stage* is one worker, an engine (one GPU or several that act as one), which prefills prompts and decodes
output tokens, each in steps over many requests. A `TokenPolicy` is handed a `TokenView` and answers with a `Step`;
the same object decides in the simulation and inside vLLM's scheduler. How many tokens a request will really generate
is nowhere in what it sees: only the declared *limit* is.

Words: the *context* of a request is the tokens whose keys and values (KV) stand in the engine's memory, which is kept
in *blocks* of `EngineLimits.block_size` tokens. A *prefill* computes tokens that are known already (a prompt; after a
preemption also the tokens that were generated before), whole or in *chunks*; its last token generates the next one. A
*decode* computes the token that came out last and generates one more. A step with both is *mixed*.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import BadInput
from ..pipeline import Stage
from ..policy import Decision, PolicyBase, Repeat, WorkerView
from ..request import Task
from .limits import EngineLimits
from .prefix_cache import Block, PrefixCache, Trial
from .request import CachingTask, TokenTask
from .slo import TokenSLO


class All:
    """The type of `ALL`."""

    def __repr__(self) -> str:
        return "ALL"


#: Every running request that is decoding.
ALL: Final = All()


#: Kinds of steps: all that can decode do, and nothing else happens; some prefill, and nothing else happens.
DECODES, PREFILLS = 1, 2
#: And of what may be none: something in it is false and no list, None say; looked at when it is carried out.
ODD = -1
NONE: Final[tuple[()]] = ()
LISTS: Final = frozenset((list, tuple))

#: What a step computes of which request: (task, tokens).
Chunk = tuple[TokenTask, int]


class Step(Decision):
    """What an engine does next.

    *prefill* holds (task, tokens) in order: waiting tasks to admit, and running ones that are partly computed; fewer
    tokens than are pending make a chunk. A task that waits with its KV on the host (after a swap) is brought back the
    same way, with the one token that it has pending. *decode* says which of the running tasks decode: `ALL`, or
    some, or none. *preempt* puts running tasks back to the head of the queue, *drop* gives tasks up for good; both
    come first. With nothing to compute the engine idles until something arrives, or until *idle_until* at the latest.
    *repeat* (decode steps only) is the policy's promise that it would decide the same again (`Repeat`). A step may be
    given again and again, but is not to be changed once it is made.

    *standing* (with *repeat*, where all that can decode do and nothing else happens) extends that promise to requests
    that arrive: True says that whenever the engine looks at its queue, the policy would first prefill those that
    wait, in the order of the queue, whole, in a step without decodes, as many as `TokenView.admissible` takes of
    them; a `Fill`, that it would fill up a step in which all decode by that rule. If none can be prefilled, it would
    decode as here. Either holds through arrivals, admissions and ends, until a task is preempted or a prompt comes
    that is not cut and longer than a step; the engine may ask again at any time.

    The engine admits from *prefill* as long as tokens, sequences and blocks last; the first waiting task that does
    not fit stays waiting, and so do those after it. Memory is given to the running before the waiting.
    """

    __slots__ = ("decode", "plain", "preempt", "prefill", "standing")

    def __init__(
        self,
        prefill: Sequence[Chunk] = (),
        decode: Sequence[TokenTask] | All = (),
        *,
        preempt: Sequence[TokenTask] = (),
        drop: Sequence[TokenTask] = (),
        idle_until: float | None = None,
        repeat: Repeat | None = None,
        standing: bool | Fill = False,
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.preempt = preempt
        self.drop = drop
        #: Which of the two common kinds it is, if it is; told once for a step that a policy gives again and again.
        self.plain = 0
        if not drop and not preempt:
            if (drop is NONE or type(drop) in LISTS) and (preempt is NONE or type(preempt) in LISTS):
                if decode is ALL:
                    if not prefill:
                        self.plain = DECODES if prefill is NONE or type(prefill) in LISTS else ODD
                elif not decode:
                    if decode is not NONE and type(decode) not in LISTS:
                        self.plain = ODD
                    elif prefill:
                        self.plain = PREFILLS
                    elif type(prefill) not in LISTS:
                        self.plain = ODD
            else:
                self.plain = ODD
        self.idle_until = idle_until
        self.repeat = repeat
        self.standing = standing

    def __repr__(self) -> str:
        decode = self.decode if isinstance(self.decode, All) else [t.id for t in self.decode]
        return (
            f"<Step prefill={[(t.id, n) for t, n in self.prefill]} decode={decode}"
            f" preempt={[t.id for t in self.preempt]} drop={[t.id for t in self.drop]}>"
        )


class TokenView(WorkerView):
    """What a policy may see of the engine that it decides for.

    *waiting* holds the tasks in the order of the queue (preempted ones at its head), *running* those that hold KV, in
    order of admission, partly prefilled ones included. *decoding* counts the running tasks that are decoding,
    *context* is the sum of their computed tokens. *free_blocks* of *blocks* are free; an admission must leave
    *watermark* blocks free. *last_step* and *last_decode* are the seconds that the last step, and the last step
    without a prefill, took, scheduling included; 0 before there was one.
    """

    # What changes from step to step stands in a dictionary, which the policy's view shares
    # (`servetwin.core.isolation.read_only`).
    __slots__ = (
        "__dict__",
        "_estimate_decode",
        "_estimate_prefill",
        "block_size",
        "blocks",
        "cache",
        "checked",
        "due_blocks",
        "limits",
        "max_batched_tokens",
        "slo",
        "step_seconds",
        "sure",
        "watermark",
        "whole_prompt",
    )

    lookahead = 0  # tokens of a sequence for which memory is kept beyond those of a step
    waiting: OrderedDict[TokenTask, None]  # type: ignore[assignment]
    running: dict[TokenTask, None]  # type: ignore[assignment]

    def __init__(
        self,
        stage: Stage,
        limits: EngineLimits,
        *,
        estimate_prefill: Callable[[int, float | None], float],
        estimate_decode: Callable[[int, int], float],
        estimate_step: Callable[[int, float, float, int, int], float] | None = None,
        slo: TokenSLO | None = None,
        name: str = "",
        slo_factor: float | None = None,
    ) -> None:
        super().__init__(stage, self._one, limit=limits.max_sequences, name=name, slo_factor=slo_factor)
        self.waiting = OrderedDict()
        self.limits = limits
        self.blocks = self.free_blocks = limits.blocks
        self.block_size = limits.block_size
        self.watermark = limits.reserve
        self.whole_prompt = limits.whole_prompt
        self.checked: Sequence[Chunk] | None = None  # what `admissible` gave last
        self.sure: Sequence[Chunk] = ()  # and what was in it then
        self.max_batched_tokens = limits.max_batched_tokens
        self.max_sequences = limits.max_sequences
        self.decoding = 0
        self.context = 0
        self.last_step = self.last_decode = 0.0
        self.slo = slo
        self.cache: PrefixCache | None = None  # of an engine that has one
        self.due_blocks: Callable[[], int] | None = None  # then, the blocks that those who decode need next
        self._estimate_prefill = estimate_prefill
        self._estimate_decode = estimate_decode
        #: What tells the seconds of a step, by tokens of its chunks, the sum of their squares, that of each times the
        #: tokens before it, and requests and context of a decode; None where nobody does.
        self.step_seconds = estimate_step

    def estimate_prefill(self, tokens: int, squares: float | None = None) -> float:
        """Seconds of a prefill of *tokens* in all, by the scheduler's profile; *squares* is the sum of the squared
        lengths of its prompts (None: it is one prompt)."""
        return self._estimate_prefill(tokens, squares)

    def estimate_decode(self, batch: int, context: int) -> float:
        """Seconds of a decode step of *batch* requests whose computed tokens sum to *context*, by the profile."""
        return self._estimate_decode(batch, context)

    def estimate_step(self, prefill: Iterable[Chunk] = (), decode: int = 0, context: int | None = None) -> float:
        """Seconds of a step that computes the chunks of *prefill* ((task, tokens), as in `Step`) while *decode*
        requests decode, by the scheduler's profile; 0 if it does nothing.

        *context* is the sum of the computed tokens of those that decode; None: of all that decode now, for
        ``decode=view.decoding``, or its share for others. Where nobody says what a mixed step takes (a view made by
        hand without that) it is taken to be a prefill and a decode step on end, which is an upper bound.
        """
        tokens = squares = before = 0
        for task, count in prefill:
            tokens += count
            squares += count * count
            before += count * task.computed
        if context is None:
            context = self.context if decode == self.decoding else self.context * decode // max(self.decoding, 1)
        if self.step_seconds is not None:
            return self.step_seconds(tokens, float(squares), float(before), decode, context)
        seconds = self._estimate_prefill(tokens, float(squares)) if tokens else 0.0
        return seconds + (self._estimate_decode(decode, context) if decode else 0.0)

    def estimators(self) -> tuple[Callable[[int, float | None], float], Callable[[int, int], float]]:
        """What tells the seconds of prefills and of decode steps: equal for engines that estimate by one table."""
        return self._estimate_prefill, self._estimate_decode

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def admissible(self, prefill: Iterable[Chunk], *, decode: int = 0) -> list[Chunk]:
        """The part of *prefill* that the engine will run beside *decode* decoding requests, as things stand.

        Chunks of running tasks are taken as they are. The first waiting task for which tokens, sequences or blocks do
        not last ends the list.
        """
        if self.cache is not None:
            pieces = self._tried(prefill, self.max_batched_tokens, decode)
            self.checked = None
            return pieces
        tokens = self.max_batched_tokens - decode
        running = self.running
        sequences = self.max_sequences - len(running)
        free, least, size, whole = self.free_blocks, self.watermark, self.block_size, self.whole_prompt
        taken: list[Chunk] = []
        for chunk in prefill:
            task, count = chunk
            tokens -= count
            if tokens < 0:
                break
            computed = task.base_computed if task.ticks is None else task.computed
            needed = -(computed + (task.pending if whole else count)) // size
            if task in running:
                free += needed + -(-computed // size)
            else:
                sequences -= 1
                if sequences < 0 or free + needed < least:
                    break
                free += -(computed + count) // size
            taken.append(chunk if type(chunk) is tuple else (task, count))
        self.checked, self.sure = taken, taken[:]  # the former is the policy's to change
        return taken

    def fill(
        self,
        tasks: Iterable[TokenTask],
        tokens: int,
        *,
        begun: Iterable[Chunk] = (),
        decode: int = 0,
        chunked: bool = True,
    ) -> list[Chunk]:
        """What the engine will run of *begun* (chunks of running tasks) and then of *tasks*, which wait, beside
        *decode* decoding requests: of each all that is pending when its turn comes, up to *tokens* in all. With
        *chunked* the last one is cut to what is left of *tokens*, else it waits.

        Where the engine has a prefix cache, what is pending when its turn comes is less for a request that begins as
        one before it in the same step does, and more for one whose blocks those before it take.
        """
        if self.cache is not None:
            return self._tried([*begun, *((task, None) for task in tasks)], tokens, decode, chunked)
        taken = list(begun)
        left = tokens - sum([count for _, count in taken])
        for task in tasks:
            pending = task.pending
            if left <= 0 or (pending > left and not chunked):
                break
            taken.append((task, min(pending, left)))
            left -= pending
        return self.admissible(taken, decode=decode)

    def _tried(
        self, prefill: Iterable[tuple[TokenTask, int | None]], tokens: int, decode: int, chunked: bool = False
    ) -> list[Chunk]:
        """As `admissible`, where the engine has a prefix cache; a count of None is all that is pending."""
        assert self.cache is not None
        trial, size, running, ahead = Trial(self.cache), self.block_size, self.running, self.lookahead
        if decode and self.due_blocks is not None:
            trial.take(self.due_blocks())
        tokens = min(tokens, self.max_batched_tokens - decode * self.limits.tokens_per_decode)
        sequences = self.max_sequences - len(running)
        taken: list[Chunk] = []
        admitted = 0
        for task, asked in prefill:
            if tokens <= 0:
                break
            assert isinstance(task, CachingTask)
            idle: Sequence[Block] = ()
            runs = task in running
            found = task.base_computed if runs else trial.found(task)
            computed = max(found, task.base_computed)  # more where its KV stands at the engine that prefilled it
            pending = task.prompt + task.base_generated - computed
            count = pending if asked is None else min(asked, pending)
            if asked is None and chunked:
                count = min(count, tokens)
            tokens -= count
            held = -(-(computed + ahead) // size) if runs else found // size
            more = 0 if runs else self.padding(pending, decode, len(taken) > admitted)
            tokens -= more
            if tokens < 0:
                break
            new = -(-(computed + count + more + ahead) // size) - held
            if not runs:
                admitted += 1
                sequences -= 1
                keys = self.cache.keys(task, found // size)
                idle, away = trial.idle(keys), trial.away(keys)
                most = max(new, -(-(computed + pending) // size) - held) if self.whole_prompt else new
                new, most = new + away, most + away
                if sequences < 0 or trial.free - most - len(idle) < self.watermark:
                    break
            trial.admit(task, idle, found // size, new, found + count if computed == found else 0)
            taken.append((task, count))
        return taken

    def padding(self, pending: int, decode: int, begun: bool) -> int:
        """The tokens of a step that one who is admitted with so many *pending* takes beyond them, beside *decode*
        that decode; *begun*: prompts that were begun before go on in it."""
        return 0

    def solo(self, task: Task, done: int = 0) -> float:
        """Seconds that *task* still wants if it is served alone and generates as much as it may; *done* as there."""
        assert isinstance(task, TokenTask)
        steps = max(0, task.left - done)
        middle = task.prompt + task.generated + done + steps // 2
        pending = 0 if task.decoding else task.pending  # 0 also while its prefill is in flight
        seconds = self.estimate_prefill(pending) if pending else 0.0
        return seconds + steps * self.estimate_decode(1, middle)

    def _one(self, module: str, batch: int) -> float:
        """A decode step without context: what `WorkerView.estimate` can say of an engine."""
        return self._estimate_decode(batch, 0)


@dataclass(frozen=True)
class Fill:
    """A rule for all steps (`Step.standing`): all that decode go on in each, and prompts fill it up, first come,
    first served.

    A step computes *tokens* at most (the engine's `max_batched_tokens`, if that is less), those of the requests that
    decode included. What is left goes to prompts that have been begun, in order of admission, then to those that
    wait, in the order of the queue, each as far as it lasts; with *cut* off a prompt that does not fit whole waits,
    and so do those after it. With *whole_memory* a prompt is begun only if memory lasts for all of it, and for the
    rest of those that have been begun (Sarathi-Serve; the engine may ask for that too: `EngineLimits.whole_prompt`).

    Raises `BadInput` if *tokens* is no whole number of 1 or more.
    """

    tokens: int
    cut: bool = True
    whole_memory: bool = False

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 1:
            raise BadInput(f"a step of {self.tokens!r} tokens", right="a whole number, 1 or more")

    def chunks(self, view: TokenView) -> Sequence[Chunk]:
        """The (task, tokens) that it prefills at the engine of *view*, as things stand: what holds policies to it."""
        left = min(self.tokens, view.max_batched_tokens) - view.decoding * view.limits.tokens_per_decode
        free = view.free_blocks - view.watermark
        room = view.max_sequences - len(view.running)
        found = []
        for task in view.running:
            if not task.decoding:
                pending = task.pending
                free -= view.blocks_for(task.computed + pending) - view.blocks_for(task.computed)
                if left > 0:
                    found.append((task, min(pending, left)))
                    left -= pending
        for task in view.waiting:
            pending = task.pending
            free -= view.blocks_for(task.computed + pending)
            room -= 1
            if left <= 0 or room < 0 or (pending > left and not self.cut) or (self.whole_memory and free < 0):
                break
            found.append((task, min(pending, left)))
            left -= pending
        return view.admissible(found, decode=view.decoding)


class TokenPolicy(PolicyBase):
    """Decides what an LLM engine computes next. One object serves one engine; its parameters come by keyword.

    A subclass must give `decide`. `start`, `admit` and `removed` are as in `Policy`, with a `TokenView` and
    `TokenTask`; `ended` is not called. *waiting* and *running* of the view are not to be kept beyond a call.

    A policy that keeps to a budget of tokens a step of its own, less than the engine's, says so in *tokens_a_step*:
    as in vLLM no more requests may run at once than a step has tokens. One that never cuts a prompt, and would let
    one wait for ever that is longer than a step, says so in *whole_prompts*. One that takes prompts in chunks says so
    in *chunks*: where a request that comes back finds less than it showed (`EngineLimits.keep_freed`), what there is
    no room for then waits for the next step. One that reckons with `EngineLimits.tokens_per_decode` tokens of a step
    for each that decodes, and promises nothing of when single tokens come, says so in *speculates*: others are not
    asked where an engine drafts tokens.
    """

    tokens_a_step: int | None = None
    whole_prompts: bool = False
    chunks: bool = False
    speculates: bool = False

    def start(self, view: TokenView) -> None:
        """Look at the engine once, before anything arrives."""

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        """Take *task* into the queue, or refuse it (it is dropped then)."""
        return True

    def decide(self, view: TokenView, now: float) -> Step:
        """What the engine computes next."""
        raise NotImplementedError

    def removed(self, task: TokenTask, view: TokenView, now: float) -> None:
        """*task* was taken away by someone else."""


def admits_all(policy: TokenPolicy) -> bool:
    """Whether *policy* takes in whatever comes: neither its class nor the object has an `admit` of its own."""
    return getattr(policy.admit, "__func__", None) is TokenPolicy.admit


def queue_order(view: TokenView, kept: Iterable[TokenTask]) -> list[TokenTask]:
    """The waiting tasks in a policy's own order: what it had *kept*, newcomers after that, preempted ones first.

    For policies that order the queue and remember it, as NeuStream does: *kept* is what the last call gave,
    re-ordered.
    """
    waiting: Collection[TokenTask] = view.waiting
    kept = [task for task in kept if task in waiting]
    if len(kept) == len(waiting):
        return kept
    known = set(kept)
    new = [task for task in waiting if task not in known]
    return [*[t for t in new if t.preemptions], *kept, *[t for t in new if not t.preemptions]]
