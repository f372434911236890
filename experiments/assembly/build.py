"""From an experiment to something that runs: the only place that knows how the parts are wired together."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from servetwin.core import (
    SLO,
    AbsoluteSLO,
    BadInput,
    BatchWorker,
    FactorSLO,
    Recorder,
    Request,
    RunFolder,
    ServingLoop,
    Stage,
    Summary,
    Worker,
    WorkerView,
)
from servetwin.core.errors import Stopped
from servetwin.core.group_metrics import StepQuality
from servetwin.core.llm import TokenPolicy, TokenSLO
from servetwin.core.llm.serving.worker import TokenWorker, kind_of_view
from servetwin.core.serving.acting_worker import ActingWorker
from servetwin.core.serving.sessions import Session, SessionClient
from servetwin.core.serving.worker import Scaling
from servetwin.core.slo import ClassSLO

from ..placement import cards
from ..provenance.file_digests import code_digest
from ..provenance.policy_code import as_loaded, load_again
from ..registry import autoscaler_registry, policy_registry, router_registry
from ..registry.policy_errors import policies_answer
from ..spec import yaml_io
from ..spec.experiment import Experiment, FixedSLO, RelativeSLO
from ..spec.loading import load_profiles, not_measured
from ..spec.sessions import ClosedLoop
from ..splitting import apart
from ..workload import sessions
from ..workload.requests import about, check_resolution, other_images, read_trace, requests
from . import engine_options, groups, handovers, stated
from .costs import Meter, costs
from .llm_workers import ENDLESS, check_engine, contexts, deadlines_of, host_ahead, prepare, settings_of, slowed
from .pipeline import call_times, estimates, make_pipeline, make_pool, seconds_alone, told_similar, wiring
from .replicas import expanded
from .shapes import alone_by_shape, check_sizes, estimates_by_shape, shaped_worker, shapes_of, told

if TYPE_CHECKING:
    from servetwin.profiles import Profile
    from servetwin.sim import SimExecutor

R = TypeVar("R", bound=Recorder)
#: Gets the recorder of a run before the first request comes, to look at while the run goes.
Watch = Callable[[Recorder], None]


@dataclass
class Run:
    """An experiment that is ready to run, once."""

    experiment: Experiment
    loop: ServingLoop
    executor: SimExecutor
    source: Iterator[Request]
    recorder: Recorder
    #: Where requests are sent when others have ended; *source* is empty then.
    sessions: Iterator[Session] | None = None
    #: Hears how long devices compute, where they have prices.
    meter: Meter | None = None
    #: Gives the workers anew, and what they compute on.
    remake: apart.Remake = field(kw_only=True)
    #: Gives the requests of the experiment anew; None: others are sent.
    redraw: Callable[[], Iterator[Request]] | None = field(default=None, kw_only=True)

    def play(self, *, columns: bool = True) -> Summary:
        """Serve all requests, in simulated time; *columns* is as in `servetwin.sim.llm.columns.play`, and without it
        each engine goes step by step with the others."""
        from servetwin.sim.llm.columns import play
        from servetwin.sim.llm.look_ahead_lane import may_look_ahead

        if columns and len(self.loop.serving) == 1 < len(self.loop.workers):
            if apart.why_whole(self) is None:
                return self._play_apart()
            if apart.side_by_side(self):
                return self.told({})
        stops = self.experiment.system.stop_after is not None  # tokens of steps in flight would count, or not
        alone = self.sessions is None  # else who ends at one engine may bring a request to another
        self.executor.looks_ahead = columns and not stops and alone and may_look_ahead(self.loop)
        with policies_answer(self.loop.policies()):
            source = self.source if self.experiment.system.stop_after is None else self._source_then_stop()
            look_over, close_books = self.loop.look_over, self.loop.close_books  # before any policy could change them
            try:
                if self.sessions is not None:
                    send_sessions(self.experiment, self.loop, self.sessions)
                    self.executor.run_until_idle()
                else:
                    play(self.loop, self.executor, source, columns=columns)
                look_over()
            except BaseException:
                close_books()
                raise
        self.recorder.summary.held = self.executor.watch.told(self.recorder.summary.sizes)
        self.loop.check_ended()
        return self.told(self.meter.busy() if self.meter is not None else {})

    def told(self, busy: dict[str, float]) -> Summary:
        """The summary, with what is told of a run besides what was counted; *busy*: for how long devices computed."""
        summary = self.recorder.summary
        fleet, held_for = self.loop.fleet, None
        if fleet is not None:
            held_for = tell_fleet(fleet, self.recorder)
        if self.executor.cards:
            summary.input["placement"] = cards.told(self.executor.swaps)
            if isinstance(self.recorder, RunFolder):
                cards.write(self.executor.swaps, self.recorder.folder)
        if used := groups.usage(self.loop):
            summary.input["device_groups"] = used
        if self.meter is not None:
            moving = cards.seconds_moving(self.executor.swaps, summary.last_end) if self.executor.cards else None
            summary.input["cost"] = costs(self.experiment, summary.as_dict(), busy, held_for, moving)
        return summary

    def _play_apart(self) -> Summary:
        """Likewise, a replica after the other."""
        summary = self.recorder.summary
        with policies_answer(self.loop.policies()):
            each = apart.OneByOne(self)
            busy = each.play(summary)
        summary.held = each.executor.watch.told(summary.sizes)
        return self.told(busy)

    def send(self, requests: Iterable[Request]) -> None:
        """Let *requests*, in order of arrival, be those that are sent, at their times."""
        self.source, self.sessions, self.redraw = iter(requests), None, None

    def planned(self) -> Iterator[Request]:
        """The requests that are sent, in order of arrival; where each is sent when others have ended, session by
        session, as if all had been answered."""
        return self.source if self.sessions is None else (r for s in self.sessions for r in s.planned())

    def _source_then_stop(self) -> Iterator[Request]:
        """The requests; when the last has been sent, the end of the run is planned."""
        yield from self.source
        after = self.experiment.system.stop_after
        if after is not None:
            self.executor.call_at(self.executor.now() + after, self.loop.stop)


def tell_fleet(fleet: Scaling, recorder: Recorder) -> dict[str, float] | None:
    """Put what *fleet* tells of a run that is over into the summary of *recorder*, and into its folder; gives for how
    many seconds each device was held (None: all the time)."""
    summary = recorder.summary
    lasted = summary.first_arrival or 0.0, summary.last_end
    summary.input[fleet.called] = fleet.summary(*lasted)
    if isinstance(recorder, RunFolder):
        lines = [json.dumps(line) for line in fleet.lines()]
        (recorder.folder / f"{fleet.called}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return fleet.held(*lasted)


def send_sessions(experiment: Experiment, loop: ServingLoop, sessions: Iterator[Session]) -> SessionClient:
    """Let the *sessions* of *experiment* be sent to *loop*, on its executor's clock."""
    after = experiment.system.stop_after

    def stop() -> None:
        if after is not None:
            loop.call_at(loop.now() + after, loop.stop)

    return SessionClient(loop, sessions, when_over=stop, **how_sent(experiment))


