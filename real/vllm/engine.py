"""vLLM's engine inside this process, and the runs and measurements that are made with it.

One process, one step at a time: arrivals come from a client in a process of its own (an open loop, see `client`), are
taken in between two steps, and every step is timed. Policies can be changed between runs.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from servetwin.core import BadInput, ServeTwinError
from servetwin.core.errors import Stopped
from servetwin.core.llm import TokenPolicy
from servetwin.core.processes import temporary_folders

from ..client import END, PACKET, Client
from ..cpu_affinity import pinned_core
from .plan import KEY, Planned, Run, Served, SessionSender, prompt_ids

#: What vLLM has to be told before it is imported: one process, no network, no statistics sent anywhere.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
#: Seconds from planning a run until its clock stands at 0: the client must be ready by then.
LEAD = 0.05
#: Seconds to wait at most before the engine is asked again whether it has something to do.
LOOK = 0.002
#: Seconds in which an engine must have given up what it was told to give up.
PATIENCE = 30.0

#: A model of two layers, for a CPU.
TINY = {"layers": 2, "hidden": 64, "heads": 2, "feed_forward": 128, "vocabulary": 512, "positions": 2048}
#: Names of such models, by family.
TINIES = {"tiny": "opt", "tiny-llama": "llama"}


@dataclass(frozen=True)
class EngineOptions:
    """How vLLM is started.

    *model* is a name of ``profiles/llm/models.yaml`` ("opt-13b") or "tiny", with random weights, or a folder with a
    model, whose weights are random if there is nothing but its ``config.json``. *graphs* lists the batch sizes for
    which decode steps are captured as CUDA graphs (none: eager); with *graphs_for* "all" steps with a prefill run as
    graphs too, padded to the next of those sizes. With *compiled* torch.compile and the graphs are vLLM's own, as it
    has them by default. *kv_bytes* fixes the memory for keys and values (None: what *gpu_memory_utilization*
    leaves). *asynchronous* is vLLM's asynchronous scheduling: a step is decided while the one before it runs. vLLM
    does that on GPUs by default, and not at all on CPUs. On a GPU the thread that launches steps looks for an
    undisturbed core (`servetwin.real.cpu_affinity`), unless *pinned_core* is False. The other names are vLLM's own;
    its prefix cache is off unless it is asked for here.
    """

    model: str = "tiny"
    dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    max_model_len: int = 2048
    max_batched_tokens: int = 2048
    max_sequences: int = 64
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_bytes: int | None = None
    graphs: tuple[int, ...] = ()
    graphs_for: Literal["decode", "all"] = "decode"
    compiled: bool = False
    asynchronous: bool = False
    tensor_parallel: int = 1
    seed: int = 0
    pinned_core: bool | None = None
    enable_prefix_caching: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What runs and profiles say of it: the prefix cache only where there is one."""
        said = asdict(self)
        if not self.enable_prefix_caching:
            del said["enable_prefix_caching"]
        return said


