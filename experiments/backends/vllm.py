"""The experiment that a simulation would play, served by vLLM in this process.

The same policy object decides, and the records are those of a simulation, with ``real.json`` beside them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Recorder, Request, Summary, Worker
from servetwin.core.installed import not_installed
from servetwin.core.llm import TokenRequest
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.profiles.llm.launch_times import over_profile

from ..assembly import build
from ..assembly.llm_workers import prepare
from ..assembly.same_run import engine_changed, inputs_changed
from ..provenance.policy_code import as_loaded
from ..registry.policy_errors import policies_answer
from ..spec.experiment import Experiment
from .diffusion import Plan, Say, recording, write_report

if TYPE_CHECKING:
    from servetwin.profiles import Profile
    from servetwin.real.vllm.engine import EngineOptions, VllmEngine
    from servetwin.real.vllm.plan import Planned, Run, SessionSender

#: Sizes for which steps are captured as CUDA graphs, in tokens.
GRAPHS = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(288, 513, 32))
LARGER = tuple(range(576, 1025, 64))
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass
class VllmReport:
    """What a run says beside its records, times in milliseconds."""

    summary: Summary
    lateness_ms: dict[str, float]
    gap_ms: dict[str, float]
    engine: dict[str, Any]
    steps: int
    decide_ms: dict[str, float]
    schedule_ms: dict[str, float]
    intake_ms: dict[str, float]
    moves: int | None = None  #: of the thread that launches steps, to less disturbed cores, where it looks for them
    host: dict[str, Any] | None = None  #: how fast its host was, beside the profile (`_host`)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``real.json``."""
        found = {k: v for k, v in vars(self).items() if k not in ("summary", "moves", "host")}
        return found | {k: v for k, v in (("moves", self.moves), ("host", self.host)) if v is not None}


