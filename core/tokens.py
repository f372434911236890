"""The seam for language models: what a policy sees of an LLM engine, and says, once per engine step.

An LLM *stage* is one worker, an engine (one GPU or several that act as one), which prefills prompts and decodes
output tokens, each in steps over many requests. A `TokenPolicy` is handed a `TokenView` and answers with a `Step`;
the same object decides in the simulation and inside vLLM's scheduler. How many tokens a request will really put out
is nowhere in what it sees: only the declared *limit* is.

Words: the *context* of a request is the tokens whose keys and values (KV) stand in the engine's memory, which is kept
in *blocks* of `EngineLimits.block_size` tokens. A *prefill* computes tokens that are known already (a prompt; after a
preemption also the tokens that were put out before), whole or in *chunks*; its last token puts out the next one. A
*decode* computes the token that came out last and puts out one more. A step with both is *mixed*.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from .errors import BadInput
from .request import Outputs, Request, Task
from .seam import Decision, Policy, Repeat, WorkerView
from .slo import latest

if TYPE_CHECKING:
    from .pipeline import Stage
    from .worker import Worker


class All:
    """The type of `ALL`."""

    def __repr__(self) -> str:
        return "ALL"


#: Every running request that is decoding.
ALL: Final = All()


@dataclass(frozen=True)
class EngineLimits:
    """What an engine's memory and settings allow; none of it is the policy's to change.

    *blocks* of *block_size* tokens hold the KV of all running requests. A waiting request is admitted only if at
    least ``int(watermark * blocks)`` blocks stay free after it. A step computes *max_batched_tokens* tokens at most,
    and *max_sequences* requests run at most. A decoding request goes on only if *headroom* blocks are free when its
    turn comes, whether it needs one or not (vLLM 0.5.4: 1, its V1 engine: 0). When memory runs out, *preemption*
    frees that of the last of the running by forgetting it ("recompute") or by moving it to the host ("swap"). With
    *stamp* "sent" a request has arrived when the client sent it; with "seen", when the engine next looked at its
    queue, which is between two steps (NeuStream's serving loop stamps it then, so that the wait before that is free
    of charge). With *whole_prompt* a chunk is admitted only if there is memory for all of its prompt (vLLM V1).
    """

    blocks: int
    block_size: int = 16
    watermark: float = 0.0
    max_batched_tokens: int = 8192
    max_sequences: int = 256
    headroom: int = 0
    preemption: Literal["recompute", "swap"] = "recompute"
    stamp: Literal["sent", "seen"] = "sent"
    whole_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("blocks", "block_size", "max_batched_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}", right="1 or more")
        if not 0.0 <= self.watermark < 1.0:
            raise BadInput(f"watermark is {self.watermark}", right="a share of the blocks, from 0 to below 1")
        if self.headroom < 0:
            raise BadInput(f"headroom is {self.headroom}", right="0 or more blocks")
        if self.preemption not in ("recompute", "swap"):
            raise BadInput(f"preemption is {self.preemption!r}", right="'recompute' or 'swap'")
        if self.stamp not in ("sent", "seen"):
            raise BadInput(f"stamp is {self.stamp!r}", right="'sent' or 'seen'")

    @property
    def reserve(self) -> int:
        """The blocks that an admission must leave free."""
        return int(self.watermark * self.blocks)


@dataclass(frozen=True)
class Follows:
    """A prompt of *base* tokens and what the request has put out at the LLM stage *module* before.

    How long it is shows when that stage is done, not sooner.
    """

    base: int
    module: str

    def tokens(self, request: Request) -> int:
        """How long it is by now. Raises `BadInput` if the request has not been at that stage."""
        for task in reversed(request.tasks):
            if task.stage.loop == self.module and isinstance(task, TokenTask):
                return self.base + task.generated
        raise BadInput(f"{request} has put out no tokens at {self.module}", right=f"{self.module} before it")


#: (prompt tokens, declared limit of output tokens) by the loop module of an LLM stage; a list if the request comes
#: there several times.
Tokens = Mapping[str, "tuple[int | Follows, int] | list[tuple[int | Follows, int]]"]


class TokenRequest(Request):
    """A request that passes one LLM stage or several.

    *tokens* holds (prompt tokens, declared limit of output tokens) by the name of each LLM stage's loop module.
    *outputs* holds the true numbers of output tokens; the loop takes them out of the request as it arrives, so a
    policy can never see them. A stage that a request visits several times has lists, an entry per visit (the last
    one goes on for further visits). *missed* says that an LLM stage did not keep the SLO of its tokens. *work* and
    *slo* are as in `Request`.
    """

    __slots__ = ("missed", "outputs", "tokens")

    def __init__(
        self,
        id: int,  # noqa: A002
        arrival: float,
        tokens: Tokens,
        outputs: Outputs | None = None,
        *,
        slo: float = float("inf"),
        work: Mapping[str, int] | None = None,
    ) -> None:
        self.id = id
        self.arrival = arrival
        self.deadline = arrival + slo
        self.work = work if work is not None else {}
        self.tasks = []
        self.waiting_for = {}
        self.outcome = self.reason = self.finished = None
        self.tokens = tokens
        self.outputs = outputs
        self.missed = False


class Ticks:
    """How many steps the requests that decode together have made: the clock that their tokens are counted by."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class TokenTask(Task):
    """A request's stay at an LLM stage. Policies read; the engine counts.

    *prompt* is in tokens, *limit* the declared most that it may put out. *budget* (seconds) is slack that earlier
    stages left. *arrival* is as the engine sees it (`EngineLimits.stamp`). *started* is when it was first admitted to
    a step, *first_token* when its first token came out, *finished* when its last did.
    """

    # Slots, all of them set at once: looking for what is not there, on the way to a default, costs more.
    __slots__ = (
        "_computed",
        "_generated",
        "_on_time",
        "_ticks",
        "_times",
        "budget",
        "first_token",
        "limit",
        "preemptions",
        "prompt",
    )

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Worker | None, prompt: int, limit: int
    ) -> None:
        self.request = request
        self.stage = stage
        self.id = request.id
        self.arrival = request.arrival
        self.deadline = request.deadline
        self.queued = queued
        self.worker = worker.place if worker is not None else None
        self.flight = self.admitted = self.started = self.finished = None
        self.prompt = prompt
        self.limit = limit
        self.budget = 0.0
        self.preemptions = 0
        self.first_token: float | None = None
        # While the task decodes with all others its counts move with *_ticks* and nothing is written per step.
        self._ticks: Ticks | None = None
        self._generated = 0
        self._computed = 0
        # When each of its tokens came out, where a recorder wants that; complete once it does not decode any more.
        self._times: array[float] | None = None
        # What `servetwin.core.token_metrics.on_time` found, since both SLO and summary ask it.
        self._on_time: Any = None

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        ticks = self._ticks
        return self._generated if ticks is None else self._generated + ticks.count

    @generated.setter
    def generated(self, count: int) -> None:
        self._settle()
        self._generated = count

    @property
    def computed(self) -> int:
        """Tokens whose KV stands; 0 after a preemption by recompute."""
        ticks = self._ticks
        return self._computed if ticks is None else self.prompt + self._generated + ticks.count - 1

    @computed.setter
    def computed(self, count: int) -> None:
        self._settle()
        self._computed = count

    def times(self) -> Sequence[float]:
        """When each of its tokens came out, once it has ended. Raises `BadInput` if the run's recorder did not want
        that (`Recorder.wants_token_times`)."""
        if self._times is None:
            raise BadInput("the times of single tokens were not kept", right="a recorder with wants_token_times")
        return self._times if self.finished is not None else self._times[:]  # which a policy may be shown

    def _settle(self) -> None:
        if self._ticks is not None:
            self._computed = self.computed
            self._generated += self._ticks.count
            self._ticks = None

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one comes out: 1 while decoding."""
        return 1 if self._ticks is not None else self.prompt + self._generated - self._computed

    @property
    def decoding(self) -> bool:
        """Whether its KV stands but for the token that came out last."""
        return self._ticks is not None or (
            self._generated > 0
            and self._computed >= self.prompt
            and self.prompt + self._generated - self._computed == 1
        )

    @property
    def iterations(self) -> int:  # type: ignore[override]
        """The tokens that it may put out."""
        return self.limit

    @property
    def left(self) -> int:  # type: ignore[override]
        """What it may still put out."""
        return self.limit - self.generated

    def __repr__(self) -> str:
        return (
            f"<TokenTask of {self.id} at {self.stage.name}: {self.prompt}+{self.generated}, {self.computed} computed>"
        )


#: Kinds of steps: all that can decode do, and nothing else happens; some prefill, and nothing else happens.
DECODES, PREFILLS = 1, 2

#: What a step computes of which request: (task, tokens).
Chunk = tuple[TokenTask, int]


class Step(Decision):
    """What an engine does next.

    *prefill* holds (task, tokens) in order: waiting tasks to admit, and running ones that are partly computed; fewer
    tokens than are pending make a chunk. A task that waits with its KV on the host (after a swap) is brought back the
    same way, with the one token that it has pending. *decode* says which of the running tasks decode: `ALL`, or
    some, or none. *preempt* puts running tasks back to the head of the queue, *drop* gives tasks up for good; both
    come first. With nothing to compute the engine idles until something arrives, or until *idle_until* at the latest.
    *repeat* (decode steps only) is the policy's word that it would decide the same again, see `Repeat`. A step may be
    given again and again, but is not to be changed once it is made.

    *standing* (with *repeat*, where all that can decode do and nothing else happens) extends that word to requests
    that arrive: whenever the engine looks at its queue, the policy would first prefill those that wait, in the order
    of the queue, whole, in a step without decodes, as many as `TokenView.admissible` takes of them; and if it takes
    none, decode as here. It holds through arrivals, admissions and ends, until a task is preempted or a prompt comes
    that is longer than a step; the engine may ask again at any time.

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
        standing: bool = False,
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.preempt = preempt
        self.drop = drop
        #: Which of the two common kinds it is, if it is; told once for a step that a policy gives again and again.
        self.plain = 0
        # None is no list, and is told of when the step is carried out.
        if not drop and not preempt and drop is not None and preempt is not None:
            if decode is ALL:
                if not prefill and prefill is not None:
                    self.plain = DECODES
            elif prefill and not decode and decode is not None:
                self.plain = PREFILLS
        self.idle_until = idle_until
        self.repeat = repeat
        self.standing = standing

    def __repr__(self) -> str:
        decode = self.decode if isinstance(self.decode, All) else [t.id for t in self.decode]
        return (
            f"<Step prefill={[(t.id, n) for t, n in self.prefill]} decode={decode}"
            f" preempt={[t.id for t in self.preempt]} drop={[t.id for t in self.drop]}>"
        )