def how_sent(experiment: Experiment) -> dict[str, Any]:
    """What `servetwin.core.serving.sessions.Conversations` takes besides the sessions."""
    load = experiment.workload
    said: dict[str, Any] = {"after_drop": load.sessions.after_drop} if load.sessions is not None else {}
    if isinstance(load.arrivals, ClosedLoop):
        said |= {"clients": load.arrivals.clients, "ramp": load.arrivals.ramp}
    return said


def build(experiment: Experiment, recorder: Recorder | None = None) -> Run:
    """Wire up *experiment*. Raises `BadInput` if a profile, a policy or a trace does not fit it."""
    from servetwin.sim.measured import TimeOptions, measured_executor

    recorder, replicas = recorder or Recorder(), experiment.deployment.replicas
    if experiment.deployment.repeated:
        experiment = expanded(experiment)
    profiles = load_profiles(experiment)
    pipeline, plan = make_pipeline(experiment.pipeline, experiment.name), experiment.deployment
    stages = pipeline.stages(list(dict.fromkeys(tuple(w.modules) for w in plan.workers)))
    if experiment.workload.shaped:
        check_sizes(shapes_of(experiment), profiles)
    slo = make_slo(experiment, profiles)
    workers = make_workers(experiment, stages, profiles, slo)
    if experiment.pipeline.llms:
        prepare(recorder, experiment, workers)
    trace = read_trace(experiment) if experiment.workload.recorded is not None else None
    check_resolution(experiment, trace, profiles)
    limits = contexts(experiment, profiles) if experiment.pipeline.llms else {}
    load = experiment.workload
    cut_or_shared = any(lengths.truncate or lengths.prefix is not None for lengths in load.lengths.values())
    # Else all are drawn whole, by one seed, and there is nothing to tell.
    if trace is not None or cut_or_shared or experiment.seed or load.says_more:
        recorder.summary.input = about(experiment, trace, limits)
    if any(stage.actions is not None for stage in stages):
        recorder.summary.quality = StepQuality()
    if load.shaped:
        recorder.summary.input["shapes"] = told(workers)
    if other := other_images(trace, profiles):
        recorder.summary.input["trace"]["other_images"] = other
    optional = any(w.engine is not None and w.engine.options for w in experiment.deployment.workers)
    acts = any(module.actions for module in experiment.pipeline.modules.values())
    stating = (plan.handover, plan.autoscaler, plan.cards, plan.faults)
    states = optional or acts or any(x is not None for x in stating)
    if said := [*not_measured(profiles.values()), *(stated.stands_on(experiment, profiles) if states else ())]:
        recorder.summary.input["basis"] = said
    if experiment.time.unmeasured == "shared":
        _check_memory(experiment, workers, profiles)
    options = {name: value for name, value in experiment.time if name != "host"}
    if options["session"] is not None:
        options["session"] = datetime.fromisoformat(options["session"])
    specs = {spec.name or spec.modules[0]: spec for spec in experiment.deployment.workers}

    def computing(workers: list[Worker]) -> SimExecutor:
        return measured_executor(
            profiles,
            workers,
            TimeOptions(**options),
            seed=experiment.seed,
            calls={name: call_times(s, experiment.seed) for name, s in specs.items() if s.calls},
            preparing={
                name: s.engine.preparing.seconds for name, s in specs.items() if s.engine and s.engine.preparing
            },
            tables=engine_options.tables(experiment, profiles) if optional else None,
            steps=engine_options.steps(experiment, profiles) if optional else None,
            swaps=engine_options.swaps(experiment, profiles) if optional else None,
        )

    executor = computing(workers)
    executor.breaks = plan.faults is not None
    if plan.cards is not None:
        cards.share(experiment, profiles, workers, executor)

    def remake() -> tuple[list[Worker], SimExecutor]:
        others = make_workers(experiment, stages, profiles, slo)
        return others, computing(others)

    with policies_answer([worker.policy for worker in workers]):  # each is asked to start
        wired = wiring(experiment, stages, workers, profiles, replicas)
        loop = ServingLoop(stages, workers, executor, recorder, **wired)
    meter = Meter(workers, plan.counted) if plan.prices is not None else None
    if meter is not None:
        loop.hear_batch = meter.hearing(loop.hear_batch)
    if not load.in_turns:
        redraw = partial(requests, experiment, slo.seconds, trace, contexts=limits)
        return Run(experiment, loop, executor, redraw(), recorder, meter=meter, remake=remake, redraw=redraw)
    if cut := sessions.about(experiment, slo.seconds, trace, limits):
        recorder.summary.input["sessions"] = cut
    made = sessions.sessions(experiment, slo.seconds, trace, contexts=limits)
    return Run(experiment, loop, executor, iter(()), recorder, made, meter, remake=remake)