def prepare_environment() -> None:
    """Set what vLLM reads from the environment, where it is not set."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def is_built(name: str) -> bool:
    """Whether *name* is that of a model that is made here, with random weights, and not a folder with one."""
    from servetwin.profiles.llm.architectures import architectures

    return name in TINIES or name in architectures()


def model_config(name: str, dtype: str) -> dict[str, Any]:
    """The configuration file of a model of that name: of the OPT family by its name, or else of the Llama family."""
    if name in TINIES:
        shape = {**TINY, "kv_heads": TINY["heads"]}
    else:
        from servetwin.profiles.llm.architectures import architecture

        shape = architecture(name).model_dump()
    common = {
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "vocab_size": shape["vocabulary"],
        "max_position_embeddings": shape["positions"],
        "torch_dtype": dtype,
    }
    if TINIES.get(name, "opt" if name.startswith("opt-") else "llama") == "llama":
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "intermediate_size": shape["feed_forward"],
            "num_key_value_heads": shape["kv_heads"],
            "head_dim": shape.get("head_dim") or shape["hidden"] // shape["heads"],
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **common,
        }
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "word_embed_proj_dim": shape["hidden"],
        "ffn_dim": shape["feed_forward"],
        "do_layer_norm_before": True,
        "enable_bias": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "tie_word_embeddings": True,
        **common,
    }


def has_weights(folder: Path) -> bool:
    """Whether there are weights beside the configuration in *folder*."""
    return any(any(folder.glob(f"*.{ending}")) for ending in ("safetensors", "bin", "pt"))


def bytes_per_token(model: str, dtype: str) -> int:
    """Bytes that the keys and values of a token take, over all layers. *model* is a name or a folder."""
    width = {"float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    path = Path(model) / "config.json"
    config = model_config(model, dtype) if is_built(model) else json.loads(path.read_text())
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    wide = head * int(config.get("num_key_value_heads", heads))
    return 2 * int(config["num_hidden_layers"]) * wide * width


def device_name() -> str:
    """What vLLM would serve on: the name of the first GPU, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@dataclass
class _Progress:
    """How far a run has come. Times are in seconds on its clock, by the requests' ids, but for *stop_at*, which is on
    the machine's."""

    requests: list[Planned]
    sent: dict[int, float] = field(default_factory=dict)
    queued: dict[int, float] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    #: How long it took to hand each request to the engine.
    intake: list[float] = field(default_factory=list)
    #: How many the client has sent, and whether it has sent all.
    taken: int = 0
    closed: bool = False
    stop_at: float = float("inf")


