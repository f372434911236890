"""What the host of an engine does beside its device: launching steps, handing their outputs on, taking requests in.

Launches are judged by how long they keep the host: from when the scheduler is asked until the sampling of the step is
launched. The host's own speed wanders: for some tenths of a second everything takes half as long again, then it does
not. So a launch has a mean, and a slowdown that is drawn and lasts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from servetwin.core.arithmetic import float_sum
from servetwin.profiles.llm.launch_times import TAIL
from servetwin.profiles.tables.costs import (
    BEGINS,
    BEGINS_EACH,
    HOST_SLOWDOWN,
    HOST_SLOWDOWN_LASTS,
    INTAKE,
    LAUNCH,
    LAUNCH_BACK,
    LAUNCH_BACK_TOKEN,
    LAUNCH_EACH,
    LAUNCH_LEFT,
    LAUNCH_PIECES,
    STALL,
    STALL_EVERY,
    STEP_BETWEEN,
    TOLD,
    TOLD_EACH,
)

from ..measuring.device_steps import Sample, Steps, ends, lines_through

#: What a launch takes longer than usual by so many seconds is a stall, and such a share of it.
STALLED, SHARE = 2e-3, 0.6
#: Stalls at least, for anything to be said of them.
STALLS = 5
#: Launches at least whose batch lost, or got back, so many sequences, for a cost of that to be told; how often the
#: line through them is drawn anew without what is furthest off, and the share that stays.
MOVED, FEW, TRIMS, KEPT = 20, 4, 8, 0.97
#: Launches at least, for a slowdown to be told.
ENOUGH = 60
#: Shares at which the quantiles of the slowdown stand.
SHARES = (0.0, 0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98, 1.0)
#: Seconds between two launches up to which their ratios are compared, by class.
LAGS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def host(parts: Sequence[Steps], found: Sequence[Sample], last: int, origin: dict[str, str]) -> dict[str, Any]:
    """``step.begins``, ``step.launch``, ``step.between``, ``host.slowdown`` and what stands below them, of the
    steps of *parts*, whose samples are *found*; *last* is the largest graph in tokens."""
    return _launching(found, last, origin) | _between(parts, origin)


def _launching(found: Sequence[Sample], last: int, origin: dict[str, str]) -> dict[str, Any]:
    common: dict[str, Any] = {"unit": "seconds", "modules": ["prefill", "decode"], "source": origin}
    costs: dict[str, Any] = {}
    seen = {how: [s for s in found if s.launching == how and np.isfinite(s.launched)] for how in MEANINGS}
    serving = [s for s in found if s.kind == "traffic"] or list(found)
    constant, slope = lines_through([(_size(s), s.scheduling) for s in serving])
    moving, regrouping = _regrouping(seen["graph"], common)
    taken = {
        how: np.array([constant + slope * _size(s) + s.sampled - moving @ _moved(s) for s in some])
        for how, some in seen.items()
    }
    least = "graph" if seen["graph"] else "kernels"
    # What a sequence adds is the same however a step is launched; one that is one graph is seen best.
    each = lines_through([(_size(s), t) for s, t in zip(seen[least], taken[least], strict=True)])[1]
    over_mean: list[tuple[list[Sample], Any]] = []
    for how, (name, meaning) in MEANINGS.items():
        some = seen[how]
        if not some:
            continue
        if how == "graph":  # when it begins is what counts, and not the sampling after it
            begun = taken[how] + np.array([s.launched - s.scheduling - s.sampled for s in some])
            begins_each = lines_through([(_size(s), t) for s, t in zip(some, begun, strict=True)])[1]
            alone = begun - begins_each * _size_of(some)
            more = {BEGINS_EACH(): _each("until a step can begin", begins_each, len(some), common)}
            value, told = float(np.median(alone)), "median"
        else:
            alone = taken[how] - each * _size_of(some)
            value, told = _mean(alone) + TAIL, "mean without the slowest hundredth"
            more = {}
            over_mean.append((some, taken[how] / (value - TAIL + each * _size_of(some))))
        low, high = (1e3 * float(np.quantile(alone, q)) for q in (0.1, 0.9))
        costs[name] = {
            "meaning": meaning.format(last=last) + "; of no sequence",
            "value": round(max(value, 1e-6), 7),
            "statistic": f"{told}; of eight tenths {low:.1f} to {high:.1f} ms",
            "samples": len(some),
            "how": "on the host's clock; the scheduler as when it serves",
            **common,
        }
        costs |= more
    if any(seen.values()):
        costs[LAUNCH_EACH()] = _each("until a step is launched, with its sampling", each, len(seen[least]), common)
    telling = _telling([s for s in serving if np.isfinite(s.told)], constant, slope, common)
    return costs | telling | regrouping | _slowdown(over_mean, common)


def _telling(told: Sequence[Sample], constant: float, slope: float, common: dict[str, Any]) -> dict[str, Any]:
    """``step.told``, of steps that processes of their own launched; scheduling takes *constant* and *slope*."""
    if not told:
        return {}
    value, each = lines_through([(_size(s), constant + slope * _size(s) + s.told) for s in told])
    how = "on the host's clock, until the messages with a step and its sampling were in the queue of the workers"
    return {
        TOLD(): {
            "meaning": "from when the scheduler is asked until the engine's process has told its workers, which "
            "launch the step; of no sequence",
            "value": round(max(value, 1e-6), 7),
            "statistic": "line through the medians by octave of sequences",
            "samples": len(told),
            "how": how,
            **common,
        },
        TOLD_EACH(): {**_each("until the workers have been told", each, len(told), common), "how": how},
    }


def _each(until: str, seconds: float, samples: int, common: dict[str, Any]) -> dict[str, Any]:
    return {
        "meaning": f"what it takes longer for each sequence of a step {until}",
        "value": float(f"{seconds:.4g}"),
        "statistic": "slope of a line through the medians by octave of sequences",
        "samples": samples,
        "how": "steps that only decode, the scheduler as when it serves",
        **common,
    }


def _moved(sample: Sample) -> Any:
    return np.array([sample.left, sample.back, sample.back_tokens], dtype=float)


def _regrouping(graphs: Sequence[Sample], common: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What each sequence that leaves the batch and runs on, or comes back, adds to a launch, and each token of the
    latter: seconds, and the costs. Steps of *graphs* that only decode tell; of traffic, it is not known who ended."""
    some = [s for s in graphs if s.kind != "traffic"]
    if sum(1 for s in some if s.back >= FEW) < MOVED or sum(1 for s in some if s.left >= FEW) < MOVED:
        return np.zeros(3), {}
    rows = np.array([[1.0, _size(s), *_moved(s)] for s in some])
    seconds = np.array([s.launched for s in some])
    kept = np.ones(len(some), dtype=bool)
    for _ in range(TRIMS):
        slopes = np.linalg.lstsq(rows[kept], seconds[kept], rcond=None)[0]
        off = np.abs(seconds - rows @ slopes)
        kept = off <= np.quantile(off, KEPT)
    each = np.maximum(slopes[2:], 0.0)
    counts = [int((rows[:, column] > 0).sum()) for column in (2, 3, 4)]
    meanings = {
        LAUNCH_LEFT(): "what launching a step takes longer for each sequence that was in the one before, has not "
        "ended and is not in it",
        LAUNCH_BACK(): "likewise for each running sequence that is in it again and was not in the one before",
        LAUNCH_BACK_TOKEN(): "and for each token of context of such a sequence",
    }
    costs = {
        name: {
            "meaning": meaning,
            "value": float(f"{value:.4g}"),
            "statistic": f"least squares, without the {1 - KEPT:.0%} that are furthest off",
            "samples": count,
            "how": "steps that only decode, launched as one graph",
            **common,
        }
        for (name, meaning), value, count in zip(meanings.items(), each, counts, strict=True)
    }
    return each, costs