@as_loaded()
def run(experiment: Experiment, folder: Path | None = None, watch: Watch | None = None) -> Summary:
    """Run *experiment* in simulation; with *folder*, leave its records there. *watch* gets the recorder before the
    first request comes."""
    if folder is None:
        return build(experiment, watched(Recorder(), watch)).play()
    build(experiment)  # what is wrong shows before anything is written
    load_again()  # what that left in classes of policies is none of the run's
    recorder = watched(folder_for(experiment, folder, describe(experiment)), watch)
    with said_where(folder), closing(recorder):
        return build(experiment, recorder).play()


def watched(recorder: R, watch: Watch | None) -> R:
    """*recorder*, once *watch* has it."""
    if watch is not None:
        watch(recorder)
    return recorder


def folder_for(experiment: Experiment, folder: Path, meta: dict[str, Any]) -> RunFolder:
    """A new run folder that holds *meta* and the resolved *experiment*. Raises `BadInput` if it cannot be made."""
    try:
        recorder = RunFolder(folder, meta)
        recorder.add_file("experiment.yaml", yaml_io.write(experiment.as_dict()))
    except FileExistsError:
        if not folder.is_dir():
            what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file"
            raise BadInput(f"this is {what}, not a folder", where=str(folder), right="another --out") from None
        unfinished = "" if (folder / "summary.json").exists() else ", one that did not come to its end"
        what, right = f"the folder holds a run already{unfinished}", "another --out"
        raise BadInput(what, where=str(folder), right=f"{right}, or remove it" if unfinished else right) from None
    except OSError as error:
        raise BadInput(error.strerror or "cannot be written", where=str(folder), right="a folder of yours") from None
    return recorder