class TokenSLO(Protocol):
    """Deadlines of single tokens, as NeuStream defines them; times in seconds, lengths in tokens.

    *prefill_scale* and *decode_scale* are P and D of "P+D" (3+1.5, say), *d0* and *d1* the seconds of a decode step
    alone, per step and per token of context.
    """

    @property
    def prefill_scale(self) -> float: ...
    @property
    def decode_scale(self) -> float: ...
    @property
    def d0(self) -> float: ...
    @property
    def d1(self) -> float: ...

    def alone(self, prompt: int) -> float:
        """Seconds that the prefill of a prompt of that length takes alone."""

    def deadline(self, task: TokenTask, token: int) -> float:
        """When output token number *token* (1 is the first) must be out."""

    def met(self, task: TokenTask) -> bool:
        """Whether *task*, which has just put out its last token, kept this SLO."""


@dataclass(frozen=True)
class CumulativeSLO:
    """Token j is due at ``arrival + budget + P * B(n) + D * I(n, j - 1)``: a late token can be caught up.

    B(n) is the prefill of n prompt tokens alone, I(n, k) that of k decode steps alone after it:
    ``d0 * k + d1 * (k * n + k * (k + 1) / 2)``. Source: the NeuStream artifact's LLM part.
    """

    prefill_scale: float
    decode_scale: float
    d0: float
    d1: float
    prefill_alone: Callable[[int], float]

    def alone(self, prompt: int) -> float:
        return self.prefill_alone(prompt)

    def decode_alone(self, prompt: int, steps: int) -> float:
        """Seconds of that many decode steps alone, after a prompt of that length."""
        return self.d0 * steps + self.d1 * (steps * prompt + steps * (steps + 1) / 2)

    def deadline(self, task: TokenTask, token: int) -> float:
        prompt, steps = task.prompt, token - 1
        first = task.arrival + task.budget + self.prefill_scale * self.prefill_alone(prompt)
        # `decode_alone`, written out: policies ask for all that run and wait.
        return first + self.decode_scale * (self.d0 * steps + self.d1 * (steps * prompt + steps * (steps + 1) / 2))

    def met(self, task: TokenTask) -> bool:
        """Whether its last token was on time (those before may have been late and caught up)."""
        return task.finished is not None and task.finished <= latest(self.deadline(task, task.generated))


