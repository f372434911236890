"""Restates the tables of the NeuStream artifact (EuroSys'25, MIT licence) as profile files of ours.

    python -m servetwin.profiles.neustream_artifact REFERENCE_DIR OUT_DIR

REFERENCE_DIR is the extract of the artifact (the folder that holds ``diffusion/latency_tables.json``); one YAML file
per workload is written below OUT_DIR. Same input, same bytes: the files under ``data/`` were made by this and a test
holds them equal. Nothing is computed here: every number is one of the extract's. Those of language models, which are
computed in part, come from `llm` and `agents`.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..schema import SCHEMA_VERSION
from ..tables.costs import (
    CLIENT_TO_FIRST,
    CLOCKWORK_RATIO,
    FIRST_RESIDENCE,
    FIRST_TO_LOOP,
    LAST_RESIDENCE,
    LAST_STAGE,
    LAST_TO_CLIENT,
    LOOP_TO_LAST,
    SLO_CONSTANT,
)
from ..yaml_writer import Anchored, Flow

TABLES = "diffusion/latency_tables.json"
RUNS = "diffusion/logged_runs.csv"
ORIGIN = {
    "repository": "github.com/Fjallraven-hc/NeuStream-AE",
    "commit": "57fb0c5",
    "licence": "MIT",
    "restated_from": f"neustream-ae/{TABLES}",
}
RTX4090 = {"name": "NVIDIA GeForce RTX 4090", "kind": "gpu", "memory_gib": 24.0}
H100 = {"name": "NVIDIA H100", "kind": "gpu"}
GUIDED = "requests; classifier-free guidance doubles the rows inside the {} (batch 8 = 16 rows), in no other module"


@dataclass(frozen=True)
class Workload:
    """One workload of the artifact, and what its tables do not say about themselves."""

    key: str  #: its name in the extract
    name: str
    description: str
    device: dict[str, Any]
    model: str
    side: int  #: of the square image, in pixels
    modules: dict[str, str]  #: our module name -> the extract's
    loop: str
    last: tuple[str, ...]  #: modules of the last stage, where it is not the loop
    guided: bool = True
    limits: str | None = None


SD_MODULES = {"clip": "clip", "unet": "unet", "vae": "vae", "safety": "safety"}
DIT_MODULES = {"dit": "main", "vae": "vae"}
DIT_LIMITS = (
    "The logs of single iterations are missing{}, so periods were solved from how long requests stayed; they are "
    "noisy above batch {}, and include joining, leaving and contention with the VAE. The last stage's first batches "
    "of 2 or 3 took 0.35 to 0.7 s (cuDNN autotuning), which spoils its means beyond batch 1."
)
SD_LIMITS = (
    "Steps do not synchronise with the device, so the host runs ahead by about one step: beside a request that joins "
    "or leaves, single periods are shifted between neighbouring iterations, and only sums over a few can be trusted."
)
WORKLOADS = (
    Workload(
        "DiT_S_2",
        "rtx4090/dit-s2-256",
        "DiT-S/2 class-conditional images, RTX 4090",
        RTX4090,
        "DiT-S/2",
        256,
        DIT_MODULES,
        "dit",
        ("vae",),
        limits=DIT_LIMITS.format("", 11)
        + " Inferred periods jump at 12, 13 and from 17. Between sessions the host's speed differed by up to 10 %.",
    ),
    Workload(
        "DiT_XL_2",
        "rtx4090/dit-xl2-256",
        "DiT-XL/2 class-conditional images, RTX 4090",
        RTX4090,
        "DiT-XL/2",
        256,
        DIT_MODULES,
        "dit",
        ("vae",),
        limits=DIT_LIMITS.format(" but for one short test run", 8)
        + " Some of its logged times are below 1 ms (all of batch 3), which no VAE takes. Clockwork's driver took "
        "its SLOs from its own tables, 12 % longer than NeuStream's at the same factor.",
    ),
    Workload(
        "Palette",
        "rtx4090/palette-256",
        "Palette inpainting, RTX 4090",
        RTX4090,
        "Palette inpainting (places2)",
        256,
        {"unet": "main"},
        "unet",
        (),
        guided=False,
        limits="17 runs have no iteration log. Steps compute on preallocated tensors, not on the data of requests.",
    ),
    Workload(
        "SD15_RTX4090_256",
        "rtx4090/sd15-256",
        "Stable Diffusion v1.5, 256x256, RTX 4090",
        RTX4090,
        "Stable Diffusion v1.5",
        256,
        SD_MODULES,
        "unet",
        ("vae", "safety"),
        limits=SD_LIMITS,
    ),
    Workload(
        "SD15_RTX4090_512",
        "rtx4090/sd15-512",
        "Stable Diffusion v1.5, 512x512, RTX 4090",
        RTX4090,
        "Stable Diffusion v1.5",
        512,
        SD_MODULES,
        "unet",
        ("vae", "safety"),
        limits=SD_LIMITS,
    ),
    Workload(
        "SD15_H100_512",
        "h100/sd15-512",
        "Stable Diffusion v1.5, 512x512, H100",
        H100,
        "Stable Diffusion v1.5",
        512,
        SD_MODULES,
        "unet",
        ("vae", "safety"),
        limits="No logs of any run exist: only the tables in the code are known; no period, cost or spread is. Which "
        "H100 it was is not stated. Clockwork's driver predicted with RTX 4090 entries for UNet, VAE and safety "
        "checker (a mix-up, kept as the kind clockwork) and took its SLOs from the H100 tables.",
    ),
)

PERIODS = {
    "undisturbed": "measured",
    "all": "all",
    "someone_leaves": "leaves",
    "someone_starts": "starts",
    "overlaps_last_stage": "overlaps",
}
#: the extract's delay -> name, meaning, whose it is ("first", "last" or the whole pipeline's)
DELAYS = {
    "request_to_first_receive": (CLIENT_TO_FIRST(), "sent by the client until taken in by the first stage", ""),
    "clip_receive_to_send": (FIRST_RESIDENCE(), "taken in by the first stage until handed on", "first"),
    "clip_send_to_unet_receive": (FIRST_TO_LOOP(), "handed on by the first stage until taken in by the loop's", ""),
    "main_send_to_last_receive": (LOOP_TO_LAST(), "handed on by the loop's stage until taken in by the last", ""),
    "last_receive_to_send": (
        LAST_RESIDENCE(),
        "taken in by the last stage until handed on, waiting included",
        "last",
    ),
    "last_send_to_collector": (LAST_TO_CLIENT(), "handed on by the last stage until collected", ""),
}


class Reference:
    """The extract of the artifact."""

    def __init__(self, folder: Path) -> None:
        try:
            tables = json.loads((folder / TABLES).read_text(encoding="utf-8"))
            with (folder / RUNS).open(encoding="utf-8", newline="") as file:
                runs = list(csv.DictReader(file))
        except OSError as e:
            raise BadInput(
                f"cannot be read: {e.strerror}", where=str(e.filename), right=f"a folder with {TABLES}"
            ) from None
        self.used: dict[str, Any] = tables["used_by_code"]
        self.logs: dict[str, Any] = tables["measured_from_logs"]
        self.days: dict[str, tuple[str, str]] = {}
        for key in self.used:
            days = sorted(r["run_start"][:10] for r in runs if r["workload"] == key and r["status"] == "primary")
            if days:
                self.days[key] = days[0], days[-1]


def profile(reference: Reference, w: Workload) -> dict[str, Any]:
    """The profile file of *w*, as plain data."""
    used, logs = reference.used[w.key], reference.logs[w.key]
    if w.key in reference.days:
        first, last = reference.days[w.key]
        when = f"tables: not stated; logs: {first} to {last}"
    else:
        when = "not stated"
    counts = (
        GUIDED.format({"unet": "UNet", "dit": "DiT"}[w.loop]) if w.guided else "requests; no guidance, one row each"
    )
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": w.name,
        "description": w.description,
        "device": Flow(w.device),
        "model": w.model,
        "precision": "fp16",
        "image": [w.side, w.side],
        "batch_counts": counts,
        "measured_when": when,
        "origin": ORIGIN,
    }
    if w.limits:
        data["limits_of_data"] = w.limits
    data["modules"] = {module: _module(w, module, theirs, used, logs) for module, theirs in w.modules.items()}
    costs = _costs(w, used, logs)
    if costs:
        data["costs"] = costs
    return data


def _module(w: Workload, module: str, theirs: str, used: dict[str, Any], logs: dict[str, Any]) -> dict[str, Any]:
    scheduler = used["neustream_scheduler"][theirs]
    tables = {"scheduler": _code_table(scheduler)}
    base = scheduler["table"]
    slo = used["slo_base"][theirs]
    if slo["table"] != base:
        tables["slo"] = _code_table(slo)
    committed = used.get("slo_base_committed_driver", {}).get(theirs)
    if committed and committed["table"] != slo["table"]:
        note = "an older table in the driver as published; every SLO of the logged runs follows the scheduler's table"
        tables["slo_committed"] = _code_table(committed, note)
    clockwork = used["clockwork"].get(f"duration_{theirs}")
    if clockwork:
        tables["clockwork"] = _code_table(clockwork, "entries of another device: a mix-up in the driver")
    else:
        clockwork = used["clockwork"][theirs]
        if clockwork["table"] != base:
            tables["clockwork"] = _code_table(clockwork)
        if clockwork["table"] != slo["table"] and w.key == "DiT_XL_2":
            tables["clockwork_slo"] = Anchored(tables["clockwork"], f"{module}_clockwork")
            tables["clockwork"] = tables["clockwork_slo"]
    if module == w.loop:
        tables |= _log_tables(w, logs)
    made: dict[str, Any] = {"loop": module == w.loop}
    if module == w.loop and w.guided:
        made["rows_per_request"] = 2
    made["tables"] = tables
    return made


def _code_table(table: dict[str, Any], note: str | None = None) -> dict[str, Any]:
    """A table that stands in the artifact's code."""
    sizes = [int(n) for n in table["table"]]
    seconds: list[float] = list(table["table"].values())
    remarks = [note] if note else []
    rises = [b - a for a, b in itertools.pairwise(seconds)]
    if max(rises) - min(rises) < 1e-9:
        remarks.append("a straight line in the batch size to the last digit, so fitted rather than measured")
    same = [n for n, rise in zip(sizes[1:], rises, strict=True) if rise == 0]
    if same:
        remarks.append(f"the same digits as the size before at batch {', '.join(map(str, same))}, so filled in")
    made: dict[str, Any] = {"batch": sizes, "seconds": seconds, "statistic": "not stated"}
    made["source"] = Flow({"file": table["file"], "line": table["line"], "name": table["name"]})
    if remarks:
        made["note"] = "; ".join(remarks)
    return made


