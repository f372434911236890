"""Everything of vLLM V1 that is not its public interface, in one place.

vLLM lets a scheduler class be put in (``scheduler_cls``) but says that the interface is not public. What this project
relies on is listed in `NEEDED`, and `problems` says what of it the installed vLLM lacks; the rest of ``real`` reaches
into vLLM only through `Steered`.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servetwin.core import ServeTwinError
from vllm.v1.core.block_pool import BlockHashToBlockMap, BlockPool
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

#: The versions that this was tried with: the first on GPUs and a CPU, the others on a CPU.
TRIED = ("0.25.1", "0.27.1", "0.32.0")
#: What the queue beside ``waiting`` is called: until 0.30 it holds all that could not be scheduled when their turn
#: came, since 0.31 only those of them that have KV blocks.
SECOND_QUEUE = next(
    (n for n in ("kv_holding_waiting", "skipped_waiting") if f"self.{n} = " in inspect.getsource(Scheduler.__init__)),
    "kv_holding_waiting",
)
#: Attributes that bound how many requests run at once: since 0.31 those of the model runner and those of the
#: scheduler are told apart.
CAPS = ("max_num_running_reqs", "max_num_active_reqs")
#: Class -> names that must stand in its source or among its attributes. Instance attributes are looked for in the
#: source of ``__init__``, because no instance exists before an engine runs.
NEEDED: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # class: (methods and properties, instance attributes)
    Scheduler: (
        ("schedule", "update_from_output", "finish_requests", "add_request", "_preempt_request"),
        (
            "waiting",
            SECOND_QUEUE,
            "running",
            "requests",
            "max_num_running_reqs",
            "max_num_scheduled_tokens",
            "kv_cache_manager",
            "scheduler_config",
            "block_size",
        ),
    ),
    Request: (
        ("num_tokens", "num_output_tokens", "is_finished", "get_finished_reason"),
        (
            "request_id",
            "arrival_time",
            "num_prompt_tokens",
            "num_computed_tokens",
            "num_output_placeholders",
            "max_tokens",
            "num_preemptions",
            "sampling_params",
            "client_index",
            "status",
        ),
    ),
    BlockPool: (
        ("get_num_free_blocks", "reset_prefix_cache"),
        ("free_block_queue", "cached_block_hash_to_block", "blocks"),
    ),
    FreeKVCacheBlockQueue: ((), ("fake_free_list_head", "fake_free_list_tail")),
    BlockHashToBlockMap: ((), ("_cache",)),
    EngineCore: (("step", "step_with_batch_queue"), ("batch_queue", "step_fn", "scheduler", "model_executor")),
}
#: Arguments that are passed by place or by name.
SIGNATURES: dict[Any, tuple[str, ...]] = {
    Scheduler._preempt_request: ("self", "request", "timestamp"),
    Scheduler.finish_requests: ("self", "request_ids", "finished_status"),
    Scheduler.update_from_output: ("self", "scheduler_output", "model_runner_output"),
}


def problems() -> list[str]:
    """What the installed vLLM lacks of what is relied on here; empty if all is there."""
    found = []
    for cls, (methods, attributes) in NEEDED.items():
        found += [f"{cls.__name__}.{name} is gone" for name in methods if not hasattr(cls, name)]
        source = inspect.getsource(vars(cls)["__init__"])
        found += [f"{cls.__name__} no longer sets self.{n}" for n in attributes if f"self.{n}" not in source]
    for function, names in SIGNATURES.items():
        has = tuple(inspect.signature(function).parameters)
        if has[: len(names)] != names:
            found.append(f"{function.__qualname__} takes {', '.join(has)} (expected: {', '.join(names)}, ...)")
    if not issubclass(FCFSRequestQueue, deque):
        found.append("FCFSRequestQueue is no deque any more")
    if not issubclass(AsyncScheduler, Scheduler):
        found.append("AsyncScheduler is no Scheduler any more")
    if not hasattr(RequestStatus, "FINISHED_ABORTED"):
        found.append("RequestStatus.FINISHED_ABORTED is gone")
    fields = set(inspect.signature(EngineCoreOutput).parameters)
    found += [
        f"EngineCoreOutput takes no {n}" for n in ("request_id", "new_token_ids", "finish_reason") if n not in fields
    ]
    return found


def check() -> None:
    """Raise `ServeTwinError` unless the installed vLLM has what is relied on."""
    found = problems()
    if found:
        import vllm

        raise ServeTwinError(f"vLLM {vllm.__version__} does not fit the adapter: {'; '.join(found)}")


def steps_ahead(core: Any) -> bool:
    """Whether the engine core decides a step while the one before it runs."""
    return core.batch_queue is not None and isinstance(core.scheduler, AsyncScheduler)


def steps_queued(core: Any) -> int:
    """Steps, empty ones among them, that the engine core has given to the device and not taken in yet."""
    return len(core.batch_queue or ())


def fill_kv(core: Any) -> None:
    """Put random numbers into all memory for keys and values: kernels that read zeros run cooler, and faster."""
    core.model_executor.collective_rpc(_fill)


def _fill(worker: Any) -> None:
    for tensor in worker.model_runner.kv_caches:
        if tensor.is_floating_point() and tensor.element_size() > 1:
            tensor.normal_()


def stand_before(scheduler: Any, request_id: str, tokens: int) -> None:
    """Let so many *tokens* of a request that waits count as computed, as those do whose keys and values another
    engine has sent: it gets blocks for them, with what is in the memory."""
    scheduler.requests[request_id].num_computed_tokens = tokens


def free_line(pool: Any) -> Iterator[Any]:
    """The blocks of *pool*, vLLM's ``BlockPool``, that nobody uses, in the order in which it takes them."""
    queue = pool.free_block_queue
    block, end = queue.fake_free_list_head.next_free_block, queue.fake_free_list_tail
    while block is not None and block is not end:
        yield block
        block = block.next_free_block


