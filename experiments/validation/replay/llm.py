"""Measured runs of a language model, repeated in simulation: the gaps between the two.

A file of runs (``measured/<device>/llm-*.json.gz``) holds what was sent, when, and when each token came out, under
which policy, together with the engine's limits. `folder` serves the same requests at the same times in
simulated time by a profile, and `gaps` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from servetwin.core import BadInput, Module, Outcome, Pipeline, Recorder, Request, ServingLoop
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import CumulativeSLO, EngineLimits, TokenPolicy, TokenRequest, TokenTask, TokenView
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.worker import Host, TokenWorker
from servetwin.core.serving.client import play
from servetwin.core.slo import latest
from servetwin.profiles import Profile, load
from servetwin.profiles.llm.recent_load import RecentLoad, recent_load_of
from servetwin.profiles.llm.step_table import TokenTable
from servetwin.profiles.tables.costs import INTAKE, RATIO, RECENT_LOAD_MEMORY, STALL, STEP_BETWEEN

from ...assembly.llm_workers import host_ahead
from ...registry import policy_registry
from ...sweeps.pool import pooled
from ..comparison import recording_files

if TYPE_CHECKING:
    from servetwin.sim.llm.lane import StepTimes

#: Where measured runs are.
MEASURED = Path(__file__).parents[2] / "measured"


@dataclass(frozen=True)
class Sent:
    """A request as the client sent it, and what the real engine made of it; seconds since the run began.

    *limit* is what the policy was told; *times* are those at which its tokens came out (none if it was dropped at
    once).
    """

    id: int
    arrival: float
    prompt: int
    output: int
    limit: int
    outcome: str
    times: tuple[float, ...]


@dataclass(frozen=True)
class MeasuredRun:
    """One run on a real engine. *slo* is "P+D", *steps* how many the engine made, *busy* the seconds in them, *gpu*
    those of them in CUDA graphs, where the GPU's part was measured. *profile* names the one that was taken before on
    this run's GPU, where that is not the campaign's; of a run that is *profiled* profiles were made."""

    id: str
    policy: str
    slo: str
    rate: float
    cv: float
    repeat: int
    steps: int
    busy: float
    requests: tuple[Sent, ...]
    gpu: float | None = None
    profile: str | None = None
    profiled: bool = False


@dataclass(frozen=True)
class Campaign:
    """Runs of one engine, or of engines alike, its limits, and the profile that was taken before them."""

    engine: dict[str, Any]
    runs: tuple[MeasuredRun, ...]
    profile: str | None = None

    @property
    def limits(self) -> EngineLimits:
        options = self.engine["options"]
        return EngineLimits(
            blocks=self.engine["blocks"],
            block_size=self.engine["block_size"],
            max_batched_tokens=options["max_batched_tokens"],
            max_sequences=options["max_sequences"],
            whole_prompt=True,
            keep_freed=options.get("prefix_caching", False),
        )


def read(path: Path) -> Campaign:
    """A file of measured runs. Raises `BadInput`."""
    data = recording_files.of_tokens(path)
    runs = []
    for number, run in enumerate(data["runs"]):
        if run["policy"] != "own" and not issubclass(policy_registry.find_policy(run["policy"]), TokenPolicy):
            what = f"{run['policy']} is no policy for language models"
            raise BadInput(what, where=f"{path}: runs.{number}", right="vllm, sarathi, edf-llm or neustream-llm")
        fields = {k: v for k, v in run.items() if k not in ("requests", "limit")}
        sent = tuple(
            Sent(i, arrival, prompt, output, run["limit"], outcome, tuple(_ends(first, gaps)))
            for i, arrival, prompt, output, outcome, first, gaps in run["requests"]
        )
        runs.append(MeasuredRun(**fields, requests=sent))
    return Campaign(data["engine"], tuple(runs), data.get("profile"))


def is_campaign(path: Path) -> bool:
    """Whether *path* is a file of runs of a language model, and not of another recording."""
    return path.name.startswith("llm-")


def _ends(first: float | None, gaps: Sequence[int]) -> Iterator[float]:
    """Token times from the first and the gaps in microseconds."""
    if first is not None:
        at = round(first * 1e6)
        yield at / 1e6
        for gap in gaps:
            at += gap
            yield at / 1e6


class _Times(Recorder):
    """Keeps when each token came out."""

    wants_token_times = True

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[int, list[float]] = {}
        self.outcomes: dict[int, str] = {}
        self.steps = 0
        self.busy = 0.0

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        for task in request.tasks:
            if isinstance(task, TokenTask):
                self.times[request.id] = list(task.times())
        dropped = request.outcome is Outcome.DROPPED
        self.outcomes[request.id] = "dropped" if dropped else "finished"

    def batch(self, batch: Any) -> None:
        super().batch(batch)
        if isinstance(batch, TokenBatch):
            self.steps += batch.count


def slo_of(table: TokenTable, text: str, solo: tuple[float, float]) -> CumulativeSLO:
    """Deadlines for "P+D" by what a request alone takes on *table*."""
    prefill, decode = (float(part) for part in text.split("+"))
    return CumulativeSLO(prefill, decode, solo[0], solo[1], table.prefill)


def replay(
    run: MeasuredRun,
    limits: EngineLimits,
    table: TokenTable,
    slo: Any,
    params: dict[str, Any] | None = None,
    host: Host | None = None,
    stalls: Callable[[float, bool], float] | None = None,
    recent_load: RecentLoad | None = None,
    draw: Callable[[], float] | None = None,
    times: StepTimes | None = None,
) -> tuple[dict[int, list[float]], dict[int, str], int]:
    """Serve the requests of *run* in simulated time: token times and outcomes by request, and the steps made.

    *stalls* are those of a host that decides ahead (`servetwin.sim.measured.stalls_of`), *recent_load* is what its
    steps take over *table* (`servetwin.profiles.llm.recent_load.recent_load_of`), *draw* a factor on each of those
    that only decode. *times* says what steps take in the place of *table*, if it is given.
    """
    from servetwin.sim import SimExecutor
    from servetwin.sim.llm.lane import TokenTiming

    name = "vllm-v1" if run.policy == "own" else run.policy
    policy: Any = policy_registry.make(name, params or {})
    stage = Pipeline.chain(Module("decode", loop=True)).stages([["decode"]])[0]
    view = TokenView(
        stage,
        limits,
        estimate_prefill=table.prefill,
        estimate_decode=table.decode,
        estimate_step=table.step,
        slo=slo,
        name="engine",
    )
    worker = TokenWorker(stage, policy, view, host=host)
    steps = table if times is None else times
    executor = SimExecutor(
        lambda _: TokenTiming(steps, draw, prefills=draw and _as_it_is, stalls=stalls, recent_load=recent_load)
    )
    log = _Times()
    loop = ServingLoop([stage], [worker], executor, log)
    requests = sorted(run.requests, key=lambda r: r.arrival)
    play(
        loop,
        iter(TokenRequest(r.id, r.arrival, {"decode": (r.prompt, r.limit)}, {"decode": r.output}) for r in requests),
    )
    executor.run_until_idle()
    return log.times, log.outcomes, log.steps


def _as_it_is() -> float:
    return 1.0


def host_of(profile: Profile) -> Host | None:
    """What *profile* says of an engine's host between two steps; None if it does not."""
    if profile.token_data.engine.asynchronous:
        return host_ahead(profile)
    costs = profile.costs
    intake = costs[INTAKE()].value if INTAKE() in costs else None
    if STEP_BETWEEN() not in costs or intake is None:
        return None
    return Host(profile.tokens("measured", hold=True).between, intake)


