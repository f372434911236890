"""Requests to language models, and their visit to an LLM stage."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..pipeline import Stage
from ..request import Flight, Outputs, Place, Request, Task
from .prefix_cache import PromptContent, SessionContent


@dataclass(frozen=True)
class Follows:
    """A prompt of *base* tokens and what the request has generated at the LLM stage *module* before.

    How long it is shows when that stage is done, not sooner.
    """

    base: int
    module: str

    def tokens(self, request: Request) -> int:
        """How long it is by now. Raises `BadInput` if the request has not been at that stage."""
        for task in reversed(request.tasks):
            if task.stage.loop == self.module and isinstance(task, TokenTask):
                return self.base + task.generated
        raise BadInput(f"{request} has generated no tokens at {self.module}", right=f"{self.module} before it")


#: (prompt tokens, declared limit of output tokens) by the loop module of an LLM stage; a list if the request comes
#: there several times.
Tokens = Mapping[str, "tuple[int | Follows, int] | list[tuple[int | Follows, int]]"]


class TokenRequest(Request):
    """A request that passes one LLM stage or several.

    *tokens* holds (prompt tokens, declared limit of output tokens) by the name of each LLM stage's loop module.
    *outputs* holds the true numbers of output tokens; the loop takes them out of the request as it arrives, so a
    policy can never see them. A stage that a request visits several times has lists, an entry per visit (the last
    one goes on for further visits). *missed* says that an LLM stage did not keep the SLO of its tokens. *predicted*
    holds, by loop module, how many output tokens a predictor expects; None where there is no predictor. *prefix*
    says, by loop module, what the prompt begins with, for engines with a prefix cache; what it does not name nobody
    shares. *work*, *slo*, *priority*, *tenant*, *weight*, *class_name* and *session* are as in `Request`.
    """

    __slots__ = ("prefix", "tokens")

    def __init__(
        self,
        id: int,  # noqa: A002
        arrival: float,
        tokens: Tokens,
        outputs: Outputs | None = None,
        *,
        slo: float = float("inf"),
        work: Mapping[str, int] | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        class_name: str = "",
        session: tuple[int, int] | None = None,
        predicted: Mapping[str, int] | None = None,
        prefix: Mapping[str, PromptContent] | None = None,
    ) -> None:
        self.id = id
        self.arrival = arrival
        self.deadline = arrival + slo
        self.work = work if work is not None else {}
        self.priority = priority
        self.tenant = tenant
        self.weight = weight
        self.class_name = class_name
        self.session = session
        self.predicted = predicted
        self.tasks = []
        self.waiting_for = {}
        self.open_branches = 1
        self.shape = self.outcome = self.reason = self.finished = None
        self.tokens = tokens
        self.outputs = outputs
        self.prefix = prefix
        self.missed = False

    @property
    def terms(self) -> dict[str, Any]:
        return {**super().terms, "predicted": self.predicted, "prefix": self.prefix}

    def turn(self, at: float, session: tuple[int, int] | None, said: Mapping[str, int], contents: Any) -> Request:
        terms = {**self.terms, "session": session}
        tokens = self.tokens
        if session is not None:
            terms["prefix"] = contents
            tokens = {m: (said.get(m, 0) + prompt, limit) for m, (prompt, limit) in self._new().items()}
        return TokenRequest(self.id, at, tokens, self.outputs, slo=self.slo, work=self.work, **terms)

    def _new(self) -> dict[str, tuple[int, int]]:
        """What it adds to its session, if it is one of its turns: prompt and limit by module."""
        return dict(self.tokens)  # type: ignore[arg-type]

    def contents_of(self, session: int) -> Any:
        begins = self.prefix or {}
        return {module: SessionContent(session, begins.get(module)) for module in self.tokens}

    def said_after(self, said: Mapping[str, int], generated: Mapping[str, int]) -> Mapping[str, int]:
        return {m: said.get(m, 0) + prompt + generated.get(m, 0) for m, (prompt, _) in self._new().items()}

    def answers(self) -> Mapping[str, int]:
        outputs: Mapping[str, Any] = self.outputs or {}
        return {module: min(outputs[module], limit) for module, (_, limit) in self._new().items()}

    def generated(self) -> dict[str, int]:
        tasks = [task for task in self.tasks if isinstance(task, TokenTask)]
        return {task.stage.loop or task.stage.name: task.generated for task in tasks}


class Ticks:
    """How many steps the requests that decode together have made: the clock that their tokens are counted by."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class TokenTask(Task):
    """A request's visit to an LLM stage. Policies read; the engine counts.

    *prompt* is in tokens, *limit* the declared most that it may generate. *predicted* are the output tokens that the
    workload's predictor expects (None without one); how many there will really be is nowhere to be seen. *budget*
    (seconds) is slack that earlier stages left. *arrival* is as the engine sees it (`EngineLimits.stamp`). *started*
    is when it was first admitted to a step, *first_token* when its first token came out, *finished* when its last
    did.
    """

    # Slots, all of them set at once: looking for what is not there, on the way to a default, costs more.
    __slots__ = (
        "base_computed",
        "base_generated",
        "budget",
        "first_token",
        "known_in_time",
        "limit",
        "predicted",
        "preemptions",
        "prompt",
        "ticks",
        "token_times",
    )

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        self.request = request
        self.stage = stage
        self.id = request.id
        self.arrival = request.arrival
        self.deadline = request.deadline
        self.queued = queued
        self.worker = worker
        self.flight = self.admitted = self.started = self.finished = None
        self.prompt = prompt
        self.limit = limit
        predicted = request.predicted
        self.predicted = predicted.get(stage.loop or stage.name) if predicted is not None else None
        self.budget = 0.0
        self.preemptions = 0
        self.first_token: float | None = None
        # While the task decodes with all others its counts move with *ticks* and nothing is written per step.
        self.ticks: Ticks | None = None
        self.base_generated = 0
        self.base_computed = 0
        # When each of its tokens came out, where a recorder wants that; complete once it does not decode any more.
        self.token_times: array[float] | None = None
        # Which were in time, and for whose deadlines, as `servetwin.core.llm.slo.TokenDeadlines.met` found.
        self.known_in_time: Any = None

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        ticks = self.ticks
        return self.base_generated if ticks is None else self.base_generated + ticks.count

    @generated.setter
    def generated(self, count: int) -> None:
        self._settle()
        self.base_generated = count

    @property
    def computed(self) -> int:
        """Tokens whose KV stands; 0 after a preemption by recompute, or, with `EngineLimits.keep_freed`, what it
        would find again just now."""
        ticks = self.ticks
        return self.base_computed if ticks is None else self.prompt + self.base_generated + ticks.count - 1

    @computed.setter
    def computed(self, count: int) -> None:
        self._settle()
        self.base_computed = count

    def times(self) -> Sequence[float]:
        """When each of its tokens came out, once it has ended. Raises `BadInput` if the run's recorder did not want
        that (`Recorder.wants_token_times`)."""
        if self.token_times is None:
            raise BadInput("the times of single tokens were not kept", right="a recorder with wants_token_times")
        return self.token_times if self.finished is not None else self.token_times[:]  # which a policy may be shown

    def runs_in(self, batch: Flight | None) -> bool:
        return self.decoding

    def details(self, tokens: bool = True) -> dict[str, Any]:
        said: dict[str, Any] = {"arrival": self.arrival, "prompt": self.prompt, "limit": self.limit}
        if self.predicted is not None:
            said["predicted"] = self.predicted
        batch, more = self.flight, 0  # steps that are over, of a batch in flight
        if batch is not None and batch.count > 1 and self.ticks is not None:
            more = batch.count - 1
        said["generated"] = self.generated + more
        said["first_token"], said["last_token"] = self.first_token, self.finished
        said["preemptions"] = self.preemptions
        if tokens and self.token_times is not None:
            said["tokens"] = list(self.times())
            if batch is not None and batch.ends is not None and self.ticks is not None:
                said["tokens"] += batch.ends[: batch.count - 1]
        return said

    @property
    def service(self) -> int:
        """Prompt and output tokens that it has got; of one that was cut off before its first token, nothing."""
        generated = self.generated
        return self.prompt + generated if generated else 0

    def _settle(self) -> None:
        if self.ticks is not None:
            self.base_computed = self.computed
            self.base_generated += self.ticks.count
            self.ticks = None

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one comes out: 1 while decoding."""
        return 1 if self.ticks is not None else self.prompt + self.base_generated - self.base_computed

    @property
    def decoding(self) -> bool:
        """Whether its KV stands but for the token that came out last."""
        return self.ticks is not None or (
            self.base_generated > 0
            and self.base_computed >= self.prompt
            and self.prompt + self.base_generated - self.base_computed == 1
        )

    @property
    def iterations(self) -> int:  # type: ignore[override]
        """The tokens that it may generate."""
        return self.limit

    @property
    def left(self) -> int:  # type: ignore[override]
        """What it may still generate."""
        return self.limit - self.generated

    def __repr__(self) -> str:
        return (
            f"<TokenTask of {self.id} at {self.stage.name}: {self.prompt}+{self.generated}, {self.computed} computed>"
        )


class CachingTask(TokenTask):
    """A visit to an engine with a prefix cache (`EngineLimits.enable_prefix_caching`).

    While it waits, *computed* says how many tokens it would find just now, and *pending* what is left.
    *cached_tokens* are those that it found when it was first admitted, of which *cached_on_host* were in host memory
    alone, *cached_again* those after preemptions.
    *prompt_content* is what its prompt begins with, *cache_serial* its number once it was preempted.
    """

    __slots__ = (
        "cache_known",
        "cache_lookup",
        "cache_seen",
        "cache_serial",
        "cached_again",
        "cached_on_host",
        "cached_tokens",
        "prompt_content",
    )

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        super().__init__(request, stage, queued, worker, prompt, limit)
        prefix: Mapping[str, PromptContent] | None = getattr(request, "prefix", None)
        self.prompt_content = prefix.get(stage.loop or stage.name) if prefix is not None else None
        self.cache_serial = self.cached_again = self.cached_on_host = 0
        self.cached_tokens: int | None = None
        self.cache_lookup: Callable[[CachingTask], int] | None = None
        # What `cache_lookup` found last, in blocks, and at which version of the cache.
        self.cache_seen, self.cache_known = -1, 0

    @property
    def computed(self) -> int:
        """As of `TokenTask`; while it waits, the tokens that it would find just now."""
        ticks = self.ticks
        if ticks is not None:
            return self.prompt + self.base_generated + ticks.count - 1
        if self.base_computed or self.cache_lookup is None:
            return self.base_computed
        return self.cache_lookup(self)

    @computed.setter
    def computed(self, count: int) -> None:
        self._settle()
        self.base_computed = count

    @property
    def pending(self) -> int:
        return 1 if self.ticks is not None else self.prompt + self.base_generated - self.computed

    def details(self, tokens: bool = True) -> dict[str, Any]:
        said = super().details(tokens)
        if self.cached_tokens is not None:
            said["cached"] = self.cached_tokens
        if self.cached_on_host:
            said["cached_on_host"] = self.cached_on_host
        if self.preemptions and self.cached_tokens is not None:
            said["cached_again"] = self.cached_again
        return said


class Adapted(CachingTask):
    """A visit to an engine with LoRA adapters, which may have no prefix cache: *adapter* is that of its request
    (None: the model as it is), which was brought to the device for it *adapter_loads* times."""

    if not TYPE_CHECKING:
        __slots__ = ()  # those who are of this kind have them

    adapter: str | None
    adapter_loads: int

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        super().__init__(request, stage, queued, worker, prompt, limit)
        self.adapter = None
        self.adapter_loads = 0

    def details(self, tokens: bool = True) -> dict[str, Any]:
        return {**super().details(tokens), "adapter": self.adapter, "adapter_loads": self.adapter_loads}


class AdapterTask(Adapted):
    """`Adapted`, and nothing besides."""

    __slots__ = ("adapter", "adapter_loads")


class Handed(TokenTask):
    """A visit that begins at an engine that prefills and goes on at one that decodes
    (`servetwin.core.llm.serving.pools`).

    *worker* is where it is by now, *prefilled_by* who computed its prompt, *prefilled* when that stood, *sent* when
    its KV began to be sent, *handed* when it had come; each None before that. *found* are the tokens that the engine
    that decodes found in its own prefix cache, which were not sent (None: it has no cache).
    """

    if not TYPE_CHECKING:
        __slots__ = ()  # those who are of this kind have them

    prefilled_by: Place | None
    prefilled: float | None
    sent: float | None
    handed: float | None
    found: int | None

    def not_handed(self) -> None:
        """Nothing is known of its way yet."""
        self.prefilled_by = self.prefilled = self.sent = self.handed = self.found = None

    def details(self, tokens: bool = True) -> dict[str, Any]:
        said = super().details(tokens)
        if self.prefilled_by is not None:
            by, at = self.prefilled_by.name, self.prefilled
            said["handover"] = {"from": by, "prefilled": at, "sent": self.sent, "handed": self.handed}
            if self.found is not None:
                said["handover"]["found"] = self.found
        return said


class HandedTask(Handed, CachingTask):
    """A visit to engines that prefill and decode apart, which may have no prefix cache (see `Handed`)."""

    __slots__ = ("found", "handed", "prefilled", "prefilled_by", "sent")

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        super().__init__(request, stage, queued, worker, prompt, limit)
        self.not_handed()


class HandedAdapterTask(Handed, AdapterTask):
    """Likewise, with adapters."""

    __slots__ = ("found", "handed", "prefilled", "prefilled_by", "sent")

    def __init__(
        self, request: Request, stage: Stage, queued: float, worker: Place | None, prompt: int, limit: int
    ) -> None:
        super().__init__(request, stage, queued, worker, prompt, limit)
        self.not_handed()


def prompt_of(request: Request, stage: Stage) -> tuple[int, PromptContent | None]:
    """The prompt tokens of *request* at *stage*, where it comes next, and what they begin with (None: nobody else has
    any of it); (0, None) if that is no stage of a language model."""
    module = stage.loop or stage.name
    if not isinstance(request, TokenRequest) or module not in request.tokens:
        return 0, None
    tokens: Any = request.tokens[module]
    if isinstance(tokens, list):
        # (Where one engine prefilled and another is to decode, it is there already.)
        visit = sum([task.stage is stage and task.finished is not None for task in request.tasks])
        tokens = tokens[min(visit, len(tokens) - 1)]
    prompt = tokens[0] if isinstance(tokens[0], int) else tokens[0].tokens(request)
    return prompt, request.prefix.get(module) if request.prefix is not None else None


def tokens_of_visit(request: Request, outputs: Outputs | None, stage: Stage, module: str) -> tuple[int, int, int]:
    """Prompt, limit and output tokens of *request*, which comes to *stage* once more or does not say. Raises
    `BadInput` in the latter case."""
    try:
        tokens: Any = request.tokens[module]  # type: ignore[attr-defined]
        length: Any = outputs[module]  # type: ignore[index]
    except (AttributeError, KeyError, TypeError):
        right = f"prompt, limit and output tokens for {module}"
        raise BadInput(f"{request} has no tokens for stage {stage.name}", right=right) from None
    visit = sum([task.stage is stage for task in request.tasks])
    if not isinstance(length, int):
        length = length[min(visit, len(length) - 1)]
    if isinstance(tokens, list):
        tokens = tokens[min(visit, len(tokens) - 1)]
    prompt, limit = tokens
    return prompt if isinstance(prompt, int) else prompt.tokens(request), limit, length
