"""The experiment that a simulation would play, served for real: the same stages, workers, policies and requests, on
devices of this machine.

`Backend` checks first and builds then: whatever does not fit (no torch, no GPU, a profile of another device, a
pipeline of which there are no modules) is said before a model is built and before anything is written. The records
are those of a simulation, with ``real.json`` beside them: how late the client was, what lay between iterations, and
how long they took by batch size.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from servetwin.core import BadInput, Pipeline, Recorder, Request, ServeTwinError, Stage, Worker
from servetwin.core.group_metrics import StepQuality
from servetwin.core.serving.sessions import Session

from ..assembly import build, engine_options, fleets, handovers
from ..assembly.llm_workers import contexts
from ..assembly.pipeline import make_pipeline, real_tools, wiring, without_tools
from ..assembly.replicas import expanded
from ..assembly.same_run import otherwise, weights_digest
from ..assembly.shapes import check_sizes, refuse, refuse_groups, shapes_of, told
from ..provenance.file_digests import path_digest
from ..provenance.policy_code import as_loaded
from ..registry.catalog import suggest
from ..registry.policy_errors import policies_answer
from ..spec import loading
from ..spec.experiment import Experiment
from ..workload.requests import read_trace, requests
from ..workload.sessions import sessions
from .over_profile import over_profile

if TYPE_CHECKING:
    from servetwin.profiles import Profile
    from servetwin.real import Kind, Report, Server

SAMPLERS = ("ddim", "euler", "dpm++2m", "flow-euler")
#: What of a loop's network can be compiled.
COMPILE = ("none", "blocks", "whole")

#: Hears what is being done.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """How modules are put on devices.

    *devices* are torch devices ("cpu", "cuda:1"), in the order of the experiment's or by name ("gpu1=cuda:1"); one
    alone is for all. Left out, the experiment's first device is "cuda:0", its second "cuda:1". *model* names the
    model where pipeline and profile do not tell: by its name, its file, or its module. *sampler*, left out, is the
    model's own. *foreign* lets a profile of another device pass. *slots* bounds the
    requests that have begun and not ended; left out, it is enough for runs of up to a thousand requests whatever the
    policy does. *compile* says what of the loop's network is compiled; left out, a run does as its profile was
    measured, and a profile as measured best. For the rest see `servetwin.real.Options`.
    """

    devices: tuple[str, ...] = ()
    model: str | None = None
    weights: Path | None = None
    eager: bool = False
    sampler: str | None = None
    foreign: bool = False
    slots: int | None = None
    processes: bool = False
    compile: str | None = None

    def __post_init__(self) -> None:
        if self.compile not in (None, *COMPILE):
            raise BadInput(f"unknown word {self.compile!r}", where="--compile", right=" or ".join(COMPILE))
        if self.sampler not in (None, *SAMPLERS):
            raise BadInput(f"unknown sampler {self.sampler!r}", where="--sampler", right=" or ".join(SAMPLERS))


class Backend:
    """Serves experiments for real as *setup* says.

    A model stays where it is from one run to the next, until a run needs another one (or more slots, other devices).
    """

    def __init__(self, setup: Setup | None = None) -> None:
        from servetwin.real import require

        require()  # one clear line if torch is not there
        self.setup = setup or Setup()
        self.servers: dict[tuple[object, ...], Server] = {}

    def differing(self, meta: Mapping[str, Any], experiment: Experiment) -> list[str]:
        """What is not as it was when the run of *meta* was made."""
        return otherwise(meta, experiment, self.made_with(experiment))

    def kept_for(self, experiment: Experiment) -> None:
        """Points are served in their order."""

    def made_with(self, experiment: Experiment) -> dict[str, Any]:
        """What ``meta.json`` of a run of *experiment* would say of the real side; no model is built for it."""
        plan = Plan(experiment, model=self.setup.model)
        kind = model_of(plan, self.setup.model)
        return real_facts(self._planned(plan, kind))

    @as_loaded()
    def run(self, experiment: Experiment, folder: Path | None = None, say: Say | None = None) -> Report:
        """Serve *experiment*; with *folder*, leave its records there.

        Raises `BadInput` before anything is written, and `ServeTwinError` if the run breaks: what was recorded until
        then stays, without a ``summary.json``.
        """
        say = say or (lambda _: None)
        plan = Plan(experiment, model=self.setup.model)
        kind = model_of(plan, self.setup.model)
        for shape in plan.shapes:
            kind.at(shape)
        server = self._planned(plan, kind)
        _check_steps(plan.requests, server)
        if not self.setup.foreign:
            check_devices(plan.profiles, server)
            check_execution(plan.profiles, server)
        if len(plan.shapes) > 1:
            check_not_compiled(server, plan.profiles)
        stages, workers, wiring = plan.system()
        tools = real_tools(plan.experiment)
        for name in plan.profiles:
            say(f"{kind.title}: building it on {server.options.torch_device(name)}")
            place = server.place(name, plan.shapes or (None,))
            if plan.shapes and (each := place.slot_mib()):
                sizes = ", ".join(f"{mib:.3g} MiB of {shape}" for shape, mib in each.items())
                say(f"{server.options.slots} slots on {name}, each as large as its largest: {sizes}")
        recorder: Recorder = Recorder()
        if folder is not None:
            recorder = build.folder_for(experiment, folder, describe(experiment, server))
        if any(stage.actions is not None for stage in stages):
            recorder.summary.quality = StepQuality()
        shaped = told(workers)
        if shaped:
            recorder.summary.input["shapes"] = shaped
        for worker, said in shaped.items():
            sizes = ", ".join(f"{most} of {shape}" for shape, most in said["limits"].items())
            say(f"to be warmed up for {worker}: batches of up to {sizes}")
        say(f"warming up, then serving {len(plan.requests)} requests")
        with recording(recorder, folder), policies_answer([worker.policy for worker in workers]):
            report = server.serve(
                stages,
                workers,
                plan.requests,
                recorder,
                stop_after=experiment.system.stop_after,
                tools=tools,
                **wiring,
            )
            if wiring["fleet"] is not None:
                build.tell_fleet(wiring["fleet"], recorder)
        report.over_profile = over_profile(workers, report.iteration_ms, plan.profiles, plan.shapes)
        if folder is not None:
            write_report(folder, report)
        return report

    def _planned(self, plan: Plan, kind: Kind) -> Server:
        devices = device_names(plan.profiles, self.setup.devices)
        executed = profiled_execution(plan.profiles, self.setup)
        modules = plan.experiment.pipeline.modules.values()
        reuse = any(module.actions is not None and module.actions.reuse for module in modules)
        fails = plan.experiment.deployment.faults is not None
        return self._server(kind, devices, plan.slots(), executed, reuse=reuse, fails=fails)

    def _server(
        self,
        kind: Kind,
        devices: Mapping[str, str],
        slots: int,
        executed: Mapping[str, Any] | None = None,
        *,
        reuse: bool = False,
        fails: bool = False,
    ) -> Server:
        processes = self.setup.processes or fails  # a thread cannot be killed
        slots = self.setup.slots or slots
        placed = tuple(sorted(devices.items()))
        key = (kind.code, kind.name, kind.modules, placed, slots, repr(executed), reuse, processes)
        if key not in self.servers:
            setup = replace(self.setup, processes=processes)
            server = make_server(kind, setup, devices, slots, executed, reuse=reuse)
            self.close()  # two models need not fit beside each other
            self.servers[key] = server
        return self.servers[key]

    def close(self) -> None:
        """Let go of the model that was served last, and of its memory."""
        if not self.servers:
            return
        self.servers.clear()
        import torch

        gc.collect()  # networks and what works on them know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


#: Who looks at the recorders of runs while they go, if somebody does.
watching: ContextVar[build.Watch | None] = ContextVar("watching", default=None)


@contextmanager
def recording(recorder: Recorder, folder: Path | None) -> Iterator[None]:
    """Close *recorder*, whose files are in *folder*, when the run is over, and say where the records of a run are
    that was cut short.

    Ctrl-C becomes a `Stopped`. If the run was refused (`BadInput`) before a request came, nothing of it stays.
    """
    kept = f"; what was recorded is in {folder}" if folder is not None else ""
    try:
        with build.said_where(folder), build.closing(build.watched(recorder, watching.get())):
            yield
    except BadInput as problem:
        if recorder.summary.requests == 0:
            if folder is not None and folder.exists():
                shutil.rmtree(folder)
            raise
        raise ServeTwinError(f"{problem}{kept}") from problem
    except ServeTwinError as problem:
        raise type(problem)(f"{problem}{kept}") from problem


class HasReport(Protocol):
    """What a real run tells beside its records."""

    def as_dict(self) -> dict[str, Any]: ...


def write_report(folder: Path, report: HasReport) -> None:
    """Leave *report* beside the records of its run."""
    (folder / "real.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")


class Plan:
    """What of an experiment is the same in both worlds, wired up and checked.

    With *diffusion* a model that the real side has must serve it: *model*, where it is named. *in_turns*: requests
    that are sent when others have ended can be.
    """

    def __init__(
        self, experiment: Experiment, *, diffusion: bool = True, in_turns: bool = False, model: str | None = None
    ) -> None:
        if not diffusion:
            refuse(experiment, "this backend")
        refuse_groups(experiment, "the real side")
        handovers.refuse(experiment, "the real side", "workers without a role, or --backend sim")
        engine_options.refuse(experiment, "the real side", "an engine without it, or --backend sim")
        fleets.refuse(experiment, "the real side", "no autoscaler, or --backend sim", faults=True)
        if experiment.deployment.faults is not None and not diffusion:
            what = "real engines of language models cannot be made to fail: no process of theirs is started again"
            right = "no faults, a diffusion model, or --backend sim"
            raise BadInput(what, where=f"{experiment.name}: {fleets.FAULTS}", right=right)
        self.fitting = fitting(experiment, model) if diffusion else []
        if experiment.workload.in_turns and not in_turns:
            what = "here no request waits for others to end, as those of sessions and closed loops do"
            key = "sessions" if experiment.workload.sessions is not None else "arrivals"
            right = "simulation, one vLLM engine (--backend vllm), or servers (--url)"
            raise BadInput(what, where=f"{experiment.name}: workload.{key}", right=right)
        # The client is a real one here, with a lateness of its own.
        prompt = experiment.system.model_copy(update={"client_delay": 0.0, "client_stretch": 0.0})
        self.experiment = experiment = expanded(experiment.model_copy(update={"system": prompt}))
        self.profiles = loading.load_profiles(experiment)
        self.shapes = shapes_of(experiment)
        check_sizes(self.shapes, self.profiles)
        self.slo = build.make_slo(experiment, self.profiles)
        known = contexts(experiment, self.profiles)
        self._contexts, self._trace = known, read_trace(experiment)
        #: Those that are sent; where that depends on who has ended, what turns add to their sessions.
        self.requests: list[Request] = []
        if experiment.workload.in_turns:
            self.requests = [plan for session in self.sessions() for _, plan in session.turns]
        else:
            self.requests = list(requests(experiment, self.slo.seconds, self._trace, contexts=known))
        build.build(experiment)  # what a simulation would refuse is refused here too

    def sessions(self) -> Iterator[Session]:
        """The sessions of an experiment whose requests are sent when others have ended."""
        return sessions(self.experiment, self.slo.seconds, self._trace, contexts=self._contexts)

    def slots(self) -> int:
        """Room for all requests, if they are no more than about a thousand, and for any batch."""
        largest = max(worker.limit or 1 for worker in self.experiment.deployment.workers)
        wanted = min(len(self.requests), 1000) + largest
        return next(n for n in (256, 1024, 2048, wanted) if n >= wanted)

    def system(
        self, serving: Callable[[Worker], Worker] = lambda worker: worker
    ) -> tuple[list[Stage], list[Worker], dict[str, Any]]:
        """New stages and workers, and what else a `ServingLoop` of them takes. *serving* gives the worker that really
        serves in place of one that a simulation would have."""
        experiment = self.experiment
        pipeline = make_pipeline(experiment.pipeline, experiment.name)
        stages = pipeline.stages(list(dict.fromkeys(tuple(w.modules) for w in experiment.deployment.workers)))
        workers = [serving(w) for w in build.make_workers(experiment, stages, self.profiles, self.slo)]
        return stages, workers, wiring(experiment, stages, workers, self.profiles)


def make_server(
    kind: Kind,
    setup: Setup,
    devices: Mapping[str, str],
    slots: int = 256,
    executed: Mapping[str, Any] | None = None,
    *,
    reuse: bool = False,
) -> Server:
    """A server of *kind*; *devices* maps the names of workers' devices to torch devices, which must be there.
    *executed* are further options, of how its loop is executed; with *reuse* it keeps each request's last
    prediction."""
    from servetwin.real import Options, Server

    weights = setup.weights
    if weights is not None and not weights.is_dir():
        right = "a checkpoint in diffusers' layout"
        raise BadInput("there is no such folder", where=f"--weights {weights}", right=right)
    options = Options(
        device=next(iter(devices.values())),
        devices=dict(devices),
        eager=setup.eager,
        weights=weights,
        scheduler=kind.sampling.chosen(setup.sampler),
        slots=slots,
        processes=setup.processes,
        reuse=reuse,
        **({"compile": setup.compile} if executed is None else executed),
    )
    for name in devices:
        options.torch_device(name)
    if weights is not None:
        from servetwin.real.diffusion.checkpoint import as_trained, check

        check(kind, weights)
        kind = as_trained(kind, weights)
    return Server(kind, options)


def device_names(profiles: Mapping[str, Profile], asked: tuple[str, ...]) -> dict[str, str]:
    """The torch device of each of the experiment's devices."""
    names = list(profiles)
    if not asked:
        return {name: f"cuda:{i}" for i, name in enumerate(names)}
    named = dict(text.split("=", 1) for text in asked if "=" in text)
    plain = [text for text in asked if "=" not in text]
    for name in named:
        if name not in names:
            raise BadInput(f"the experiment has no device {name!r}", where="--device", right=suggest(name, names))
    rest = [name for name in names if name not in named]
    if len(plain) == 1:
        plain *= len(rest)
    if len(plain) != len(rest):
        what = f"{len(asked)} devices for the {len(names)} of the experiment ({', '.join(names)})"
        raise BadInput(what, where="--device", right="one for each, or one for all")
    return {**dict(zip(rest, plain, strict=True)), **named}