#: Profiles by which runs are repeated with ``hold``: prompts of more than 2047 tokens in a step were not measured. A
#: policy plans with up to some 3000, and 6 steps of the runs compute 2048 (`held` counts them): as if they were 2047.
HOLDS = ("h100-knees/opt-30b-tp1", "h200-long/opt-30b-tp1", "h200-long/opt-66b-tp2")


def held(campaign: Campaign, profile: Profile) -> list[dict[str, Any]]:
    """How many steps of the runs of *campaign*, repeated once without noise by *profile*, are beyond it, and how far:
    as `servetwin.sim.time.out_of_range.Watch.told` has it, a list for all runs."""
    from servetwin.sim.time.out_of_range import HeldTimes, Watch

    slos = sorted({run.slo for run in campaign.runs})
    sides: dict[str | None, Side] = {}
    times: dict[str | None, HeldTimes] = {}
    for run in campaign.runs:
        if not run.profiled:
            if run.profile not in sides:
                sides[run.profile] = Side(load(run.profile) if run.profile else profile, slos)
                times[run.profile] = HeldTimes(sides[run.profile].table, "engine")
            side, table = sides[run.profile], times[run.profile]
            drawn = side.drawn(None)
            replay(run, campaign.limits, side.table, side.due[run.slo], host=side.host, times=table, **drawn)
    return Watch(list(times.values())).told({})


#: Policies that never look at deadlines: a run of theirs is scored under every SLO.
BLIND = ("vllm-v1", "vllm", "own")


