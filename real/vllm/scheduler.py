"""A scheduler for vLLM V1 that asks one of our policies.

Give it to vLLM by its path; what it is to do travels in vLLM's configuration::

    vllm serve MODEL --scheduler-cls servetwin.real.vllm.scheduler.PolicyScheduler \\
        --additional-config '{"servetwin": {"policy": "neustream_llm", "profile": "h100/opt-13b", "slo": "3+1.5"}}'

Per request, ``extra_args={"servetwin": {...}}`` of its sampling parameters (over HTTP ``vllm_xargs``, with that
mapping as a text in JSON) may hold *limit* (the declared maximum of output tokens, where ``max_tokens`` is not it),
*arrival* (seconds on the machine's monotonic clock) and *id*, and what policies are shown of a request:
*priority* (by default vLLM's own), *tenant*, *weight*, *class* and *predicted* (output tokens).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from servetwin.core import BadInput, Module, Pipeline, ServeTwinError
from servetwin.core.isolation.answers import (
    check_decision,
    check_item,
    check_kept,
    check_time,
    compared,
    fault,
)
from servetwin.core.isolation.read_only import closed
from servetwin.core.llm import (
    ALL,
    EngineLimits,
    Step,
    TokenDeadlines,
    TokenPolicy,
    TokenRequest,
    TokenSLOByClass,
    TokenTask,
    TokenView,
)

from ..policy_files import find_policy
from .internals import Orders, SteeredAsync, exhausted
from .plan import KEY, told
from .prefix_cache import SeesPrefixes
from .watchdog import LONGEST, Watchdog

#: The longest that an engine with nothing to do sleeps before it looks at its queue again, in seconds.
NAP = 0.0005


@dataclass(frozen=True)
class Settings:
    """What stands under ``additional_config["servetwin"]``.

    *policy* is the name of one of ours, ``package.module:Class``, or a file; None leaves vLLM's own decisions alone.
    *params* are its parameters. *profile* names the profile that its estimates and deadlines come from, *kind* which
    of its latency models. *slo* is "P+D" (multiples of the prefill and of the decode steps alone), *classes* the same
    of classes of requests that have their own, by name (a request says its class), *name* what the policy sees the
    engine called. *longest* is how many seconds the policy may take to answer, and the engine may
    stand still under it.
    """

    policy: str | None = None
    params: Mapping[str, Any] | None = None
    profile: str | None = None
    kind: str = "measured"
    slo: str | None = None
    classes: Mapping[str, str] | None = None
    name: str = "vllm"
    longest: float = LONGEST

    @classmethod
    def of(cls, additional_config: object) -> Settings:
        """Read vLLM's additional configuration. Raises `BadInput` for unknown keys."""
        given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
        if not isinstance(given, Mapping):
            raise BadInput(f"{given!r} is no mapping", where=f"additional_config.{KEY}")
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise BadInput(f"unknown key {key!r}", where=f"additional_config.{KEY}", right=", ".join(known))
        return cls(**given)


def find(name: str) -> type[TokenPolicy]:
    """The policy class called *name*: a module of servetwin.policies.llm, ``package.module:Class``, or a file
    (``mine.py`` or ``mine.py:Class``). Raises `BadInput` if there is none."""
    return find_policy(name, TokenPolicy, "servetwin.policies.llm", "language models")


def slo_scales(text: str) -> tuple[float, float]:
    """The two scales of "P+D".

    >>> slo_scales("3+1.5")
    (3.0, 1.5)
    """
    try:
        prefill, decode = (float(part) for part in text.split("+"))
    except ValueError:
        raise BadInput(f"{text!r} is no SLO", where="slo", right='"P+D", as in "3+1.5"') from None
    if prefill <= 0 or decode <= 0:
        raise BadInput(f"{text!r} holds a scale that is not positive", where="slo", right='"P+D", as in "3+1.5"')
    return prefill, decode