class VllmEngine:
    """vLLM's engine with our scheduler, started once for many runs."""

    def __init__(self, options: EngineOptions, settings: Mapping[str, Any] | None = None) -> None:
        prepare_environment()
        try:
            import vllm
        except ImportError as error:
            raise BadInput(
                f"the vllm backend needs vLLM, which cannot be imported ({error})", right="see docs/guides/vllm.md"
            ) from None
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from .internals import steps_ahead
        from .launches.host_clock import HostClock
        from .scheduler import PolicyScheduler

        self.options = options
        self.version = vllm.__version__
        folder = options.model
        built = is_built(folder)
        if not built and not (Path(folder) / "config.json").is_file():
            raise BadInput(f"there is no model in {folder!r}", right="tiny, opt-13b, ..., or a folder with a model")
        if built:
            made = temporary_folders.make()
            weakref.finalize(self, temporary_folders.remove, made)
            folder = str(made)
            (Path(folder) / "config.json").write_text(json.dumps(model_config(options.model, options.dtype)))
        began = time.monotonic()
        more: dict[str, Any] = {} if options.compiled else {"enforce_eager": True}
        if options.graphs and not options.compiled:
            # CUDA graphs without torch.compile, which would take a minute on every new machine.
            more = {
                "compilation_config": {
                    "mode": 0,
                    "cudagraph_mode": "FULL" if options.graphs_for == "all" else "FULL_DECODE_ONLY",
                    "cudagraph_capture_sizes": list(options.graphs),
                }
            }
        if options.kv_bytes is not None:
            more["kv_cache_memory_bytes"] = options.kv_bytes
        with _stdout_with_a_number():
            self.engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=folder,
                    load_format="auto" if has_weights(Path(folder)) else "dummy",
                    skip_tokenizer_init=True,
                    dtype=options.dtype,
                    max_model_len=options.max_model_len,
                    max_num_batched_tokens=options.max_batched_tokens,
                    max_num_seqs=options.max_sequences,
                    block_size=options.block_size,
                    gpu_memory_utilization=options.gpu_memory_utilization,
                    tensor_parallel_size=options.tensor_parallel,
                    disable_custom_all_reduce=True,
                    async_scheduling=options.asynchronous,
                    enable_prefix_caching=options.enable_prefix_caching,
                    disable_log_stats=True,
                    seed=options.seed,
                    scheduler_cls=PolicyScheduler,
                    additional_config={KEY: dict(settings or {})},
                    **more,
                )
            )
        self.seconds_to_start = time.monotonic() - began
        #: Looks for a core on which nothing disturbs the thread that launches steps (on a CPU all cores compute).
        self.pinned = None if device_name() == "cpu" else pinned_core(options.pinned_core)
        self._undisturbed = False
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        #: Of engines that decide a step ahead: how long the launches of a run take.
        self.host_clock = HostClock(self.core) if options.asynchronous else None
        self.begin_prompts()
        if options.asynchronous and not steps_ahead(self.core):
            raise BadInput(
                f"vLLM {self.version} does not schedule asynchronously on {device_name()}",
                where="asynchronous",
                right="synchronous scheduling",
            )

    def describe(self) -> dict[str, Any]:
        """What a profile and the records of a run say of the engine and its device."""
        import torch

        cuda = torch.cuda.is_available()
        return {
            "vllm": self.version,
            "torch": torch.__version__,
            "device": device_name(),
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
            "blocks": self.scheduler.blocks,
            "block_size": self.scheduler.block_size,
            "seconds_to_start": round(self.seconds_to_start, 1),
            "options": self.options.as_dict(),
        }

    def close(self) -> None:
        """End the engine, and give its memory back. It serves no more."""
        from vllm.distributed import cleanup_dist_env_and_memory

        from .internals import close_sockets, queues_of

        queues = queues_of(self.core)
        self.engine.engine_core.shutdown()
        close_sockets(queues)
        del self.core, self.scheduler, self.engine
        cleanup_dist_env_and_memory()

    # -- requests ---------------------------------------------------------------------------------------

    def begin_prompts(self) -> None:
        """Prompts of a new run: where prefixes are cached, they begin alike as is said of them."""
        if not self.options.enable_prefix_caching:
            self.prompt_ids: Callable[[Planned], list[int]] = prompt_ids
            return
        from .prompts import Prompts

        self.prompt_ids = Prompts(self.engine.model_config.get_vocab_size()).ids

    def add(self, planned: Planned, sent: float) -> None:
        """Hand a request to the engine; *sent* is on the monotonic clock."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.engine.add_request(
            str(planned.id),
            {"prompt_token_ids": self.prompt_ids(planned) if planned.ids is None else [*planned.ids]},
            SamplingParams(
                max_tokens=planned.output,
                ignore_eos=True,
                detokenize=False,
                temperature=0.0,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={KEY: {**planned.told(), "arrival": sent}},
            ),
        )

    def step(self) -> list[Any]:
        """Let vLLM decide a step, and take one in. With asynchronous scheduling the first call only decides one, and
        each further one decides a step before it waits for the one before."""
        if self._undisturbed and self.pinned is not None:
            self.pinned.look()
        outputs: list[Any] = self.engine.step()
        return outputs

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """No garbage collection, which stops everything for milliseconds; and on a GPU an undisturbed core."""
        if self._undisturbed:
            yield
            return
        gc.collect()
        gc.disable()
        self._undisturbed = True
        if self.pinned is not None:
            self.pinned.enter()
        try:
            yield
        finally:
            if self.pinned is not None:
                self.pinned.leave()
            self._undisturbed = False
            gc.enable()

    def _client(self, due: Sequence[float]) -> Client:
        """A client, which may run on all cores: a process begins where the thread that starts it may run."""
        if self.pinned is None or not self._undisturbed:
            client = Client(due)
        else:
            self.pinned.leave()
            try:
                client = Client(due)
            finally:
                self.pinned.enter()
        client.channel.setblocking(False)
        return client

    def empty(self) -> None:
        """Abort whatever is left in the engine and let it clean up: afterwards nothing is in flight."""
        from .internals import steps_queued

        ids = list(self.engine.output_processor.request_states)
        if ids:
            self.engine.abort_request(ids, internal=True)
        # With asynchronous scheduling steps of requests that are gone may still be in flight.
        until = time.monotonic() + PATIENCE
        while self.engine.has_unfinished_requests() or self.scheduler.has_requests() or steps_queued(self.core):
            self.engine.step()
            if time.monotonic() > until:
                raise ServeTwinError(f"vLLM still has requests {PATIENCE} s after all were aborted")

    # -- a run ------------------------------------------------------------------------------------------

    def serve(
        self,
        requests: Sequence[Planned],
        settings: Any,
        *,
        sender: SessionSender | None = None,
        policy: TokenPolicy | None = None,
        estimates: Any = None,
        stop_after: float | None = None,
        stopped: Callable[[Run], None] | None = None,
    ) -> Run:
        """Send *requests* (by arrival) on their clock under the policy of *settings* until all have ended; or, with a
        *sender*, what that says, when it says.

        With *stop_after* whatever is left so many seconds after the last was sent fails. What ends the run early
        (Ctrl-C, `Stopped` by a signal, a step that breaks) is raised; *stopped* first hears of the run until then.
        """
        scheduler = self.scheduler
        self.empty()
        with scheduler.watchdog.watching():
            scheduler.install(settings, policy=policy, estimates=estimates)
        self.begin_prompts()
        scheduler.keep_log = True
        if len({r.id for r in requests}) < len(requests):
            raise BadInput("two requests have the same id")
        progress = _Progress([*requests])
        client = self._client([r.arrival for r in requests]) if sender is None else None
        try:
            with scheduler.watchdog.watching(), self.undisturbed(), self._timed():
                scheduler.zero = time.monotonic() + LEAD
                if client is not None:
                    client.begin(scheduler.zero)
                elif sender is not None:
                    sender.begin(self.prompt_ids)
                while not progress.closed or len(progress.ended) < progress.taken:
                    idle = not self.engine.has_unfinished_requests()
                    asleep, before = scheduler.idle_until is not None and not scheduler.in_flight, progress.taken
                    if idle or asleep:
                        self._wait(client, sender, idle, progress.closed)
                    if sender is None:
                        self._take_in(client, progress, stop_after)  # type: ignore[arg-type]
                    else:
                        self._take_due(sender, progress, stop_after)
                    if not self.engine.has_unfinished_requests():
                        continue
                    left = (
                        [task.id for task in scheduler.tasks.values()] if time.monotonic() > progress.stop_at else []
                    )
                    if left:
                        progress.ended |= dict.fromkeys(left, "failed")
                        break
                    if asleep and progress.taken == before and scheduler.now() < scheduler.idle_until:
                        none = progress.closed if sender is None else sender.next_time == float("inf")
                        if none and stop_after is None and scheduler.waits_for_arrivals:
                            raise scheduler.watchdog.stuck(scheduler.policy_object, len(scheduler.tasks))
                        continue
                    self._step_on(progress, sender)
        except (Exception, KeyboardInterrupt, Stopped) as problem:
            if stopped is not None:
                run = self._run(progress)
                run.reason = _reason(problem)
                stopped(run)
            scheduler.let_go()
            raise
        finally:
            if client is not None:
                client.close()
            scheduler.keep_log = False
        run = self._run(progress)
        self.empty()
        return run

    def _take_in(self, client: Client, progress: _Progress, stop_after: float | None) -> None:
        """Hand all that *client* has sent by now to the engine."""
        while True:
            try:
                packet = client.channel.recv(PACKET.size)
            except BlockingIOError:
                return
            if not packet:
                if not progress.closed:
                    of = f"{progress.taken} of {len(progress.requests)} requests"
                    raise ServeTwinError(f"the client ended after {of}")
                return
            number, at = PACKET.unpack(packet)
            if number == END:
                progress.closed = True
                if stop_after is not None:
                    progress.stop_at = time.monotonic() + stop_after
                return
            self._hand_over(progress.requests[number], at, progress)

    def _take_due(self, sender: SessionSender, progress: _Progress, stop_after: float | None) -> None:
        """Hand all that is due of *sender* to the engine."""
        for planned in sender.due(self.scheduler.now()):
            progress.requests.append(planned)
            self._hand_over(planned, self.scheduler.zero + planned.arrival, progress)
        if sender.over and not progress.closed:
            progress.closed = True
            if stop_after is not None:
                progress.stop_at = time.monotonic() + stop_after

    def _hand_over(self, planned: Planned, at: float, progress: _Progress) -> None:
        """Hand *planned*, which was sent then on the monotonic clock, to the engine."""
        zero, begun = self.scheduler.zero, time.monotonic()
        progress.taken += 1
        progress.sent[planned.id] = at - zero
        self.add(planned, at)
        after = time.monotonic()
        progress.queued[planned.id] = after - zero
        progress.intake.append(after - begun)

    def _step_on(self, progress: _Progress, sender: SessionSender | None) -> None:
        """Run a step, and note which requests have ended with it."""
        for out in self.step():
            if out.finished:
                number = int(out.request_id)
                aborted = out.outputs[0].finish_reason == "abort"
                progress.ended[number] = "dropped" if aborted else "finished"
                progress.ends[number] = now = self.scheduler.now()
                if sender is not None:
                    sender.ended(number, now, out.outputs[0].token_ids, answered=not aborted)

    def _run(self, progress: _Progress) -> Run:
        """What has been served until now; what has not ended has failed."""
        scheduler = self.scheduler
        preemptions: Counter[int] = Counter()
        for log in scheduler.log:
            preemptions.update(log.preempted)
        by_id = {request.id: request for request in progress.requests}
        served = [
            Served(
                number,
                at,
                by_id[number].prompt,
                by_id[number].output,
                progress.queued.get(number, at),
                progress.ended.get(number, "failed"),  # type: ignore[arg-type]
                scheduler.times.get(number, []),
                preemptions[number],
                progress.ends.get(number, scheduler.now()),
            )
            for number, at in progress.sent.items()
        ]
        lateness = [at - by_id[number].arrival for number, at in progress.sent.items()]
        run = Run(served, list(scheduler.log), lateness, progress.intake, scheduler.now())
        run.moves = self.pinned.moves if self.pinned is not None else None
        run.launches = self.host_clock.take() if self.host_clock is not None else []
        return run

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Watch how long launches take, while this lasts."""
        if self.host_clock is None:
            yield
            return
        self.host_clock.take()
        self.host_clock.watch(True)
        try:
            yield
        finally:
            self.host_clock.watch(False)

    def _wait(self, client: Client | None, sender: SessionSender | None, idle: bool, closed: bool) -> None:
        """Sleep until something arrives or the policy wants to be asked again; a GPU host watches the clock."""
        scheduler = self.scheduler
        until = float("inf") if idle else scheduler.idle_until
        if sender is not None:
            until = min(until, sender.next_time)
        left = min(LOOK, max(0.0, until - scheduler.now()))
        if left > 0:  # a channel whose other end is closed is always ready
            select.select([] if closed or client is None else [client.channel], [], [], left)


def _reason(problem: BaseException) -> str:
    """Why the requests fail that were live when *problem* came."""
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted"
    text = [*str(problem).strip().splitlines(), ""][0]
    return text if isinstance(problem, ServeTwinError | Stopped) else f"{type(problem).__name__}: {text}"


@contextmanager
def _stdout_with_a_number() -> Iterator[None]:
    """vLLM wants the file number of the standard output, which what a program put in its place may not have."""
    before = sys.stdout
    try:
        before.fileno()
    except (AttributeError, OSError, ValueError):
        sys.stdout = sys.__stdout__
    try:
        yield
    finally:
        sys.stdout = before