#: By how a step is launched: the name of the cost, and what it means.
MEANINGS = {
    "graph": (
        BEGINS(),
        "from when the scheduler is asked until a step can begin on a device that has nothing to do; until one that "
        "only decodes is launched, as one graph",
    ),
    "pieces": (
        LAUNCH_PIECES(),
        "from when the scheduler is asked for a step with prompts until the host has launched it, as graphs piece by "
        "piece, with its sampling, and it is over if it waited for that",
    ),
    "kernels": (
        LAUNCH(),
        "from when the scheduler is asked for a step of more than {last} tokens until the host has launched it, "
        "kernel by kernel, with its sampling, and it is over if it waited for that",
    ),
}


def _size(sample: Sample) -> float:
    return float(sample.decode + len(sample.chunks))


def _size_of(samples: Sequence[Sample]) -> Any:
    return np.array([_size(s) for s in samples])


def _mean(values: Any) -> float:
    """Without the slowest hundredth, which are stalls of another kind."""
    return float(np.mean(np.sort(values)[: max(1, int(0.99 * len(values)))]))


def _slowdown(over_mean: Sequence[tuple[list[Sample], Any]], common: dict[str, Any]) -> dict[str, Any]:
    """``host.slowdown`` and ``host.slowdown_lasts`` of launches that took so many times their mean."""
    ratios = np.concatenate([ratio for _, ratio in over_mean]) if over_mean else np.zeros(0)
    if len(ratios) < ENOUGH:
        return {}
    values = np.quantile(ratios, SHARES)
    values[-1] = np.quantile(ratios, 0.995)
    middle = float(np.interp(np.linspace(0.0005, 0.9995, 1000), SHARES, values).mean())
    how = "launches of steps with prompts, and of those beyond the graphs, over the means of both"
    return {
        HOST_SLOWDOWN(): {
            "meaning": "what launching a step takes over its mean",
            "quantiles": {"p": list(SHARES), "values": [round(float(v / middle), 5) for v in values]},
            "statistic": "quantiles, such that the mean is 1",
            "samples": len(ratios),
            "how": how,
            **common,
            "unit": "ratio",
        },
        HOST_SLOWDOWN_LASTS(): {
            "meaning": "how long that lasts on average",
            "value": round(_lasting(over_mean), 4),
            "statistic": "least squares: how alike two launches are, by the time between them",
            "samples": len(ratios),
            "how": how,
            **common,
        },
    }