class TokenView(WorkerView):
    """What a policy may see of the engine that it decides for.

    *waiting* holds the tasks in the order of the queue (preempted ones at its head), *running* those that hold KV, in
    order of admission, partly prefilled ones included. *decoding* counts the running tasks that are decoding,
    *context* is the sum of their computed tokens. *free_blocks* of *blocks* are free; an admission must leave
    *watermark* blocks free. *last_step* and *last_decode* are the seconds that the last step, and the last step
    without a prefill, took, scheduling included; 0 before there was one.
    """

    # What changes from step to step stands in a dictionary, which the policy's view shares (`servetwin.core.closed`).
    __slots__ = (
        "__dict__",
        "_estimate_decode",
        "_estimate_prefill",
        "block_size",
        "blocks",
        "checked",
        "limits",
        "max_batched_tokens",
        "max_sequences",
        "slo",
        "sure",
        "watermark",
        "whole_prompt",
    )

    waiting: OrderedDict[TokenTask, None]  # type: ignore[assignment]
    running: dict[TokenTask, None]  # type: ignore[assignment]

    def __init__(
        self,
        stage: Stage,
        limits: EngineLimits,
        *,
        estimate_prefill: Callable[[int, float | None], float],
        estimate_decode: Callable[[int, int], float],
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
        self._estimate_prefill = estimate_prefill
        self._estimate_decode = estimate_decode

    def estimate_prefill(self, tokens: int, squares: float | None = None) -> float:
        """Seconds of a prefill of *tokens* in all, by the scheduler's profile; *squares* is the sum of the squared
        lengths of its prompts (None: it is one prompt)."""
        return self._estimate_prefill(tokens, squares)

    def estimate_decode(self, batch: int, context: int) -> float:
        """Seconds of a decode step of *batch* requests whose computed tokens sum to *context*, by the profile."""
        return self._estimate_decode(batch, context)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def admissible(self, prefill: Iterable[Chunk], *, decode: int = 0) -> list[Chunk]:
        """The part of *prefill* that the engine will run beside *decode* decoding requests, as things stand.

        Chunks of running tasks are taken as they are. The first waiting task for which tokens, sequences or blocks do
        not last ends the list.
        """
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
            computed = task._computed if task._ticks is None else task.computed
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

    def solo(self, task: Task) -> float:
        """Seconds that *task* still wants if it is served alone and puts out as much as it may."""
        assert isinstance(task, TokenTask)
        steps = max(0, task.left)
        middle = task.prompt + task.generated + steps // 2
        pending = 0 if task.decoding else task.pending  # 0 also while its prefill is in flight
        seconds = self.estimate_prefill(pending) if pending else 0.0
        return seconds + steps * self.estimate_decode(1, middle)

    def _one(self, module: str, batch: int) -> float:
        """A decode step without context: what `WorkerView.estimate` can say of an engine."""
        return self._estimate_decode(batch, 0)


# It is a `Policy`, but for mypy: what it is handed is more than what a policy has to expect.
if TYPE_CHECKING:

    class _Base:
        ahead: bool
        pools: bool
else:
    _Base = Policy


class TokenPolicy(_Base):
    """Decides what an LLM engine computes next. One object serves one engine; its parameters come by keyword.

    A subclass must give `decide`. `start`, `admit` and `removed` are as in `Policy`, with a `TokenView` and
    `TokenTask`; `ended` is not called. *waiting* and *running* of the view are not to be kept beyond a call.

    A policy that keeps to a budget of tokens a step of its own, less than the engine's, says so in *tokens_a_step*:
    as in vLLM no more requests may run at once than a step has tokens. One that never cuts a prompt, and would let
    one wait for ever that is longer than a step, says so in *whole_prompts*.
    """

    tokens_a_step: int | None = None
    whole_prompts: bool = False

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