def held_by(pool: Any, key: Any) -> Sequence[Any]:
    """The blocks of *pool* whose content has the hash *key*, the one that would be shared first."""
    # Of equal blocks vLLM's `get_one_block` tells the first alone.
    found = vars(pool.cached_block_hash_to_block)["_cache"].get(key)
    return () if found is None else tuple(found.values()) if isinstance(found, dict) else (found,)


def forget_prefixes(scheduler: Any) -> None:
    """Let the prefix cache of *scheduler*, which has no requests, be as that of an engine that has just started.
    Raises `ServeTwinError` if vLLM cannot."""
    if not scheduler.kv_cache_manager.reset_prefix_cache():
        raise ServeTwinError("vLLM does not empty its prefix cache: blocks are still in use")


def queues_of(core: Any) -> list[Any]:
    """The message queues between the engine *core* and workers that are processes of their own."""
    executor = core.model_executor
    queues = [getattr(executor, "rpc_broadcast_mq", None), *getattr(executor, "response_mqs", ())]
    return [queue for queue in queues if queue is not None]


def close_sockets(queues: Sequence[Any]) -> None:
    """Close the sockets of *queues* that are not used any more. vLLM leaves that to the collection of garbage, which
    may come to their context first, and then waits for ever for them to be closed."""
    import zmq

    for queue in queues:
        holders = [queue, *(held for held in vars(queue).values() if hasattr(held, "__dict__"))]
        sockets = [s for holder in holders for s in vars(holder).values() if isinstance(s, zmq.Socket)]
        for context in {socket.context for socket in sockets}:
            context.destroy(linger=0)  # a queue has one of its own


def own_class(scheduler: Any) -> type:
    """vLLM's own class beneath *scheduler*: what would schedule in its place."""
    return next(cls for cls in type(scheduler).__mro__ if cls.__module__.startswith("vllm."))