def _lasting(over_mean: Sequence[tuple[list[Sample], Any]]) -> float:
    """Seconds in which the likeness of the ratios of two launches fades to a third."""
    products: dict[int, list[float]] = {}
    apart: dict[int, list[float]] = {}
    for samples, ratio in over_mean:
        logs = np.log(ratio / np.median(ratio))
        logs = np.clip(logs - logs.mean(), -1.0, 1.0)
        for i, first in enumerate(samples):
            for j in range(i + 1, min(i + 20, len(samples))):
                seconds = samples[j].began - first.began
                if samples[j].kind != first.kind or not 0.0 < seconds < LAGS[-1]:
                    break  # of another part
                lag = int(np.searchsorted(LAGS, seconds))
                products.setdefault(lag, []).append(float(logs[i] * logs[j]))
                apart.setdefault(lag, []).append(seconds)
    spread = float(np.mean([np.var(np.log(ratio)) for _, ratio in over_mean]))
    rows = [
        (statistics.fmean(apart[lag]), statistics.fmean(products[lag]) / spread)
        for lag in sorted(products)
        if len(products[lag]) >= ENOUGH // 2
    ]
    if not rows or spread <= 0.0:
        return LAGS[0]
    seconds, alike = np.array(rows).T
    tried = np.geomspace(LAGS[0], LAGS[-1], 60)
    return float(min(tried, key=lambda t: float(((np.exp(-seconds / t) - alike) ** 2).sum())))


