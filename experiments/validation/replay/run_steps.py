"""The steps of measured runs of a language model, one by one, beside what a profile says of each: how far off is the
device, how fast was the host, and how far is a run off when its own host is known?

Beside ``runs-MODEL.json.gz`` (`chat`) may stand ``launches-MODEL.npz``: of each run, by its name, a row for
each step (`COLUMNS`), and under ``NAME schedule`` the seconds that the scheduler took, median and mean. The device's
times are from events on its stream, and so free of the host.

``python -m servetwin.experiments.validation.replay.run_steps [FILE [PROFILE]]`` prints that for a file of runs. What
a run says of its own host was not known before it: gaps by that host explain, and predict nothing.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from servetwin.core import BadInput
from servetwin.profiles import Profile, load
from servetwin.profiles.llm.launch_times import over_profile
from servetwin.profiles.llm.recent_load import Curves, recent_load_of
from servetwin.profiles.tables.costs import BEGINS, LAUNCH, LAUNCH_PIECES

from ...registry.catalog import recording_of
from ...spec.keys.host_factors import of_run
from . import as_command
from .chat import SEEDS, gap, read, recordings, simulate
from .host_band import NEAR

Floats = Any  # numpy arrays of floats

#: Of a step: tokens of prompts, sums over its chunks of squared lengths and of lengths times tokens before, sequences
#: in it, those that decode and their context; seconds until it was launched and until its sampling was, and on the
#: device until it was over and without anything to do before.
COLUMNS = ("prompt", "squares", "pairs", "sequences", "decode", "context", "launched", "sampled", "device", "idle")
#: Those of them that tell of the host.
HOST = ("prompt", "sequences", "decode", "launched", "sampled")
#: Hosts of a band, as of `servetwin run --host-factor`.
BAND = (1.0, 1.3, 1.6)
#: Steps of a kind at least, for a run to be judged by them.
JUDGED = 20
#: Beyond the graphs, steps of fewer tokens than this wait for their launch as often as not.
LARGE = 1024


def pack(folder: Path, out: Path) -> None:
    """Write what the run folders in *folder* and the ``RUN-launches.npy`` beside them tell to *out*."""
    arrays: dict[str, Any] = {}
    for place in sorted(path for path in folder.iterdir() if (path / "summary.json").exists()):
        lines = (place / "batches.jsonl").read_text(encoding="utf-8").splitlines()
        launches = np.load(folder / f"{place.name}-launches.npy")[-len(lines) :]  # those before are of the warm-up
        rows = []
        for line, (launched, sampled, device, idle) in zip(map(json.loads, lines), launches, strict=True):
            chunks: list[tuple[int, int]] = [(n, c) for _, n, c in line["prefill"]]
            counts = (sum(n for n, _ in chunks), sum(n * n for n, _ in chunks), sum(n * c for n, c in chunks))
            decoding = (len(chunks) + line["decode"], line["decode"], line["context"])
            rows.append((*counts, *decoding, launched, sampled, 1e-3 * device, 1e-3 * max(idle, 0.0)))
        arrays[place.name] = np.array(rows, dtype=np.float32)
        said = json.loads((place / "real.json").read_text(encoding="utf-8"))["schedule_ms"]
        arrays[f"{place.name} schedule"] = np.array([1e-3 * said["median"], 1e-3 * said["mean"]])
    np.savez_compressed(out, **arrays)


def launches_of(runs: Path) -> Path:
    """The file of steps that belongs to a file of *runs*."""
    return runs.with_name(runs.name.replace("runs-", "launches-").replace(".json.gz", ".npz"))


def device_errors(steps: Floats, profile: Profile) -> dict[str, Floats]:
    """(taken - predicted) / predicted of *steps* on the device, by kind; those whose kernels waited for the host are
    left out: all beyond the graphs of fewer than `LARGE` tokens."""
    table, load_of = profile.tokens("measured"), recent_load_of(profile.costs)
    last = int(profile.token_data.engine.graph_tokens or 0)
    errors: dict[str, list[float]] = {"decode": [], "prompts in graphs": [], "beyond graphs": []}
    now = 0.0
    for prompt, squares, pairs, _, decode, context, _, _, device, idle in steps.tolist():
        tokens = int(prompt + decode)
        if not tokens or not np.isfinite(device) or device <= 0.0:
            continue
        seconds = table.step(int(prompt), squares, pairs, int(decode), context)
        start = now + (idle if np.isfinite(idle) else 0.0)
        if load_of is not None:
            what: Any = "decode" if not prompt else "mixed" if decode else "prefill"
            curves = load_of.curves.get(what) or load_of.curves.get("prefill", Curves())
            seconds *= curves.at(tokens, load_of.density.at(start))
            load_of.density.add(start, start + device, tokens)
        now = start + device
        if tokens <= last:
            errors["prompts in graphs" if prompt else "decode"].append(device / seconds - 1.0)
        elif tokens >= LARGE:
            errors["beyond graphs"].append(device / seconds - 1.0)
    return {kind: np.array(values) for kind, values in errors.items()}


def in_band(measured: float, simulated: Sequence[float]) -> bool:
    """Whether *measured* lies between the lowest and the highest of *simulated*, or no further than `NEAR` points."""
    return min(simulated) - NEAR <= measured <= max(simulated) + NEAR


def host_factors(steps: Floats, schedule: Sequence[float], profile: Profile) -> dict[str, float]:
    """How many times as long as in *profile* the host took to launch *steps* of a run, by the name of the cost; what
    is too rare to be told is taken to be as slow as steps that only decode."""
    prompt, sequences, decode, launched, sampled = (steps[:, COLUMNS.index(name)] for name in HOST)
    graphs = int(profile.token_data.engine.graph_tokens or 0)
    found = over_profile(
        np.column_stack((prompt + decode, sequences, launched, sampled)), schedule, profile.costs, graphs
    )
    return {name: found.get(name, found[BEGINS()]) for name in (BEGINS(), LAUNCH_PIECES(), LAUNCH())}


def steps_of(path: Path, runs: Sequence[str]) -> dict[str, Floats]:
    """The steps of *runs* in the file *path*, and their schedules. Raises `BadInput` if they are not all there."""
    wanted = {name: (2, (len(COLUMNS),)) for name in runs} | {f"{name} schedule": (1, ()) for name in runs}
    right = "what `pack` wrote of these runs"
    try:
        with path.open("rb") as content, np.load(content) as file:
            found = {name: file[name] for name in wanted}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"cannot be read: {error}", where=str(path), right=right) from None
    except KeyError as error:
        raise BadInput(f"does not hold all runs: {error.args[0]}", where=str(path), right=right) from None
    for name, (axes, columns) in wanted.items():
        array = found[name]
        if array.dtype.kind != "f" or array.ndim != axes or array.shape[1:] != columns or len(array) < 2:
            what = f"{name} is an array of shape {array.shape} of {array.dtype}"
            raise BadInput(what, where=str(path), right=right)
    return found


def lines(file: Path, named: str | None = None, seeds: int = SEEDS) -> Iterator[str]:
    """What is printed of the runs in *file*, by the profile *named* (None: their own)."""
    own, runs = read(file)
    profile = load(named or own)
    found = steps_of(launches_of(file), [run.name for run in runs])
    yield f"{file.parent.name}/{file.name} by {named or own}: device (median, mean) off, host over the profile's"
    before, since, inside = [], [], 0
    for run in runs:
        errors = device_errors(found[run.name], profile)
        host = of_run(host_factors(found[run.name], found[f"{run.name} schedule"], profile))
        own_host, *band = (gap(run, simulate(run, named or own, seeds, on)) for on in (host, *BAND))
        before.append(band[0])
        since.append(own_host)
        inside += in_band(0.0, band)
        device = ", ".join(
            f"{kind} {100 * np.median(off):+.1f}, {100 * off.mean():+.1f} %"
            for kind, off in errors.items()
            if len(off) >= JUDGED
        )
        factors = ", ".join(f"{name} x {factor:.2f}" for name, factor in host.by_cost().items())
        yield f"  {run.name}: {device}"
        yield f"    host: {factors}; {band[0]:+.1f} points off, with this host {own_host:+.1f}"
        others = ", ".join(f"{off:+.1f}" for off in band)
        yield f"    on hosts of {', '.join(map(str, BAND))} times: {others} points off"
    for what, some in (("off", before), ("with the host of each run", since)):
        sizes = np.abs(some)
        yield f"  {what}: {sizes.mean():.2f} points on average, {sizes.max():.2f} at most"
    band_told = f"the band of hosts from {BAND[0]} to {BAND[-1]} times"
    yield f"  within {NEAR:g} point of {band_told}: {inside} of {len(runs)} runs"


def main(arguments: Sequence[str]) -> None:
    files = (
        [recording_of(arguments[0])] if arguments else [file for file in recordings() if launches_of(file).exists()]
    )
    for file in files:
        for line in lines(file, arguments[1] if len(arguments) > 1 else None):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    as_command.run(main)