def _log_tables(w: Workload, logs: dict[str, Any]) -> dict[str, Any]:
    """Periods of the loop's iterations, from the logs."""
    tables: dict[str, Any] = {}
    for theirs, kind in PERIODS.items():
        rows = logs.get("iteration_period_s", {}).get(theirs)
        if rows:
            statistic = f"mean over {_runs(logs['logs_with_iterations'])}, start to start"
            source = _log_source(w, f"iteration_period_s.{theirs}")
            tables[kind] = _lists(rows, "seconds", "mean") | {"statistic": statistic, "source": source}
    rows = logs.get("self_profile_s")
    if rows:
        tables["self_profile"] = {
            "batch": _sizes(rows),
            "seconds": [r["mean"] for r in rows.values()],
            "samples": [r["count"] for r in rows.values()],
            "spread": {
                "lowest_run": [r["min_run_mean"] for r in rows.values()],
                "highest_run": [r["max_run_mean"] for r in rows.values()],
            },
            "statistic": "mean of the running means that each run stored, warm-up included; spread: the extreme runs",
            "source": _log_source(w, "self_profile_s"),
        }
    inferred = logs.get("inferred_iteration_period_s")
    if inferred:
        tables["inferred"] = {
            "batch": _sizes(inferred["period"]),
            "seconds": list(inferred["period"].values()),
            "observed_seconds": [inferred["request_seconds"][n] for n in inferred["period"]],
            "statistic": "least squares of steps = sum over n of (time spent at batch n) / period(n), over the "
            f"finished requests of {_runs(len(inferred['runs']))}; batch size taken as the finished ones in flight",
            "source": _log_source(w, "inferred_iteration_period_s"),
        }
    return tables


