"""What a process of the page does: it resolves an experiment, simulates it, and keeps the records in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core import Batch, Recorder, Request, ServeTwinError
from servetwin.core.records import batch_record, request_record

from ..assembly.build import build
from ..provenance.policy_code import as_loaded
from ..registry.catalog import source_of
from ..reporting import run_sections, validity
from ..reporting.timeline import Gathered, with_ends
from ..spec.experiment import Experiment
from ..spec.loading import load
from ..spec.overrides import ByOption, Override
from ..sweeps.point import settings_of
from ..validation.comparison.compare_runs import RunRecords
from .controls import shortened
from .state import file_of


class InMemory(Recorder):
    """Keeps the records of requests, and of batches what a timeline is made of."""

    wants_batches = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict[str, Any]] = []
        self.gathered = Gathered()

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        self.requests.append(request_record(request, tokens=False))

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        self.gathered.batch(batch_record(batch))


@dataclass(frozen=True)
class Simulated:
    """A *run*, the *experiment* that it is of, an equal *file*, and the *seconds* of computing
    that this took."""

    run: run_sections.Run
    experiment: Experiment
    file: str
    seconds: float


@as_loaded()
def simulate(source: str, chosen: Mapping[str, Any], name: str) -> Simulated:
    """Simulate the experiment *source* with what was *chosen*, as a run called *name*. Raises `BadInput`, and
    `PolicyFault` where a policy goes wrong."""
    began = time.process_time()
    # On the page nobody wrote --set: what is wrong is told by the key alone.
    experiment = load(source_of(source), [(ByOption(key, key), value) for key, value in chosen.items()])
    recorder = InMemory()
    run = build(experiment, recorder)
    run.play()
    for swap in run.executor.swaps:
        recorder.gathered.swap(swap._asdict())
    file = file_of(source, chosen, experiment)
    return Simulated(kept(name, experiment, recorder), experiment, file, time.process_time() - began)


def warm_up(source: str, overrides: Sequence[Override]) -> None:
    """Read the profiles, and simulate a few requests, so that the first question waits for neither."""
    build(shortened(load(source_of(source), overrides))).play()


def read_measured(source: str, overrides: Sequence[Override]) -> None:
    """Read the measured runs that answers are compared with: it takes longer than the rest of a page, and is kept."""
    with suppress(ServeTwinError):  # what is wrong with the experiment is told where it is asked for
        trusted([load(source_of(source), overrides)], [])


def kept(name: str, experiment: Experiment, recorder: InMemory) -> run_sections.Run:
    """What a finished run is for reports, without a folder."""
    for record, end in with_ends(recorder.requests):
        recorder.gathered.request(record, end)
    meta = {"kind": "simulated", "experiment": experiment.as_dict(), "seed": experiment.seed}
    ended = [r["finished"] - r["arrival"] for r in recorder.requests if r["finished"] is not None]
    outcomes = {r["id"]: r["outcome"] for r in recorder.requests}
    records = RunRecords(Path(), meta, recorder.summary.as_dict(), outcomes, np.array(ended), {}, None)
    return run_sections.Run(name, records, recorder.gathered.timeline(meta), recorder.requests)


def setting(experiment: Experiment) -> validity.Setting:
    """Where the run of *experiment* lies, for what was validated."""
    found = settings_of(experiment)
    return validity.Setting(*(found[key] for key in ("workload", "policy", "rate", "cv", "slo_factor")))


def trusted(experiments: list[Experiment], more: list[str]) -> Any:
    """The section on how far to trust runs of *experiments*."""
    return validity.section(experiments, map(setting, experiments), more, experiments)
