"""Runs recorded on a device, in compact files, and what the simulation makes of them.

A recording holds the runs of one model on one device: what was served (modules, which of them shared a worker, batch
limits, the profile taken before), and for each run the policy, the load, and of every request when it arrived, its
SLO, its steps, how it ended and when. `Recording.replay` sends the same requests at the same times through the same
loop and policies in simulation. The files are made by tests/real/diffusion/campaign.py;
docs/explanation/validation.md tells what came of it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servetwin.core import (
    BadInput,
    BatchWorker,
    Module,
    Pipeline,
    Policy,
    Recorder,
    Request,
    ServingLoop,
    Summary,
    WorkerView,
)
from servetwin.core.llm import TokenPolicy
from servetwin.core.serving.client import play
from servetwin.profiles import Profile, load
from servetwin.sim.measured import TimeOptions, measured_executor

from ...registry.policy_registry import find_policy
from ..comparison import recording_files

#: How outcomes are written in a recording.
LETTERS = {"met": "m", "late": "l", "dropped": "d", "failed": "f"}


@dataclass(frozen=True)
class RecordedRun:
    """One run. Times are in seconds since it began; *finished* is None for those that did not end in time or late.

    *load* is the rate as a share of the knee that was expected, *rate* in requests per second, *cv* that of the gaps
    between arrivals, *facts* what the real side reported: its client's lateness, the time between iterations.
    """

    policy: str
    load: float
    rate: float
    cv: float
    slo_factor: float
    repeat: int
    whole: bool
    arrival: Sequence[float]
    slo: Sequence[float]
    steps: Sequence[int]
    outcome: str
    finished: Sequence[float | None]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def attainment(self) -> float:
        """The share of requests that met their SLO on the device."""
        return self.outcome.count("m") / len(self.outcome)

    @property
    def cell(self) -> tuple[float, float, float]:
        """What a run shares with those of other policies on the same requests: load, cv, SLO factor."""
        return (self.load, self.cv, self.slo_factor)


@dataclass(frozen=True)
class Recording:
    """The runs of one *model*.

    *modules* are (name, whether it loops) in order, *placement* the groups of modules that had a worker each; *limit*
    is the largest batch of the loop, *once* that of workers with other modules. *together*: whether requests that
    were handed over at once were there together when the next worker decided (since 0.2; see `ServingLoop`).
    """

    model: str
    profile: str
    modules: Sequence[tuple[str, bool]]
    placement: Sequence[Sequence[str]]
    limit: int
    once: int
    stop_after: float
    meta: dict[str, Any]
    runs: Sequence[RecordedRun]
    together: bool = False

    def replay(
        self,
        run: RecordedRun,
        *,
        profile: Profile | None = None,
        options: TimeOptions | None = None,
        recorder: Recorder | None = None,
        seed: int = 0,
    ) -> Summary:
        """Simulate *run* with the profile taken before it (or *profile*), without noise unless *options* say so."""
        profile = profile or load(self.profile)
        pipeline = Pipeline.chain(*(Module(name, loop=loops) for name, loops in self.modules), name=self.model)
        stages = pipeline.stages([[name for name, _ in self.modules]] if run.whole else self.placement)
        policy, estimate = find_policy(run.policy), profile.estimate()
        assert issubclass(policy, Policy)
        workers = []
        for stage in stages:
            limit = self.limit if set(stage.modules) == {stage.loop} else min(self.once, self.limit)
            view = WorkerView(stage, estimate, limit=limit, slo_factor=run.slo_factor)
            workers.append(BatchWorker(stage, policy(), view))
        # The first profiles did not know the text encoder beside the last stage; their runs were scored without that.
        options = replace(options or TimeOptions(noise=False), unmeasured="ignored")
        executor = measured_executor({"gpu0": profile}, workers, options, seed=seed)
        recorder = recorder or Recorder()
        loop = ServingLoop(stages, workers, executor, recorder, together=self.together)
        looped = next(name for name, loops in self.modules if loops)
        play(
            loop,
            (
                Request(i, arrival, slo, {looped: steps})
                for i, (arrival, slo, steps) in enumerate(zip(run.arrival, run.slo, run.steps, strict=True))
            ),
        )
        executor.call_at(run.arrival[-1] + self.stop_after, loop.stop)
        executor.run_until_idle()
        return recorder.summary


def read_recording(path: Path) -> Recording:
    """The recording in the file *path*. Raises `BadInput`."""
    data = recording_files.of_steps(path)
    runs = [RecordedRun(**run) for run in data.pop("runs")]
    for number, run in enumerate(runs):
        if issubclass(find_policy(run.policy), TokenPolicy):
            what = f"{run.policy} is a policy for language models"
            raise BadInput(what, where=f"{path}: runs.{number}", right="neustream, clockwork, edf or fcfs")
    return Recording(runs=runs, **data)


def write_recording(recording: Recording, path: Path) -> None:
    """Write *recording* so that the same content gives the same bytes."""
    data = {**vars(recording), "runs": [vars(run) for run in recording.runs]}
    if not recording.together:
        del data["together"]  # as those before 0.2 were written
    text = json.dumps(data, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def recorded_run(records: Sequence[dict[str, Any]], *, loop: str, decimals: int = 6, **known: Any) -> RecordedRun:
    """A run from the lines of its ``requests.jsonl``; *known* are the other fields of `RecordedRun`."""
    ordered = sorted(records, key=lambda r: (r["arrival"], r["id"]))
    return RecordedRun(
        arrival=[round(r["arrival"], decimals) for r in ordered],
        slo=[round(r["deadline"] - r["arrival"], decimals) for r in ordered],
        steps=[r["work"][loop] for r in ordered],
        outcome="".join(LETTERS[r["outcome"]] for r in ordered),
        finished=[None if r["finished"] is None else round(r["finished"], decimals) for r in ordered],
        **known,
    )