@contextmanager
def closing(recorder: Recorder) -> Iterator[None]:
    """Close a run folder when the run is over: with a summary if it came to its end, without if it broke."""
    complete = False
    try:
        yield
        complete = True
    finally:
        if isinstance(recorder, RunFolder):
            if complete:
                _note_reads(recorder.folder)
            recorder.close(complete=complete)


def _note_reads(folder: Path) -> None:
    """Add to the ``meta.json`` in *folder* the files that policies read while they decided."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    known = meta.get("policy_files", {})
    now = {n: files for n in meta.get("policies", {}) if (files := policy_registry.files_of(n))}
    if now != known:
        beside = path.with_name("meta.json.new")
        beside.write_text(json.dumps({**meta, "policy_files": {**known, **now}}, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)


@contextmanager
def said_where(folder: Path | None) -> Iterator[None]:
    """Let what a signal ends (Ctrl-C becomes a `Stopped`) say that its records are in *folder*."""

    def kept() -> str:
        there = folder is not None and (folder / "meta.json").exists()
        return f"; what was recorded is in {folder}" if there else ""

    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"interrupted{kept()}") from None
    except Stopped as stop:
        raise Stopped(f"{stop}{kept()}", stop.exit_code) from None


def make_slo(experiment: Experiment, profiles: dict[str, Profile]) -> SLO:
    """The experiment's SLO, and those of classes that have one of their own; a module's solo latency is that on the
    device of the first worker that serves it.

    Where the pipeline branches, it goes by the path that a request most likely takes.
    """
    specs = {"": experiment.slo}
    specs |= {n: experiment.slo_of(n) for n, own in experiment.workload.classes.items() if own.slo is not None}
    found: dict[str, AbsoluteSLO | FactorSLO] = {}
    for name, spec in specs.items():
        if isinstance(spec, FixedSLO):
            found[name] = AbsoluteSLO(spec.seconds)
        elif not isinstance(spec, RelativeSLO):
            found[name] = ENDLESS
        else:
            solo = seconds_alone(experiment, profiles, spec.base)
            likely = make_pipeline(experiment.pipeline, experiment.name).likely
            alone = alone_by_shape(experiment, profiles, spec.base) if experiment.workload.shaped else {}
            by_shape = {shape: {m: own[m] for m in likely if m in own} for shape, own in alone.items()}
            found[name] = FactorSLO(spec.factor, {m: solo[m] for m in likely if m in solo}, spec.constant, by_shape)
    usual = found.pop("")
    return ClassSLO(usual, found) if found else usual


def make_workers(experiment: Experiment, stages: list[Stage], profiles: dict[str, Profile], slo: SLO) -> list[Worker]:
    """The workers of the deployment, each with a policy of its own."""
    by_modules = {stage.modules: stage for stage in stages}
    llms = experiment.pipeline.llms
    others = any(spec.modules[0] not in llms for spec in experiment.deployment.workers)
    estimated = estimates(experiment, profiles) if others else {}
    by_shape = estimates_by_shape(experiment, profiles) if experiment.workload.shaped else {}
    workers: list[Worker] = []
    for i, (spec, chosen) in enumerate(zip(experiment.deployment.workers, experiment.policies, strict=True)):
        stage = by_modules[tuple(spec.modules)]
        policy = policy_registry.make(chosen.name, chosen.params)
        if spec.modules[0] in llms:
            profile = profiles[spec.device or ""]
            settings = settings_of(spec, profile)
            policy = check_engine(experiment, spec, settings, profile, policy)
            measured = experiment.deployment.estimates == "measured"
            plans: Any = profile.tokens("measured" if measured else "scheduler", hold=experiment.time.hold)
            if spec.engine is not None and spec.engine.options:
                plans = engine_options.planned(spec, experiment, profiles, plans)
            promised = (profile,) if spec.role is None else handovers.profiles_by_role(experiment, spec, profiles)
            engine_view = kind_of_view(settings.limits)(
                stage,
                settings.limits,
                estimate_prefill=plans.prefill,
                estimate_decode=plans.decode,
                estimate_step=plans.step,
                slo=cast("TokenSLO | None", deadlines_of(experiment, *promised)),
                name=spec.name or "",
            )
            ahead = settings.asynchronous or settings.limits.pipeline_parallel_size > 1
            host = host_ahead(profile, costs=experiment.time.costs) if ahead else None
            if experiment.time.host is not None:
                host = slowed(host, profile, experiment.time)
            role = spec.role or "both"
            engine = TokenWorker(stage, policy, engine_view, device=spec.device or "", host=host, role=role)
            if spec.engine is not None and spec.engine.speculative_config is not None:
                engine.speculation = engine_options.speculation_of(spec.engine.speculative_config, experiment.seed)
            if spec.engine is not None and spec.engine.pipeline_parallel is not None:
                engine.stages = engine_options.stages_of(spec.engine.pipeline_parallel, experiment, profile)
            workers.append(engine)
            continue
        if isinstance(policy, TokenPolicy):
            what = f"{chosen.name} is a policy for language models, and {'+'.join(spec.modules)} is none"
            raise BadInput(what, where="policy", right="neustream, clockwork, edf or fcfs")
        if spec.device is None or spec.limit is None:
            workers.append(make_pool(spec, i, stage, policy, estimated[i], slo.factor))
            continue
        if spec.gpus is not None:
            workers.append(groups.group_worker(experiment, i, stage, profiles, slo.factor))
            continue
        if by_shape:
            shaped = shaped_worker(experiment, i, stage, profiles, by_shape, slo.factor)
            workers.append(told_similar(shaped, experiment))
            continue
        view = WorkerView(stage, estimated[i], limit=spec.limit, name=spec.name or "", slo_factor=slo.factor)
        kind = BatchWorker if stage.actions is None else ActingWorker
        worker = kind(stage, policy, view, device=spec.device, intake=spec.intake)
        workers.append(worker if stage.actions is None else told_similar(worker, experiment))
    return workers


def _check_memory(experiment: Experiment, workers: list[Worker], profiles: dict[str, Profile]) -> None:
    """Raise `BadInput` if engines share a device, nobody measured them together, and one does not say how many KV
    blocks it has there: those of its profile are all that fit if it is alone."""
    from servetwin.sim.device_sharing import unmeasured

    own = {worker: spec.engine for worker, spec in zip(workers, experiment.deployment.workers, strict=True)}
    for pair in unmeasured(workers, profiles):
        for worker in pair:
            engine = own[worker]
            if isinstance(worker, TokenWorker) and (engine is None or engine.blocks is None):
                what = f"{pair[0].name} and {pair[1].name} share {worker.device}, whose memory each would have whole"
                right = "for each the KV blocks that are left to it"
                raise BadInput(what, where=f"deployment.workers: engine.blocks of {worker.name}", right=right)


def time_shared(experiment: Experiment) -> list[str]:
    """A line for each pair of workers that share a device in time because their overlap was not measured."""
    from servetwin.sim.device_sharing import told as told_of
    from servetwin.sim.device_sharing import unmeasured

    if experiment.time.unmeasured != "shared":
        return []
    experiment = expanded(experiment)
    profiles = load_profiles(experiment)
    pipeline = make_pipeline(experiment.pipeline, experiment.name)
    stages = pipeline.stages(list(dict.fromkeys(tuple(w.modules) for w in experiment.deployment.workers)))
    workers = make_workers(experiment, stages, profiles, make_slo(experiment, profiles))
    return told_of(unmeasured(workers, profiles))


def stands_on(experiment: Experiment) -> list[str]:
    """A line for each profile of *experiment* that was not measured here, and for each number that it states."""
    profiles = load_profiles(experiment)
    return [*not_measured(profiles.values()), *stated.stands_on(experiment, profiles)]


def policy_not_measured(experiment: Experiment) -> list[str]:
    """A line for each module whose profile has times by policy, and none for the policy that serves it here."""
    from servetwin.profiles.tables.costs import DECIDING_OF, GAP_OF

    if not experiment.time.costs:
        return []
    said: dict[str, None] = {}
    experiment = expanded(experiment)
    profiles = load_profiles(experiment)
    for worker, policy in zip(experiment.deployment.workers, experiment.policies, strict=True):
        names = profiles[worker.device].costs if worker.device is not None else {}
        own = [kind.__name__.lower() for kind in policy_registry.find_policy(policy.name).__mro__]
        for loop in (m for m in worker.modules if experiment.pipeline.modules[m].loop):
            for cost, what in ((GAP_OF, "between iterations"), (DECIDING_OF, "to decide")):
                stem = cost(loop, "")
                known = sorted(name.removeprefix(stem) for name in names if name.startswith(stem))
                if known and not set(own) & set(known):
                    by = f"measured under {', '.join(known)}, not under {own[0]}"
                    said[f"time {what} of {loop}: {by}: it is simulated with the profile's default"] = None
    return [*said]


def describe(experiment: Experiment) -> dict[str, Any]:
    """The content of ``meta.json``: all that is needed to run the experiment again, and to trust it."""
    trace, profiles = read_trace(experiment), load_profiles(experiment)
    said = about(experiment, trace, contexts(experiment, profiles))
    shared, other_policies = time_shared(experiment), policy_not_measured(experiment)
    texts = {n: text for n in policies_used(experiment) if (text := policy_registry.code_of(n).text)}
    return {
        **({"time_shared": shared} if shared else {}),
        **({"policy_not_measured": other_policies} if other_policies else {}),
        "kind": "simulated",
        "experiment": experiment.as_dict(),
        "experiment_digest": experiment.digest(),
        "seed": experiment.seed,
        "profiles": {p.name: p.digest for p in profiles.values()},
        "policies": {n: policy_registry.code_digest(n) for n in policies_used(experiment)},
        **({"routers": routers} if (routers := routers_of_users(experiment)) else {}),
        "policy_files": {n: files for n in policies_used(experiment) if (files := policy_registry.files_of(n))},
        **({"policy_texts": texts} if texts else {}),
        "code": code_digest(),
        "trace": trace.digest if trace is not None else None,
        **({"input": said} if said else {}),
        "versions": {
            "servetwin": own_version(),
            "python": platform.python_version(),
            "numpy": _installed("numpy"),
        },
    }


@cache
def _installed(package: str) -> str:
    """Its version, which takes a quarter of a millisecond to find."""
    return version(package)


def own_version() -> str:
    """Our version, also where ServeTwin is used from its sources and is not installed."""
    try:
        return _installed("servetwin")
    except PackageNotFoundError:
        return "not installed"


def policies_used(experiment: Experiment) -> list[str]:
    """The names of all policies of *experiment*."""
    return list(dict.fromkeys(policy.name for policy in (experiment.policy, *experiment.policies)))


def routers_of_users(experiment: Experiment) -> dict[str, str]:
    """Hashes of the code of the routers, and of the autoscaler, that do not come with ServeTwin, by name."""
    names = dict.fromkeys(spec.name for spec in experiment.deployment.routings.values())
    codes = {name: router_registry.code_of(name) for name in names}
    scaler = experiment.deployment.autoscaler
    if scaler is not None:
        codes[f"autoscaler {scaler.name}"] = autoscaler_registry.code_of(scaler.name)
    return {name: code.digest() for name, code in codes.items() if not code.ours}