@dataclass
class Orders:
    """One step, in vLLM's own requests.

    *prefill* lists (request, tokens) in order, running requests whose prompt is partly computed among them; *decode*
    is None for all that decode. *preempt* goes back to the head of the queue, *drop* is aborted. *plain* says that
    all that run decode, and shall: nothing needs to be looked for among them.
    """

    prefill: Sequence[tuple[Request, int]] = ()
    decode: Sequence[Request] | None = None
    preempt: Sequence[Request] = ()
    drop: Sequence[Request] = ()
    plain: bool = False
    found: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Obeyed:
    """What `Steered.obey` saw while vLLM made the step: who lost their KV blocks, and how often orders had to be
    trimmed because vLLM's scheduler cannot express the chunk sizes asked for."""

    preempted: list[Request] = field(default_factory=list)
    trimmed: int = 0


def pending(request: Any) -> int:
    """Tokens to compute before the next token of *request* comes out; those of a step in flight count as there."""
    return int(request.num_tokens + request.num_output_placeholders - request.num_computed_tokens)


def exhausted(request: Any) -> bool:
    """Whether a step in flight brings the last token that *request* may have (asynchronous scheduling): vLLM does
    not schedule it again, and it stays among the running until that step is over."""
    flying = request.num_output_placeholders
    return bool(
        flying > 0 and request.num_computed_tokens + 2 - flying >= request.num_prompt_tokens + request.max_tokens
    )


