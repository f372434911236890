"""``servetwin bound``: the most requests of a workload that any schedule could meet, and how near the best one is."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Request
from servetwin.core.errors import PolicyFault
from servetwin.core.llm import TokenRequest, TokenTask
from servetwin.core.llm.serving.worker import TokenWorker
from servetwin.core.llm.slo import TokenDeadlines
from servetwin.profiles import Profile, costs
from servetwin.profiles.llm.recent_load import recent_load_of
from servetwin.profiles.llm.schema import KINDS_OF_TABLE
from servetwin.sim.measured import TimeOptions

from ..assembly import build, engine_options, fleets, handovers, replicas
from ..assembly.shapes import refuse
from ..spec.experiment import Experiment
from ..spec.loading import load_profiles
from . import exact, schedules
from .measured_places import measured_places
from .relaxation import SLOTS, relax
from .stage_loads import Numbers, StageLoad, stage_loads
from .token_relaxation import TOKEN_SLOTS, TokenLoad, relax_tokens, token_load
from .token_steps import step_bounds

if TYPE_CHECKING:
    from servetwin.core import Worker

    from .schedules import Fresh


@dataclass
class Bound:
    """No schedule meets more than *most* of the *requests*. *method* says how that was shown: a "relaxation", or
    "exact" of what was relaxed; *stages* has the bound of each stage alone.

    Where times are drawn (*noise*), *most* holds whatever is drawn, and *at_mean* if all times are at their means; a
    run may pass the latter by good luck. *met* has how many the known schedules meet, *best* is the best of them.
    """

    workload: str
    requests: int
    most: int
    at_mean: int
    noise: bool
    method: str
    stages: dict[str, float]
    met: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def best(self) -> str | None:
        """The schedule that meets most; None if none was tried."""
        return max(self.met, key=lambda name: self.met[name], default=None)

    @property
    def reached(self) -> bool:
        """Whether a schedule meets as many as any can: then *most* is the optimum."""
        return self.best is not None and self.met[self.best] >= self.most

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        best = self.best
        return {
            "workload": self.workload,
            "requests": self.requests,
            "bound": self.most,
            "bound_at_mean_times": self.at_mean,
            "noise": self.noise,
            "method": self.method,
            "stages": self.stages,
            "optimal": self.reached,
            "best": best,
            "best_met": self.met[best] if best is not None else None,
            "gap": self.most - self.met[best] if best is not None else None,
            "met": self.met,
            "share_of_bound": {n: k / self.most if self.most else None for n, k in self.met.items()},
            "seconds": self.seconds,
        }


def check_arrivals(experiment: Experiment) -> None:
    """Raise `BadInput` where requests come at other times under other schedules."""
    if experiment.workload.in_turns:
        what = "when its requests are sent depends on when others end, so on the schedule that is to be bounded"
        key = "sessions" if experiment.workload.sessions is not None else "arrivals"
        right = "arrivals of their own (poisson, say), without sessions"
        raise BadInput(what, where=f"{experiment.name}: workload.{key}", right=right)


def most_met(
    experiment: Experiment,
    requests: Fresh | None = None,
    *,
    slots: int | None = None,
    seconds: float = 120.0,
    policies: bool = True,
) -> Bound:
    """The bound of *experiment*, or of its system with *requests* of one's own.

    Each program has *slots* at most (None: `SLOTS`, or `TOKEN_SLOTS`), and the solver *seconds* for it. With
    *policies* known schedules are tried, too.

    Raises `BadInput` for pipelines of which no bound is known.
    """
    check_arrivals(experiment)
    refuse(experiment, "the bound")
    handovers.refuse(experiment, "the bound", "workers without a role, or servetwin run")
    fleets.refuse(experiment, "the bound", "no autoscaler, or servetwin run")
    engine_options.refuse(experiment, "the bound", "an engine without it, or servetwin run")
    began = time.perf_counter()
    noise = experiment.time.noise
    modes = [False, True] if noise else [False]
    asked = _Asked(experiment, requests, slots, seconds)
    found = [asked.relaxed(noise=mode) for mode in modes]
    mean, sure = found[0], found[-1]
    made = Bound(experiment.name, asked.count, sure.most, mean.most, noise, sure.method, sure.stages)
    if policies:
        made.met = schedules.policies_met(experiment, requests)
        made.met |= _with_hindsight(asked, mean)
    made.seconds = time.perf_counter() - began
    return made


@dataclass
class _Found:
    most: int
    method: str
    stages: dict[str, float]
    wanted: Numbers
    plan: dict[str, list[list[int]]] | None = None


def _whole(value: float, count: int) -> int:
    """The largest whole number that *value* allows; it was summed up from some thousand numbers."""
    return min(math.floor(value * (1.0 + 1e-9) + 1e-6), count)


class _Asked:
    """An experiment, built to be looked at, and what is found of it."""

    def __init__(self, experiment: Experiment, requests: Fresh | None, slots: int | None, seconds: float) -> None:
        self.experiment, self.fresh, self.slots, self.seconds = experiment, requests, slots, seconds
        plain = experiment.model_copy(update={"time": experiment.time.model_copy(update={"noise": False})})
        run = build.build(plain)
        self.workers: Sequence[Worker] = run.loop.workers
        self.requests: list[Request] = sorted(run.source if requests is None else requests(), key=lambda r: r.arrival)
        self.count = len(self.requests)
        self.profiles = load_profiles(replicas.expanded(experiment) if experiment.deployment.repeated else experiment)
        after = experiment.system.stop_after
        last = max((r.arrival for r in self.requests), default=0.0)
        self.stop = math.inf if after is None else last + after

    def relaxed(self, *, noise: bool) -> _Found:
        if not self.requests:
            return _Found(0, "exact", {}, np.zeros(0))
        terms = {**self.experiment.time.model_dump(exclude={"host"}), "noise": noise}
        if terms["session"] is not None:
            terms["session"] = datetime.fromisoformat(terms["session"])
        options = TimeOptions(**terms)
        if any(isinstance(w, TokenWorker) for w in self.workers):
            name, load = self._token_load(noise)
            relaxed = relax_tokens(load, self.slots or TOKEN_SLOTS, self.seconds)
            return _Found(_whole(relaxed.value, self.count), "relaxation", {name: relaxed.value}, relaxed.wanted)
        places, transports = measured_places(self.workers, self.profiles, options)
        return self._batches(stage_loads(places, transports, self.requests, self.stop))

    def _batches(self, loads: list[StageLoad]) -> _Found:
        size = exact.size_of(loads)
        if size is not None and size <= exact.MOST:
            solved = exact.solve(loads, self.seconds)
            ids = [r.id for r in self.requests]
            plan = {name: [[ids[i] for i in batch] for batch in own] for name, own in solved.plan.items()}
            most = _whole(solved.value, self.count)
            return _Found(most, "exact", {"all": solved.value}, np.zeros(self.count), plan)
        each = [relax(load, self.slots or SLOTS, self.seconds) for load in loads]
        stages = {load.name: r.value for load, r in zip(loads, each, strict=True)}
        tightest = min(each, key=lambda r: r.value)
        return _Found(_whole(tightest.value, self.count), "relaxation", stages, tightest.wanted)

    def _token_load(self, noise: bool) -> tuple[str, TokenLoad]:
        first, *others = self.workers
        stages = {w.stage.name for w in self.workers}
        if not isinstance(first, TokenWorker) or len(stages) > 1:
            what = "a bound is known for one language model, and this pipeline has more stages"
            raise BadInput(what, where="pipeline", right="one language model, or modules without one")
        slo = first.view.slo
        if not isinstance(slo, TokenDeadlines):
            raise BadInput("without an SLO every request is met", where="slo", right="deadlines or limits of tokens")
        devices = {w.device for w in self.workers}
        if len(devices) < len(self.workers) or any(
            self.profiles[w.device].name != self.profiles[first.device].name for w in others
        ):
            what = "these engines share a device, or are not alike"
            raise BadInput(what, where="deployment.workers", right="an engine a device, all by one profile")
        profile, limits = self.profiles[first.device], first.view.limits
        if limits.enable_prefix_caching:
            what = "the bound computes every prompt whole, and with a prefix cache more requests may be met"
            raise BadInput(what, where="engine.enable_prefix_caching", right="false, for a bound")
        time = self.experiment.time
        table = profile.tokens(*KINDS_OF_TABLE[time.table], hold=time.hold)
        steps = step_bounds(table, limits, _least_factors(profile, noise=noise, costs_too=time.costs))
        tasks, outputs = [], []
        for request in self.requests:
            assert isinstance(request, TokenRequest)
            prompt, limit, output = _lengths(request, first.stage.loop or first.stage.name)
            tasks.append(TokenTask(request, first.stage, request.arrival, None, prompt, limit))
            outputs.append(output)
        load = token_load(
            tasks,
            outputs,
            slo,
            steps,
            limits=limits,
            count=len(self.workers),
            hop=0.0,
            later=steps.longest if limits.stamp == "seen" else 0.0,
            stop=self.stop,
        )
        return first.stage.name, load


def _lengths(request: TokenRequest, module: str) -> tuple[int, int, int]:
    tokens, outputs = request.tokens[module], request.outputs
    prompt, limit = tokens[0] if isinstance(tokens, list) else tokens
    output = outputs[module] if outputs is not None else limit
    assert isinstance(prompt, int)
    return prompt, limit, output if isinstance(output, int) else output[0]


def _least_factors(profile: Profile, *, noise: bool, costs_too: bool) -> tuple[float, float]:
    """The least factors on steps that only decode and on those that prefill."""
    found = [1.0, 1.0]
    for i, kind in enumerate(("decode", "prefill")):
        cost = profile.costs.get(costs.RATIO(kind))
        if noise and cost is not None and cost.quantiles is not None:
            found[i] = min(cost.quantiles.values)
    if noise and costs.RATIO("prefill") not in profile.costs:
        found[1] = found[0]
    recent = recent_load_of(profile.costs) if costs_too else None
    if recent is not None:
        ratios = [1.0, *(r for curves in recent.curves.values() for row in curves.ratios for r in row)]
        found = [f * min(ratios) for f in found]
    return found[0], found[1]


def _with_hindsight(asked: _Asked, found: _Found) -> dict[str, int]:
    """How many requests are met by schedules that know all that comes: those of the bound, or EDF among those that it
    serves."""
    made: dict[str, int] = {}
    tokens = bool(asked.experiment.pipeline.llms)
    if found.plan is not None:
        with schedules.offered(schedules.of_plan(found.plan)) as name:
            made["the bound's own schedule"] = _met(asked, name)
        return made
    for part in schedules.SHARES:
        chosen = frozenset(r.id for r, w in zip(asked.requests, found.wanted, strict=True) if w >= part)
        if chosen:
            policy = schedules.of_chosen_tokens(chosen) if tokens else schedules.of_chosen(chosen)
            with schedules.offered(policy) as name:
                most = max(made.get("EDF with hindsight", 0), _met(asked, name))
            made["EDF with hindsight"] = most
    return made


def _met(asked: _Asked, policy: str) -> int:
    try:
        return schedules.serve(asked.experiment, policy, asked.fresh).met
    except PolicyFault:
        return 0  # a plan that these times do not allow