def _costs(w: Workload, used: dict[str, Any], logs: dict[str, Any]) -> dict[str, Any]:
    costs: dict[str, Any] = {}
    constant = used["slo_base"].get("init_s")
    if constant:
        costs[SLO_CONSTANT()] = {
            "meaning": "added to a request's solo latency before the SLO factor (its set-up)",
            "unit": "seconds",
            "value": constant,
            "statistic": "not stated",
            "how": "a constant in the driver",
            "source": Flow({"file": used["slo_base"]["main"]["file"]}),
        }
    delays = logs.get("stage_delays_s", {})
    whose = {"first": [next(iter(w.modules))], "last": list(w.last), "": []}
    for theirs, (name, meaning, at) in DELAYS.items():
        if theirs in delays:
            costs[name] = {"meaning": f"seconds from {meaning}", "unit": "seconds"}
            if whose[at]:
                costs[name]["modules"] = whose[at]
            costs[name] |= _spread(delays[theirs])
            costs[name] |= {
                "how": "host time stamps of all finished requests of the NeuStream runs",
                "source": _log_source(w, f"stage_delays_s.{theirs}"),
            }
    prefix = "last_stage_batch_"
    rows = {key.removeprefix(prefix): row for key, row in delays.items() if key.startswith(prefix)}
    if rows:
        costs[LAST_STAGE()] = {
            "meaning": f"seconds that the last stage ({' + '.join(w.last)}) computes for a batch, beside the loop",
            "unit": "seconds",
            "modules": list(w.last),
            "by_batch": _lists(rows, "values", "mean"),
            "how": "from host time stamps of the requests that left the last stage together",
            "source": _log_source(w, f"stage_delays_s.{prefix}N"),
        }
    ratio = logs.get("clockwork_actual_over_expected")
    if ratio:
        overall = ratio["all"]
        tenths = [i / 10 for i in range(11)]
        costs[CLOCKWORK_RATIO()] = {
            "meaning": "how long a whole Clockwork batch took over what its tables predicted",
            "unit": "ratio",
            "value": overall["mean"],
            "quantiles": {"p": tenths, "values": ratio["deciles"]},
            "by_batch": _lists(ratio["by_batch"], "values", "mean"),
            "samples": overall["count"],
            "how": f"logged durations of the batches of {len(ratio['by_run'])} Clockwork runs",
            "source": _log_source(w, "clockwork_actual_over_expected"),
        }
    return costs


def _sizes(rows: Iterable[str]) -> list[int]:
    return [int(n) for n in rows]


def _lists(rows: dict[str, dict[str, Any]], values: str, statistic: str) -> dict[str, Any]:
    """Rows of statistics by batch size, as parallel lists."""
    rows = dict(sorted(rows.items(), key=lambda row: int(row[0])))
    column = {k: [r[k] for r in rows.values()] for k in ("count", statistic, "p5", "median", "p95")}
    return {
        "batch": _sizes(rows),
        values: column[statistic],
        "samples": column["count"],
        "spread": {"p05": column["p5"], "p50": column["median"], "p95": column["p95"]},
    }


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": row["mean"],
        "quantiles": {"p": [0.05, 0.5, 0.95], "values": [row["p5"], row["median"], row["p95"]]},
        "samples": row["count"],
    }


def _runs(count: int) -> str:
    return "one logged run" if count == 1 else f"{count} logged runs"


def _log_source(w: Workload, key: str) -> Flow:
    return Flow({"file": ORIGIN["restated_from"], "name": f"measured_from_logs.{w.key}.{key}"})