@dataclass
class Estimates:
    """What a policy may ask of time: seconds of a prefill and of a decode step, and deadlines."""

    prefill: Any
    decode: Any
    slo: Any = None
    step: Any = None  #: of steps that do both, as `TokenView.step_seconds`

    @classmethod
    def load(
        cls,
        profile: str | None,
        kind: str = "measured",
        slo: str | None = None,
        classes: Mapping[str, str] | None = None,
    ) -> Estimates:
        """From a profile; without one, asking is an error. *slo* and *classes* are as in `Settings`."""
        if classes and slo is None:
            raise BadInput("classes have an SLO, and the others none", where=f"{KEY}.classes", right='"slo": "3+1.5"')
        if profile is None:
            return cls(_unknown, _unknown, step=_unknown)
        from servetwin.profiles import load

        table = load(profile).tokens(kind)  # type: ignore[arg-type]
        if slo is None:
            return cls(table.prefill, table.decode, step=table.step)
        solo = table.solo_decode()
        own = {n: TokenDeadlines(*slo_scales(text), *solo, table.prefill) for n, text in (classes or {}).items()}
        usual = TokenDeadlines(*slo_scales(slo), *solo, table.prefill)
        due_of = TokenSLOByClass.of(usual, own) if own else usual
        return cls(table.prefill, table.decode, due_of, step=table.step)


def _unknown(*_: object) -> float:
    raise BadInput("the policy asks for an estimate, but no profile is given", where=KEY, right='"profile": NAME')


@dataclass
class StepLog:
    """One engine step as it happened; times in seconds on the monotonic clock, less *zero* of the scheduler.

    The policy was asked at *start*, vLLM's part of the scheduling began at *decided* and ended at *scheduled*; the
    tokens were there at *end*. *prefill* holds (id, tokens, context before), *decode* how many sequences decoded and
    *context* the sum of their contexts. *after* is when the step before it was over: with asynchronous scheduling
    that is later than *start*, because the policy is asked while that step runs. *contexts* are those of all that
    decode, one by one, where the scheduler was told to keep them. *chosen* are the ids of those that decode where not
    all that could do, *free* the KV blocks that were free when the step was scheduled.
    """

    start: float
    decided: float
    scheduled: float
    end: float
    prefill: list[tuple[int, int, int]]
    decode: int
    context: int
    preempted: list[int]
    dropped: list[int]
    waiting: int
    running: int
    after: float = 0.0
    contexts: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    free: int | None = None

    @property
    def began(self) -> float:
        """When the engine turned to it: when the policy was asked, or when the step before it was over."""
        return max(self.start, self.after)

    @property
    def seconds(self) -> float:
        """Its period: what it kept the engine busy, from `began` to its tokens."""
        return self.end - self.began

    @property
    def tokens(self) -> int:
        """The tokens that it computes."""
        return sum(n for _, n, _ in self.prefill) + self.decode

    @property
    def behind(self) -> bool:
        """Whether it was decided while the step before it ran."""
        return self.after > self.start