def fitting(experiment: Experiment, model: str | None = None) -> list[Kind]:
    """The models (or *model*, if it is one of them) that have the modules of *experiment*, and those modules alone.
    Raises `BadInput` if there are none."""
    from servetwin.real.diffusion.model_registry import find, known

    pipeline = without_tools(experiment)
    candidates = [*known(), *([find(model)] if model is not None else [])]
    served = {kind.name: _served_as(kind, pipeline) for kind in candidates}
    found = [kind for kind in served.values() if kind is not None]
    if not found:
        what = f"there are no real modules for the pipeline {' -> '.join(pipeline.modules)}"
        chains = dict.fromkeys(" -> ".join(kind.modules) for kind in candidates)
        raise BadInput(what, where=experiment.name, right=", or ".join(chains))
    return found


def _served_as(kind: Kind, pipeline: Pipeline) -> Kind | None:
    """*kind* with the modules of *pipeline*, if it can be served so."""
    try:
        kind = kind.with_modules(list(pipeline.modules))
    except BadInput:
        return None
    return kind if _same(pipeline, kind.pipeline()) else None


def model_of(plan: Plan, asked: str | None) -> Kind:
    """The model that the real side serves for this pipeline."""
    from servetwin.real.diffusion.model_registry import find

    if asked is not None:
        kind = find(asked)
        found = next((k for k in plan.fitting if (k.code, k.name) == (kind.code, kind.name)), None)
        if found is None:
            what = f"{asked} does not have the modules of {plan.experiment.name}"
            raise BadInput(what, where="--model", right=", ".join(k.name for k in plan.fitting))
        return found
    profile = next(iter(plan.profiles.values())).data
    sized = [k for k in plan.fitting if profile.image in (None, k.size)]
    told = [k for k in sized if profile.model == model_name(k)] or sized
    if len(told) != 1:
        right = " or ".join(f"--model {k.name}" for k in told or plan.fitting)
        raise BadInput(f"the profile {profile.name} does not tell which model to serve", right=right)
    return told[0]