def limits(wanted: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
    """How to make vLLM schedule these numbers of tokens.

    *wanted* holds (pending, tokens) in vLLM's order. vLLM gives each request what it has pending, but no more than a
    threshold common to all, nor than what is left of the step's budget. Returns (threshold or 0, budget, how many of
    the list can be had so); what cannot is for the next step.

    >>> limits([(1, 1), (100, 60)])
    (0, 61, 2)
    >>> limits([(100, 16), (100, 16), (9, 9)])
    (16, 41, 3)
    >>> limits([(1, 1), (100, 32), (100, 16), (100, 100)])
    (32, 49, 3)
    >>> limits([(100, 16), (100, 100)])
    (0, 16, 1)
    """
    last = len(wanted) - 1
    cut = next((i for i, (has, tokens) in enumerate(wanted) if tokens < has), last)
    if cut >= last:  # the budget alone will do
        return 0, sum(tokens for _, tokens in wanted), len(wanted)
    threshold = wanted[cut][1]
    possible = cut + 1
    if all(tokens <= threshold for _, tokens in wanted[:cut]):
        for has, tokens in wanted[cut + 1 :]:
            if tokens > threshold:
                break
            possible += 1
            if threshold > tokens < has:
                break
    if possible == cut + 1:
        threshold = 0
    return threshold, sum(tokens for _, tokens in wanted[:possible]), possible


class Steered(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, made to do what it is told: it still allocates, preempts for want of memory, and builds its
    outputs; what it may look at in a step is chosen by masking its queues.
    """

    waiting: Any
    running: list[Request]
    max_num_running_reqs: int
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check()
        super().__init__(*args, **kwargs)
        if self.scheduler_config.policy != "fcfs":
            raise ServeTwinError(
                f"vLLM's own policy must be fcfs under this scheduler, not {self.scheduler_config.policy}"
            )
        self.obeyed = Obeyed()
        self._dropped: list[Request] = []

    # -- what a view needs ------------------------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def caches_prefixes(self) -> bool:
        """Whether vLLM's prefix cache is on."""
        return bool(self.kv_cache_manager.enable_caching)

    @property
    def blocks(self) -> int:
        """All KV blocks that requests can have (vLLM keeps one for itself)."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    def queued(self) -> Iterator[Request]:
        """The waiting requests in the order of vLLM's queues."""
        yield from getattr(self, SECOND_QUEUE)
        yield from self.waiting

    # -- a step -----------------------------------------------------------------------------------------

    def obey(self, orders: Orders, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM make the step that *orders* describe; arguments are those of its ``schedule``."""
        self.obeyed = Obeyed()
        if orders.drop:
            self._abort(orders.drop)
        if orders.preempt:
            now = time.monotonic()
            for request in orders.preempt:
                self.running.remove(request)
                self._preempt_request(request, now)
        with self._masked(self.at_their_turn(orders)):
            return super().schedule(*args, **kwargs)

    def at_their_turn(self, orders: Orders) -> Orders:
        """What is left of *orders* to do, now that those it names have given their memory up."""
        return orders

    def schedule_freely(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own step."""
        self.obeyed = Obeyed()
        return super().schedule(*args, **kwargs)

    def _preempt_request(self, request: Request, timestamp: float, *args: Any, **kwargs: Any) -> None:
        self.obeyed.preempted.append(request)
        super()._preempt_request(request, timestamp, *args, **kwargs)

    def _abort(self, requests: Sequence[Request]) -> None:
        """End *requests*; the front end is told with this step's outputs, or it would wait for them for ever."""
        self.finish_requests([r.request_id for r in requests], RequestStatus.FINISHED_ABORTED)
        self._dropped += requests

    @contextlib.contextmanager
    def _masked(self, orders: Orders) -> Iterator[None]:
        """Show vLLM only what the step is to hold; put everything back afterwards, in the old order."""
        waiting, second, running = self.waiting, getattr(self, SECOND_QUEUE), self.running
        caps = {name: getattr(self, name) for name in CAPS if hasattr(self, name)}
        budget = self.max_num_scheduled_tokens
        config = self.scheduler_config
        threshold = config.long_prefill_token_threshold

        chunks = {r.request_id: n for r, n in orders.prefill}
        decode = None if orders.decode is None else {r.request_id for r in orders.decode}
        shown: list[Request] = []
        wanted: list[tuple[int, int]] = []
        if orders.plain:
            shown = list(running)
        for request in () if orders.plain else running:
            rid, has = request.request_id, pending(request)
            if chunks and rid in chunks:
                shown.append(request)
                wanted.append((has, chunks.pop(rid)))
            elif has == 1 and (decode is None or rid in decode) and not exhausted(request):
                shown.append(request)
                wanted.append((1, 1))
        fresh = [r for r, _ in orders.prefill if r.request_id in chunks]
        found = orders.found
        wanted += [(pending(r) - found.get(r.request_id, 0), chunks[r.request_id]) for r in fresh]
        limit, tokens, possible = limits(wanted) if wanted else (0, 0, 0)
        if orders.plain:
            tokens += len(shown)
            possible += len(shown)
        if possible < len(shown) + len(fresh):
            self.obeyed.trimmed = len(shown) + len(fresh) - possible
            fresh = fresh[: max(0, possible - len(shown))]
            shown = shown[:possible]
        known = {r.request_id for r in shown}
        hidden = len(running) - len(shown)

        self.waiting = type(waiting)(fresh)
        setattr(self, SECOND_QUEUE, type(second)())
        self.running = list(shown)
        for name, cap in caps.items():
            setattr(self, name, cap - hidden)
        self.max_num_scheduled_tokens = min(budget, tokens)
        config.long_prefill_token_threshold = limit
        try:
            yield
        finally:
            for name, cap in caps.items():
                setattr(self, name, cap)
            self.max_num_scheduled_tokens = budget
            config.long_prefill_token_threshold = threshold
            left = [*self.waiting, *getattr(self, SECOND_QUEUE)]
            offered = {r.request_id for r in fresh}
            lost = [r for r in left if r.request_id not in offered]  # preempted just now: to the head
            gone = offered - {r.request_id for r in left}
            for queue in (waiting, second):
                out = [r for r in queue if r.request_id in gone] if gone else []
                if out:
                    queue.remove_requests(out)
            for request in reversed(lost):
                waiting.prepend_request(request)
            self.waiting = waiting
            setattr(self, SECOND_QUEUE, second)
            if hidden:
                away = {r.request_id for r in lost}
                admitted = [r for r in self.running if r.request_id not in known]
                self.running = [r for r in running if r.request_id not in away] + admitted

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._dropped:
            to = outputs.setdefault(request.client_index, EngineCoreOutputs())
            to.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason()
                )
            )
        self._dropped = []
        return outputs


class SteeredAsync(Steered, AsyncScheduler):  # type: ignore[misc]
    """The same over vLLM's scheduler for asynchronous scheduling, where a step is decided while the one before it
    still runs."""