class _Policed(SeesPrefixes):
    """vLLM's scheduler, steered by a policy. Use `PolicyScheduler`, which takes the base class that vLLM would have
    taken."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self.settings = Settings.of(vllm_config.additional_config)
        self.zero = time.monotonic()
        self.keep_log = False
        self.keep_contexts = False
        self.log: list[StepLog] = []
        self.tasks: dict[str, TokenTask] = {}
        self.times: dict[int, list[float]] = {}  # task id -> when its tokens came out, while the log is kept
        self._flying: deque[StepLog] = deque()  # decided, their tokens not there yet; in order
        self._over = 0.0  # when the last step's tokens were there
        self._new: list[TokenTask] = []
        self._requests: dict[TokenTask, Any] = {}
        self._ids = 0
        self._asked: StepLog | None = None
        self.idle_until: float | None = None
        self.policy_object: TokenPolicy | None = None
        self.watchdog = Watchdog(self.settings.name, self.settings.longest)
        if self.settings.policy is not None:  # of a server: as long as it lives
            self.watchdog.start()
        self.stage = Pipeline.chain(Module("decode", loop=True)).stages([["decode"]])[0]
        self.view: TokenView
        self.install(self.settings)

    def install(
        self, settings: Settings, *, policy: TokenPolicy | None = None, estimates: Estimates | None = None
    ) -> None:
        """Begin anew with another policy. Only an engine without requests may be asked to."""
        if self.requests:
            raise ServeTwinError(f"{len(self.requests)} requests are in the engine: its policy cannot be changed")
        if self._flying:
            raise ServeTwinError(f"{len(self._flying)} steps are in flight: the policy cannot be changed")
        self.settings = settings
        estimates = estimates or Estimates.load(settings.profile, settings.kind, settings.slo, settings.classes)
        limits = EngineLimits(
            blocks=self.blocks,
            block_size=self.block_size,
            watermark=float(getattr(self.scheduler_config, "watermark", 0.0)),
            max_batched_tokens=self.max_num_scheduled_tokens,
            max_sequences=self.max_num_running_reqs,
            whole_prompt=bool(getattr(self.scheduler_config, "scheduler_reserve_full_isl", False)),
            enable_prefix_caching=self.caches_prefixes,
        )
        self.view = TokenView(
            self.stage,
            limits,
            estimate_prefill=estimates.prefill,
            estimate_decode=estimates.decode,
            estimate_step=estimates.step,
            slo=estimates.slo,
            name=settings.name,
        )
        self.watchdog.name, self.watchdog.longest = settings.name, settings.longest
        self.watchdog.begin()
        if policy is None and settings.policy is not None:
            policy = find(settings.policy)(**dict(settings.params or {}))
        self.policy_object = policy
        self._asked = None
        self.tasks.clear()
        self.times.clear()
        self.log.clear()
        self._new.clear()
        self._requests.clear()
        self._over = 0.0
        self.idle_until = None
        self.begin_cache()
        # Books of every task are kept: what each said when the policy was first shown it.
        self.shown = closed(self.view)
        self._said: dict[TokenTask, tuple[Any, ...]] = {}
        if policy is not None:
            with self.watchdog.asking(policy, "start"):
                policy.start(self.shown)

    def let_go(self) -> None:
        """Forget the policy, by which the run broke: what is in the engine goes without asking it."""
        self.policy_object = self._asked = None
        self._said.clear()

    def now(self) -> float:
        """Seconds since `zero`."""
        return time.monotonic() - self.zero

    @property
    def in_flight(self) -> int:
        """Steps that are decided and whose tokens are not there yet: two at most, with synchronous scheduling none
        between two calls of the engine."""
        return len(self._flying)

    # -- what comes and goes ----------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        extra = told(request)
        self._ids += 1
        number = int(extra.get("id", self._ids))
        if "arrival" in extra:
            arrival = extra["arrival"] - self.zero
        else:  # vLLM stamps by the wall clock
            arrival = request.arrival_time - time.time() + time.monotonic() - self.zero
        limit = int(extra.get("limit", request.max_tokens))
        predicted = int(extra["predicted"]) if "predicted" in extra else None
        asked = TokenRequest(
            number,
            arrival,
            {"decode": (request.num_prompt_tokens, limit)},
            priority=extra.get("priority", getattr(request, "priority", 0)),
            tenant=extra.get("tenant", ""),
            weight=float(extra.get("weight", 1.0)),
            class_name=extra.get("class", ""),
            predicted={"decode": predicted} if predicted is not None else None,
        )
        task = self.task(asked, self.stage, self.now(), None, request.num_prompt_tokens, limit)
        self.tasks[request.request_id] = task
        self._requests[task] = request
        self._new.append(task)
        if self.keep_log:
            self.times[number] = []

    def grant(self, budget: float) -> None:
        """The request that came last brings that much slack along, in seconds."""
        self._new[-1].budget = budget

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Somebody ends requests: the front end (a client went away), or this class for the policy."""
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        gone = [self.tasks[i] for i in (list(self.tasks) if ids is None else ids) if i in self.tasks]
        ended = super().finish_requests(request_ids, finished_status)
        for task in gone:
            known = self._forget(task)
            if known and self.policy_object is not None and self._asked is None:
                with self.watchdog.asking(self.policy_object, "removed"):
                    self.policy_object.removed(task, self.shown, self.now())
        return ended

    def _forget(self, task: TokenTask) -> bool:
        """Take *task* out of the view; says whether the policy knew it."""
        request = self._requests.pop(task, None)
        said = self._said.pop(task, None)
        if said is not None and said != _says(task):
            raise compared([self.policy_object], f"task {task.id}", SAYS, _says(task), said)
        if request is not None:
            self.tasks.pop(request.request_id, None)
        if task in self._new:
            self._new.remove(task)
            return False
        self.view.waiting.pop(task, None)
        self.view.running.pop(task, None)
        return request is not None

    # -- a step -----------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        log = self._asked = StepLog(self.now(), 0.0, 0.0, 0.0, [], 0, 0, [], [], 0, 0)
        policy, view = self.policy_object, self.view
        self._look()
        self._take_in(log)
        log.waiting, log.running = len(view.waiting), len(view.running)
        if policy is None:
            log.decided = self.now()
            output = self.schedule_freely(*args, **kwargs)
        else:
            with self.watchdog.asking(policy, "decide"):
                step = policy.decide(self.shown, log.start)
            if type(step) is not Step:
                check_decision(policy, step, Step)
            check_time(policy, step.idle_until)
            orders = self._translate(step, log)
            log.decided = self.now()
            output = self.obey(orders, *args, **kwargs)
        self._note(output, log)
        self.cache_changes()
        log.scheduled = self.now()
        self._asked = None
        self.idle_until = None
        if output.total_num_scheduled_tokens:
            self.watchdog.stepped(bool(log.preempted))
            if policy is not None:
                self.watchdog.check_progress(policy, len(view.running), len(view.waiting))
            self._flying.append(log)
        elif log.dropped or log.preempted:
            self.watchdog.worked(bool(log.preempted))
        elif policy is not None:
            self.idle_until = NEVER if step.idle_until is None else step.idle_until
            if self.requests and not self._flying:
                self.watchdog.idled(policy, log.start, self.idle_until, len(self.requests))
                time.sleep(NAP)
        return output

    @property
    def waits_for_arrivals(self) -> bool:
        """Whether the policy wants to be asked again when something arrives, and not before, with requests there."""
        return bool(self.idle_until == NEVER and self.requests and not self._flying)

    def _look(self) -> None:
        """Bring the tasks of the running up to date with vLLM's requests."""
        view, tasks = self.view, self.tasks
        decoding = context = 0
        for request in self.running:
            task = tasks[request.request_id]
            # Here no clock of an engine of ours counts for the task: what it reads can be set as it is.
            computed = task.base_computed = request.num_computed_tokens
            count = task.base_generated = request.num_output_tokens + request.num_output_placeholders
            if count and computed == task.prompt + count - 1 and not exhausted(request):
                decoding += 1
                context += computed
        view.decoding, view.context, view.free_blocks = decoding, context, self.free_blocks

    def _take_in(self, log: StepLog) -> None:
        """Offer what has come to the policy."""
        new, self._new = self._new, []
        for task in new:
            task.admitted = log.start
            if self.policy_object is not None:
                self._said[task] = _says(task)
            with self.watchdog.asking(self.policy_object, "admit"):
                taken = self.policy_object is None or self.policy_object.admit(task, self.shown, log.start)
            if taken is True or check_kept(self.policy_object, taken):
                self.view.waiting[task] = None
            else:
                log.dropped.append(task.id)
                self._abort([self._requests[task]])

    def _translate(self, step: Step, log: StepLog) -> Orders:
        """*step* in vLLM's requests."""
        requests, policy = self._requests, self.policy_object
        for chunk in step.prefill:
            check_item(policy, "prefill", chunk)
        log.dropped += [t.id for t in step.drop]
        try:
            drop = [requests[t] for t in step.drop]  # type: ignore[index]
            orders = Orders(
                [(requests[t], n) for t, n in step.prefill],
                None if step.decode is ALL else [requests[t] for t in step.decode],  # type: ignore[union-attr]
                [requests[t] for t in step.preempt],
                drop,
                plain=step.decode is ALL
                and not step.preempt
                and not drop
                and self.view.decoding == len(self.running),
            )
        except KeyError as error:
            what = f"it names {error.args[0]!r}, which is not at {self.view.name}"
            raise fault(policy, what, "tasks of its view") from None
        except (TypeError, AttributeError):
            check_decision(policy, step, Step)
            raise
        return orders

    def _note(self, output: Any, log: StepLog) -> None:
        """Carry what the step does over to the view, and write it down."""
        view, tasks = self.view, self.tasks
        waiting, running = view.waiting, view.running
        for request in self.obeyed.preempted:
            task = tasks[request.request_id]
            running.pop(task, None)
            task.computed = 0
            task.preemptions += 1
            waiting[task] = None
            waiting.move_to_end(task, last=False)
            log.preempted.append(task.id)
        context = 0
        decoding: list[int] = []
        requests = self.requests
        contexts = log.contexts if self.keep_contexts else None
        for rid, tokens in output.num_scheduled_tokens.items():
            task = tasks[rid]
            before = requests[rid].num_computed_tokens - tokens
            if tokens == 1 and before >= task.prompt and task in running:
                decoding.append(task.id)
                context += before
                if contexts is not None:
                    contexts.append(before)
            else:
                log.prefill.append((task.id, tokens, before))
                if task in waiting:
                    del waiting[task]
                    running[task] = None
                    if task.started is None:
                        task.started = log.start
        log.decode, log.context, log.free = len(decoding), context, self.free_blocks
        if len(decoding) != view.decoding:  # else it is all that can
            log.chosen = decoding

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self.cache_changes()
        if not scheduler_output.total_num_scheduled_tokens:
            return outputs
        log = self._flying.popleft()  # vLLM takes steps in in the order in which it decided them
        log.after, self._over = self._over, self.now()
        self.idle_until = None  # said before, with asynchronous scheduling
        log.end = end = self._over
        view, tasks, times = self.view, self.tasks, self.times
        for out in outputs.values():
            for one in out.outputs:
                task = tasks.get(one.request_id)
                if task is None:
                    continue
                if one.new_token_ids:
                    self.watchdog.tokens_came()
                    if task.first_token is None:
                        task.first_token = end
                    if task.id in times:
                        times[task.id].extend([end] * len(one.new_token_ids))
                if one.finish_reason is not None:
                    task.finished = end
                    self._forget(task)
        view.last_step = log.seconds
        if not log.prefill:
            view.last_decode = view.last_step
        if self.keep_log:
            self.log.append(log)
        return outputs


#: What a task says from when a policy is first shown it.
SAYS_ITSELF = ("id", "prompt", "limit", "predicted", "arrival", "deadline", "budget", "queued", "admitted")
#: And its request.
ASKS = ("priority", "tenant", "weight", "class_name")
SAYS = (*SAYS_ITSELF, *ASKS)


def _says(task: TokenTask) -> tuple[Any, ...]:
    request = task.request
    return (*[getattr(task, name) for name in SAYS_ITSELF], *[getattr(request, name) for name in ASKS])


#: The policy idles until something arrives.
NEVER = float("inf")


class SyncPolicyScheduler(_Policed):
    """For synchronous scheduling: a step is decided when the one before it is over."""


class AsyncPolicyScheduler(_Policed, SteeredAsync):
    """For asynchronous scheduling: a step is decided while the one before it runs."""


class PolicyScheduler:
    """What vLLM is given: becomes the one of the two above whose base class vLLM would have chosen itself.

    A subclass of the wrong one would cost most of the speed of asynchronous scheduling.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = AsyncPolicyScheduler if vllm_config.scheduler_config.async_scheduling else SyncPolicyScheduler
        return chosen(vllm_config, *args, **kwargs)