def scored(campaign: Campaign, profile: Profile, seeds: int = 10, jobs: int = 1) -> Iterator[Pair]:
    """(run, SLO, measured, simulated) for all of *campaign*, by the *profile* taken before, or by the run's own.
    Runs of which profiles were made are left out. *jobs* processes share the work.

    What is drawn (see `Side.drawn`) is drawn *seeds* times, and what comes of it is their mean; times then stand
    beside each other. 0: nothing is drawn.
    """
    from joblib import delayed

    slos = sorted({run.slo for run in campaign.runs} | {"3+1.5", "5+2"})
    runs = [run for run in campaign.runs if not run.profiled]
    sides = {name: Side(load(name) if name else profile, slos) for name in {run.profile for run in runs}}
    tasks = (delayed(_both)(run, campaign.limits, sides[run.profile], seeds) for run in runs)
    for run, found in zip(runs, pooled(jobs, tasks), strict=True):
        for slo, (real, simulated) in found.items():
            yield run, slo, real, simulated


def _both(run: MeasuredRun, limits: EngineLimits, side: Side, seeds: int) -> dict[str, tuple[Score, Score]]:
    """By SLO, *run* as measured and as simulated."""
    table, due = side.table, side.due
    draws = range(seeds) if seeds and side.draws else (None,)
    simulated = [replay(run, limits, table, due[run.slo], host=side.host, **side.drawn(seed))[0] for seed in draws]
    real = {r.id: r.times for r in run.requests}
    return {
        slo: (score(run, real, due[slo]), mean([score(run, times, due[slo]) for times in simulated]))
        for slo in (due if run.policy in BLIND else (run.slo,))
    }


class Side:
    """What a profile says of an engine: its *table*, its *host*, and by SLO when tokens are *due*."""

    def __init__(self, profile: Profile, slos: Sequence[str]) -> None:
        self.profile = profile
        self.table = profile.tokens("measured", hold=profile.name in HOLDS)
        self.host = host_of(profile)
        data = profile.token_data
        assert data is not None
        assert data.solo is not None
        self.due = {slo: slo_of(self.table, slo, (data.solo.d0, data.solo.d1)) for slo in slos}
        stalls = STALL() in profile.costs
        # Where traffic was not measured, residuals hold steps that say little of what steps take.
        self.residuals = not stalls and {RECENT_LOAD_MEMORY(), RATIO("decode")} <= profile.costs.keys()
        self.draws = stalls or self.residuals  # whether there is anything to draw

    def drawn(self, seed: int | None) -> dict[str, Any]:
        """What `folder` is told beside the table: how recent load slows steps; and, with a *seed*, when the
        host stands still and for how long, or, where it does not, what decode steps take over the table (where it
        does, the steps after stalls are among those residuals)."""
        from servetwin.sim.measured import residual_of, stalls_of

        draw = residual_of(self.profile, seed, "engine", "decode") if self.residuals else None
        return {
            "recent_load": recent_load_of(self.profile.costs),
            "stalls": stalls_of(self.profile, seed, "engine"),
            "draw": draw,
        }


@dataclass
class Score:
    """What a run amounts to under an SLO; seconds. *good* counts requests all of whose tokens were on time; of a mean
    over several draws *by_draw* says what each had."""

    good: float
    requests: int
    finished: float
    ttft: np.ndarray = field(repr=False)
    tpot: np.ndarray = field(repr=False)
    e2el: np.ndarray = field(repr=False)
    by_draw: tuple[float, ...] = ()


def score(run: MeasuredRun, times: Mapping[int, Sequence[float]], slo: CumulativeSLO) -> Score:
    """Score token *times* of the requests of *run*; every request counts, dropped ones as not good."""
    good = 0
    ttft, tpot, e2el = [], [], []
    for r in run.requests:
        ends = times.get(r.id, ())
        if len(ends) < r.output:
            continue
        first = r.arrival + slo.prefill_scale * slo.alone(r.prompt)
        due = [first + slo.decode_scale * slo.decode_alone(r.prompt, j) for j in range(len(ends))]
        good += all(t <= latest(d) for t, d in zip(ends, due, strict=True))
        ttft.append(ends[0] - r.arrival)
        e2el.append(ends[-1] - r.arrival)
        if r.output > 1:
            tpot.append((ends[-1] - ends[0]) / (r.output - 1))
    return Score(good, len(run.requests), len(e2el), np.array(ttft), np.array(tpot), np.array(e2el))


#: (run, SLO, measured, simulated).
Pair = tuple[MeasuredRun, str, Score, Score]


def mean(scores: Sequence[Score]) -> Score:
    """Of the same run, simulated several times."""
    return Score(
        float_sum(s.good for s in scores) / len(scores),
        scores[0].requests,
        float_sum(s.finished for s in scores) / len(scores),
        np.concatenate([s.ttft for s in scores]),
        np.concatenate([s.tpot for s in scores]),
        np.concatenate([s.e2el for s in scores]),
        tuple(s.good for s in scores),
    )