def _between(parts: Sequence[Steps], origin: dict[str, str]) -> dict[str, Any]:
    common: dict[str, Any] = {"unit": "seconds", "modules": ["prefill", "decode"], "source": origin}
    costs: dict[str, Any] = {}
    gaps: dict[int, list[float]] = {}
    for steps in parts:
        for i in range(len(steps) - 2):
            decode, asked = len(steps.contexts[i]), steps.start[i + 2]
            if asked >= steps.end[i] and asked < steps.after[i + 2] and not steps.chunks[i]:
                gaps.setdefault(decode, []).append(float(asked - steps.end[i]))
    sizes = sorted(size for size, values in gaps.items() if size and len(values) >= 3)
    if sizes:
        costs[STEP_BETWEEN()] = {
            "meaning": "from the end of a step until the scheduler is asked for the next, where nothing has come "
            "meanwhile: the engine hands the outputs on, while the step after it runs",
            "by_batch": {"batch": sizes, "values": [round(statistics.median(gaps[n]), 7) for n in sizes]},
            "statistic": "median",
            "samples": sum(len(gaps[n]) for n in sizes),
            "how": "steps that only decode, by their sequences",
            **common,
        }
    return costs


def intake(seconds: Sequence[float], origin: dict[str, str]) -> dict[str, Any]:
    if not seconds:
        return {}
    ordered = sorted(seconds)[: max(1, int(0.99 * len(seconds)))]
    return {
        INTAKE(): {
            "meaning": "the engine takes a request in: between two steps, one after the other",
            "unit": "seconds",
            "value": round(statistics.fmean(ordered), 7),
            "statistic": "mean without the slowest hundredth",
            "samples": len(seconds),
            "how": "around the engine's add_request, of requests at random",
            "source": origin,
        }
    }


def stalls(parts: Sequence[Steps], last: int, origin: dict[str, str]) -> dict[str, Any]:
    """``host.stall`` and ``host.stall_every``: launches of steps that only decode that took much longer than the
    others of about as many sequences."""
    taken: dict[int, list[tuple[float, float]]] = {}
    for steps in parts:
        over = ends(steps)
        for i in range(1, len(steps)):
            decode = len(steps.contexts[i])
            if decode and decode <= last and not steps.chunks[i] and decode == len(steps.contexts[i - 1]):
                launch = float(steps.scheduled[i] - steps.start[i] + np.nan_to_num(steps.launched[i]))
                taken.setdefault(decode.bit_length(), []).append((launch, float(over[i] - over[i - 1])))
    lengths, busy = [], 0.0
    for some in taken.values():
        usual = statistics.median(launch for launch, _ in some)
        busy += float_sum(seconds for _, seconds in some)
        lengths += [launch - usual for launch, _ in some if launch - usual > max(STALLED, SHARE * usual)]
    if len(lengths) < STALLS:
        return {}
    lengths.sort()
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    common: dict[str, Any] = {"unit": "seconds", "modules": ["prefill", "decode"], "source": origin}
    values = [round(float(np.quantile(lengths, p)), 7) for p in shares]
    return {
        STALL(): {
            "meaning": "for how long the host stands still, now and then, while it launches a step",
            "value": round(statistics.fmean(lengths), 7),
            "quantiles": {"p": list(shares), "values": values},
            "statistic": "mean",
            "samples": len(lengths),
            "how": "launches of steps that only decode, of the same sequences as the one before, over the median",
            **common,
        },
        STALL_EVERY(): {
            "meaning": "from one such stall to the next, while the engine is busy",
            "value": round(busy / len(lengths), 7),
            "statistic": f"{busy:.1f} busy seconds over their number",
            "samples": len(lengths),
            "how": "likewise",
            **common,
        },
    }