class VllmBackend:
    """Serves experiments of one language model with vLLM; the engine stays from one run to the next, until a run
    needs another one.

    *model* is what to serve where the profile does not tell (a name such as opt-13b, or a folder), *eager* goes
    without CUDA graphs, *foreign* lets a profile of another device pass. *asynchronous* is vLLM's asynchronous
    scheduling (None: as the profile was measured).
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        eager: bool = False,
        foreign: bool = False,
        asynchronous: bool | None = None,
    ) -> None:
        self.model = model
        self.eager = eager
        self.foreign = foreign
        self.asynchronous = asynchronous
        self.engines: dict[EngineOptions, VllmEngine] = {}

    @as_loaded()
    def ask(
        self,
        url: str | Sequence[str],
        experiment: Experiment,
        folder: Path | None = None,
        say: Say | None = None,
        *,
        key: str | None = None,
    ) -> VllmReport:
        """Send the requests of *experiment* to the server at *url*, which has a policy of its own (or vLLM's), and
        wants *key* if it wants an API key. Of several servers there is one for each worker of the deployment, in
        their order, and its router says to which a request goes.

        Records and summary are as those of `run`, but without steps, which only the server knows.
        """
        from servetwin.real.vllm.http_client import serve_turns, serve_url
        from servetwin.real.vllm.records import record

        say = say or (lambda _: None)
        urls = [url] if isinstance(url, str) else list(url)
        plan = Plan(experiment, diffusion=False, in_turns=True)
        sender: SessionSender | None
        at: dict[int, Any] = {}
        engine: dict[str, Any] = {"url": urls[0]}
        say(f"sending {len(plan.requests)} requests to {' and '.join(urls)}")
        if len(urls) > 1:
            run, workers, at, engine, sender = self._ask_several(urls, plan, key)
        else:
            _, workers, _ = plan.system()
            only = self._only(workers, experiment)
            caching = only.view.limits.enable_prefix_caching
            sender = sender_of(plan, only)
            if sender is not None:
                run = serve_turns(urls[0], sender, model=self.model, key=key, caching=caching)
            else:
                run = serve_url(urls[0], planned_of(plan, only), model=self.model, key=key, caching=caching)
        worker = workers[0]
        assert isinstance(worker, TokenWorker)
        recorder = Recorder()
        if folder is not None:
            meta = {**build.describe(experiment), "kind": "real", "engine": engine}
            recorder = build.folder_for(experiment, folder, meta)
        prepare(recorder, plan.experiment, workers)
        with recording(recorder, folder):
            sent: Any = {r.id: r for r in plan.requests} if sender is None else sender.requests
            record(run, worker, sent, recorder, at)
        report = VllmReport(recorder.summary, _spread(run.lateness), {}, engine, 0, {}, {}, {})
        if folder is not None:
            write_report(folder, report)
        return report

    def _ask_several(
        self, urls: list[str], plan: Plan, key: str | None
    ) -> tuple[Run, list[Any], dict[int, Any], dict[str, Any], SessionSender | None]:
        """The run of *plan* on the servers at *urls*, its workers, which of them served each request, what is to be
        told of the servers, and who sent the turns of sessions, if there are any."""
        from servetwin.real.vllm.routed_client import Front, named, serve_urls, serve_urls_in_turns

        _, workers, wiring = plan.system(_asked)
        by_name = named(urls, workers, plan.experiment.name)
        check_limits(workers)
        front = Front(workers, wiring["router"])  # type: ignore[arg-type]
        shown: Any = {r.id: r for r in plan.requests}
        first: Any = workers[0]
        caching = any(worker.view.limits.enable_prefix_caching for worker in front.workers)
        how: dict[str, Any] = {"model": self.model, "key": key, "caching": caching}
        sender = sender_of(plan, first, caching=caching)
        with policies_answer([worker.policy for worker in workers]):
            if sender is not None:
                run = serve_urls_in_turns(by_name, sender, front, **how)
            else:
                run = serve_urls(by_name, planned_of(plan, first, caching=caching), front, shown, **how)
        counts = {worker.name: sum(one is worker for one in front.at.values()) for worker in workers}
        return run, list(workers), dict(front.at), {"urls": by_name, "requests": counts}, sender

    def kept_for(self, experiment: Experiment) -> EngineOptions:
        """The engine that serves *experiment*: runs that have the same follow each other."""
        plan = Plan(experiment, diffusion=False, in_turns=True)
        worker = self._only(plan.system()[1], experiment)
        ((_, profile),) = plan.profiles.items()
        return self._options(worker, profile)

    def differing(self, meta: Mapping[str, Any], experiment: Experiment) -> list[str]:
        """What is not as it was when the run of *meta* was made."""
        import vllm

        options = self.kept_for(experiment).as_dict()
        return [*inputs_changed(meta, experiment), *engine_changed(meta, options, vllm.__version__)]

    @as_loaded()
    def run(self, experiment: Experiment, folder: Path | None = None, say: Say | None = None) -> VllmReport:
        """Serve *experiment*; with *folder*, leave its records there.

        Raises `BadInput` before anything is written.
        """
        say = say or (lambda _: None)
        plan = Plan(experiment, diffusion=False, in_turns=True)
        _, workers, _ = plan.system()
        worker = self._only(workers, experiment)
        require_vllm()
        from servetwin.real.vllm.records import record
        from servetwin.real.vllm.scheduler import Estimates, Settings

        ((_, profile),) = plan.profiles.items()
        planned = planned_of(plan, worker)
        options = self._options(worker, profile)
        engine = self._engine(options, profile, say)
        view = worker.view
        estimates = Estimates(view.estimate_prefill, view.estimate_decode, view.slo, view.step_seconds)
        recorder = Recorder()
        if folder is not None:
            meta = {**build.describe(experiment), "kind": "real", "engine": engine.describe()}
            recorder = build.folder_for(experiment, folder, meta)
        prepare(recorder, plan.experiment, workers)
        say(f"warming up, then serving {len(planned)} requests")
        sender = sender_of(plan, worker)
        by_id: Any = {r.id: r for r in plan.requests} if sender is None else sender.requests
        with recording(recorder, folder), policies_answer([worker.policy]):
            engine.serve(_warm_up(planned), Settings(name=view.name), policy=None)
            run = engine.serve(
                planned if sender is None else (),
                Settings(name=view.name),
                sender=sender,
                policy=worker.policy,
                estimates=estimates,
                stop_after=experiment.system.stop_after,
                stopped=lambda run: record(run, worker, by_id, recorder),
            )
            record(run, worker, by_id, recorder)
        report = _report(run, recorder.summary, engine, profile)
        if folder is not None:
            write_report(folder, report)
        return report

    def _only(self, workers: list[Any], experiment: Experiment) -> TokenWorker:
        if len(workers) != 1 or not isinstance(workers[0], TokenWorker):
            what = f"{len(workers)} workers" if len(workers) != 1 else "a pipeline without a language model"
            raise BadInput(
                f"vLLM cannot serve {what}", where=experiment.name, right="one engine: a pipeline of one llm module"
            )
        check_limits(workers)
        return workers[0]

    def _options(self, worker: TokenWorker, profile: Profile) -> EngineOptions:
        from servetwin.real.vllm.engine import EngineOptions, bytes_per_token

        data, limits = profile.token_data, worker.view.limits
        gpu = profile.data.device.kind == "gpu"
        ahead = worker.host is not None and worker.host.ahead
        options = EngineOptions(
            model=self.model or data.architecture,
            dtype=DTYPES.get(profile.data.precision, "float16"),  # type: ignore[arg-type]
            max_model_len=data.engine.max_model_len,
            max_batched_tokens=limits.max_batched_tokens,
            max_sequences=limits.max_sequences,
            block_size=limits.block_size,
            gpu_memory_utilization=data.engine.gpu_memory_utilization,
            tensor_parallel=data.tensor_parallel,
            asynchronous=ahead if self.asynchronous is None else self.asynchronous,
            enable_prefix_caching=limits.enable_prefix_caching,
        )
        if gpu and not self.eager and data.engine.compiled:
            return replace(options, compiled=True)
        if gpu and not self.eager:
            return replace(options, graphs=GRAPHS + LARGER, graphs_for="all")
        if not gpu:  # vLLM keeps one block for itself
            tokens = (limits.blocks + 1) * limits.block_size
            whole = tokens * bytes_per_token(options.model, options.dtype)
            return replace(options, kv_bytes=whole // options.tensor_parallel)  # of each device
        return options

    def _engine(self, options: EngineOptions, profile: Profile, say: Say) -> VllmEngine:
        from servetwin.real.vllm.engine import VllmEngine, device_name

        wanted, there = profile.data.device, device_name()
        if not self.foreign and (wanted.kind == "gpu") != (there != "cpu"):
            what = f"the profile {profile.name} is of {wanted.name}, but this machine serves on {there}"
            raise BadInput(what, where="deployment.devices", right="a profile of this device, or --any-device")
        if options not in self.engines:
            self.close()  # two models need not fit beside each other
            say(f"starting vLLM with {options.model} on {there}")
            self.engines[options] = VllmEngine(options)
        return self.engines[options]

    def close(self) -> None:
        """Let go of the engine that served last, and of its memory."""
        while self.engines:
            self.engines.popitem()[1].close()


def _asked(worker: Worker) -> Worker:
    """In the place of an engine one that a server has."""
    from servetwin.real.vllm.routed_client import ServerWorker

    if not isinstance(worker, TokenWorker):
        return worker
    return ServerWorker(worker.stage, worker.policy, worker.view, device=worker.device)


def require_vllm() -> None:
    """Raise `BadInput` unless vLLM is installed, and torch with it."""
    missing = not_installed("vllm", "torch")
    if missing:
        are = "is" if len(missing) == 1 else "are"
        what = f"language models need {' and '.join(missing)}, which {are} not installed"
        raise BadInput(what, right="an environment with vLLM: pip install 'servetwin[llm]' (docs/guides/vllm.md)")


def check_limits(workers: Sequence[Worker], *, alone: bool = True) -> None:
    """Raise `BadInput` where an engine is asked for that vLLM's is not, or, if it is not *alone* (but in a pipeline,
    in a process of its own), is not here."""
    for i, worker in enumerate(workers):
        if not isinstance(worker, TokenWorker):
            continue
        limits = worker.view.limits
        if limits.preemption != "recompute" or limits.stamp != "sent" or limits.headroom:
            right = "preemption: recompute, stamp: sent, headroom: 0"
            raise BadInput("vLLM's V1 engine is not like that", where=f"deployment.workers.{i}.engine", right=right)
        if limits.enable_prefix_caching and not alone:
            what = "prefixes are cached in engines that serve a language model alone, not in those of a pipeline"
            where = f"deployment.workers.{i}.engine.enable_prefix_caching"
            raise BadInput(what, where=where, right="false; or a pipeline of one llm module, with --backend vllm")
        if limits.keep_freed:
            what = "vLLM keeps what a preempted request left in its prefix cache, and only there"
            where = f"deployment.workers.{i}.engine.keep_freed"
            raise BadInput(what, where=where, right="false; or enable_prefix_caching: true")


def planned_of(plan: Plan, worker: TokenWorker, *, caching: bool | None = None) -> list[Planned]:
    """The requests of *plan* as a client sends them; with *caching* (None: if the engine of *worker* caches prefixes)
    their prompts begin alike as the workload says."""
    caching = worker.view.limits.enable_prefix_caching if caching is None else caching
    return [planned_as(request, worker, caching=caching) for request in plan.requests]


def planned_as(request: Request, worker: TokenWorker, *, caching: bool) -> Planned:
    """*request* as a client sends it."""
    from servetwin.real.vllm.plan import Planned, said_of

    name = worker.stage.loop or worker.stage.name
    assert isinstance(request, TokenRequest)
    tokens: Any = request.tokens[name]
    prompt, limit = tokens
    output: Any = (request.outputs or {})[name]
    said = said_of(request, request.predicted.get(name) if request.predicted is not None else None)
    content = request.prefix.get(name) if caching and request.prefix is not None else None
    begins = content.begins if content is not None else None
    return Planned(request.id, request.arrival, prompt, min(output, limit), limit, said, begins)


def sender_of(plan: Plan, worker: TokenWorker, *, caching: bool | None = None) -> SessionSender | None:
    """What sends the sessions of *plan*, where requests are sent when others have ended; *caching* as in
    `planned_of`."""
    if not plan.experiment.workload.in_turns:
        return None
    from servetwin.real.vllm.plan import SessionSender

    name = worker.stage.loop or worker.stage.name
    caching = worker.view.limits.enable_prefix_caching if caching is None else caching
    planned = partial(planned_as, worker=worker, caching=caching)
    return SessionSender(plan.sessions(), name, planned, build.how_sent(plan.experiment))


def _warm_up(planned: list[Planned]) -> list[Planned]:
    """A few of them at once: the first of everything is slow."""
    return [replace(p, id=i, arrival=0.0, output=min(p.output, 8)) for i, p in enumerate(planned[:16])]


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ms = np.array(seconds) * 1e3
    found = {"median": np.median(ms), "mean": ms.mean(), "p99": np.percentile(ms, 99), "max": ms.max()}
    return {k: round(float(v), 4) for k, v in found.items()}


def _report(run: Run, summary: Summary, engine: VllmEngine, profile: Profile) -> VllmReport:
    from servetwin.real.vllm.profiling.fitting.async_fit import between

    steps = run.steps
    if engine.options.asynchronous:  # the step after is under way already: until the next one is asked for
        gaps = [seconds for _, seconds in between(steps)]
    else:
        gaps = [b.start - a.end for a, b in itertools.pairwise(steps)]
    # Where the engine had nothing to do between two steps is no gap.
    usual = statistics.median(gaps) if gaps else 0.0
    return VllmReport(
        summary,
        _spread(run.lateness),
        _spread([g for g in gaps if g < 20 * usual]),
        engine.describe(),
        len(steps),
        _spread([s.decided - s.start for s in steps]),
        _spread([s.scheduled - s.start for s in steps]),
        _spread(run.intake),
        run.moves,
        _host(run, profile),
    )


def _host(run: Run, profile: Profile) -> dict[str, Any] | None:
    """How many times as long as in *profile* the host took to launch the steps of *run*; None if it is not known."""
    if not run.launches:
        return None
    rows = [(at.tokens, at.sequences, at.launched, at.sampled) for at in run.launches]
    asked = [step.scheduled - step.start for step in run.steps]
    graphs = int(profile.token_data.engine.graph_tokens or 0)
    factors = over_profile(rows, (statistics.median(asked), statistics.fmean(asked)), profile.costs, graphs)
    return {"profile": profile.name, "over_profile": factors} if factors else None