def _same(a: Pipeline, b: Pipeline) -> bool:
    return (a.modules, a.successors, a.branches) == (b.modules, b.successors, b.branches)


def model_name(kind: Kind) -> str:
    """What a profile of *kind* calls its model."""
    return kind.title.split(",")[0]


def check_devices(profiles: Mapping[str, Profile], server: Server) -> None:
    """Raise `BadInput` where a profile was taken on another kind of device than that which is to serve."""
    from servetwin.real.server import device_facts

    for name, profile in profiles.items():
        device = server.options.torch_device(name)
        actual, profiled = device_facts(device)["name"], profile.data.device.name
        if not same_device(profiled, actual):
            what = f"the profile {profile.name} is of {profiled}, but {name} is {actual}"
            right = f"one made by `servetwin profile {server.kind.name} --device {device}`; or --any-device"
            raise BadInput(what, where=f"deployment.devices.{name}", right=right)


def profiled_execution(profiles: Mapping[str, Profile], setup: Setup) -> dict[str, Any] | None:
    """The options by which a run does as its profiles were measured; None if *setup* says how to, or lets a profile
    of another device pass. Profiles of before they said so were of networks that were not compiled."""
    from servetwin.real.diffusion.execution import options_of

    if setup.compile is not None or setup.foreign:
        return None
    said = [profile.data.execution for profile in profiles.values()]
    first = next((each for each in said if each is not None), None)
    return {"compile": "none"} if first is None else options_of(first.as_dict())


def check_execution(profiles: Mapping[str, Profile], server: Server) -> None:
    """Raise `BadInput` where a profile was taken of a network that was executed in another way than it is to be."""
    from servetwin.real.diffusion.execution import in_words

    for name, profile in profiles.items():
        said, actual = profile.data.execution, server.execution(name).as_dict()
        if said is not None:
            profiled, same = f"with {in_words(said.as_dict())}", said.as_dict() == actual
        else:
            profiled, same = "without compiling", actual["compile"] == "none"
        if not same:
            what = f"the profile {profile.name} was taken {profiled}, but {name} would run with {in_words(actual)}"
            right = "the same --compile and --eager; or --any-device"
            raise BadInput(what, where=f"deployment.devices.{name}", right=right)


def check_not_compiled(server: Server, devices: Iterable[str]) -> None:
    """Raise `BadInput` if a network that requests of several shapes go through is compiled on one of *devices*.

    torch would make programs for any size of what it has seen in two, and those of a run would not be those that were
    measured.
    """
    if any(server.execution(name).compile != "none" for name in devices):
        what = "a compiled network is served at one size, and requests are of several shapes"
        raise BadInput(what, where="--compile", right="none")


def same_device(profiled: str, actual: str) -> bool:
    """Whether all that a profile says of its device's name is in the name that the device gives itself."""
    return set(profiled.lower().split()) <= set(actual.lower().split())


def _check_steps(planned: list[Request], server: Server) -> None:
    from servetwin.real.diffusion.noise_schedule import steps_table

    kind = server.kind
    for steps in {kind.steps(request.work) for request in planned}:
        steps_table(kind.sampling.chosen(server.options.scheduler), steps, kind.sampling, kind.tokens(kind.latent))


def describe(experiment: Experiment, server: Server) -> dict[str, Any]:
    """The content of ``meta.json``: that of a simulation, and what was real."""
    return {**build.describe(experiment), **real_facts(server)}


def real_facts(server: Server) -> dict[str, Any]:
    """What was real: the server's word, and a hash of the weights' files."""
    facts = server.describe()
    place = server.kind.code.rpartition(":")[0]
    if place.endswith(".py"):
        facts["model_file"] = path_digest(Path(place))
    weights = server.options.weights
    return facts if weights is None else {**facts, "weights": weights_digest(weights)}
