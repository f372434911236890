"""Restates the language-model measurements of the NeuStream artifact as profile files (see `diffusion`).

Three models on RTX A6000, tensor parallel 1, 2 and 4. The folder of the artifact that these logs stand in is named
H100, a device name that its profiling script has hard-coded; the policy's own tables hold the same numbers under
A6000, and 25.7 GB of weights in 43.9 ms is what an A6000 reads, not an H100. Computed here, from single points:
medians of repeats, and quantiles of the residuals.
"""

from __future__ import annotations

import csv
import gzip
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput
from servetwin.core.arithmetic import float_sum

from ..llm.architectures import architecture, kv_blocks
from ..llm.schema import TokenModel
from ..llm.step_table import TokenTable
from ..schema import SCHEMA_VERSION
from ..tables.costs import RATIO
from ..yaml_writer import Flow

FOLDER = "llm"
MODEL = f"{FOLDER}/latency_model.json"
ORIGIN = {
    "repository": "github.com/Fjallraven-hc/NeuStream-AE",
    "commit": "57fb0c5",
    "licence": "MIT",
    "restated_from": f"neustream-ae/{MODEL}",
}
#: What the driver reports for an RTX A6000 of 48 GB.
A6000_GIB = 47.54
STEP = (
    "wall clock of a whole engine step (vLLM 0.5.4), scheduling, sampling and detokenisation included, with the "
    "device synchronised before and after the model"
)
LIMITS = (
    "Decode was measured in one run of 32 prompts of 4 tokens and 500 output tokens: batch 30 to 32 only, so neither "
    "an effect of the batch size nor the padding of CUDA graphs is known. Prefill of more than 2048 tokens is "
    "extrapolated. The folder of the logs is named H100, which is wrong."
)
#: A batch and a context that no run of 256 sequences and 2048 positions exceeds.
MOST_SEQUENCES, MOST_CONTEXT = 256, 65536
#: As far as a plan may reach that looks at the whole queue.
MOST_PLANNED = 2**24
SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.996, 0.998, 1.0)


@dataclass(frozen=True)
class Logs:
    """The single points of one model: (key..., seconds) in the order of the logs."""

    singles: dict[int, list[float]]  #: prompt tokens -> seconds of each repeat
    grid: dict[tuple[int, int], list[float]]  #: (prompt tokens, prompts) -> seconds of each repeat
    #: batch, context tokens (those being computed included), seconds; without the prefill
    decode: list[tuple[int, int, float]]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=str(path)) from None


def logs(folder: Path) -> dict[str, Logs]:
    """The points of all models below *folder*, the extract of the artifact."""
    found: dict[str, Logs] = {}

    def of(row: dict[str, str]) -> Logs:
        return found.setdefault(row["model"], Logs({}, {}, []))

    for row in _rows(folder / FOLDER / "prefill_single.csv.gz"):
        of(row).singles.setdefault(int(row["prompt_tokens"]), []).append(float(row["seconds"]))
    for row in _rows(folder / FOLDER / "prefill_grid.csv.gz"):
        key = (int(row["prompt_tokens"]), int(row["batch"]))
        of(row).grid.setdefault(key, []).append(float(row["seconds"]))
    for row in _rows(folder / FOLDER / "decode_steps.csv.gz"):
        if row["step"] != "0":
            of(row).decode.append((int(row["batch"]), int(row["context_tokens"]), float(row["seconds"])))
    return found


def profiles(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, content) of the profile files."""
    try:
        content = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=str(folder / MODEL)) from None
    points = logs(folder)
    for key, model in content["models"].items():
        name = f"a6000/{key}-tp{model['tensor_parallel']}"
        yield name, _profile(name, key, model, content, points[key])


def _profile(name: str, key: str, model: dict[str, Any], content: dict[str, Any], points: Logs) -> dict[str, Any]:
    tp = model["tensor_parallel"]
    kinds = _kinds(key, model, content["policy_decode_offset"], points)
    device: dict[str, Any] = {"name": "NVIDIA RTX A6000", "kind": "gpu", "memory_gib": A6000_GIB}
    tokens = {
        "architecture": key,
        "tensor_parallel": tp,
        "engine": {
            "name": "vLLM 0.5.4",
            "max_batched_tokens": 8192,
            "max_sequences": 256,
            "max_model_len": 2048,
            "gpu_memory_utilization": 0.9,
            "watermark": 0.01,
        },
        "kv": {
            "block_size": 16,
            "blocks": kv_blocks(architecture(key), memory_gib=A6000_GIB, tensor_parallel=tp),
            "statistic": "computed by servetwin.profiles.kv_blocks; what the engine reported was not recorded",
        },
        "step_includes": STEP,
        "kinds": kinds,
    }
    table = TokenTable(TokenModel.model_validate(_tuples(kinds["measured"])))
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "description": f"{key.upper()}, {'one RTX A6000' if tp == 1 else f'{tp} RTX A6000, tensor parallel'}",
        "device": Flow({**device, "count": tp} if tp > 1 else device),
        "model": f"facebook/{key}",
        "precision": "fp16",
        "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
        "measured_when": "not stated",
        "origin": ORIGIN,
        "limits_of_data": LIMITS,
        "tokens": tokens,
        "costs": _costs(key, table, points),
    }


def _tuples(value: Any) -> Any:
    """*value* as YAML would give it to the schema."""
    return json.loads(json.dumps(value))


def _kinds(key: str, model: dict[str, Any], offset: dict[str, Any], points: Logs) -> dict[str, Any]:
    fit_log = model["fit_file"]["source"]
    where = f"neustream-ae/{FOLDER}/"
    c0, c1, c2 = model["prefill_batch"]["c"]
    beyond = {
        "c0": c0,
        "c1": c1,
        "c2": c2,
        "until": 8192,
        "statistic": "least squares over 126 batches of up to 2048 tokens in all, the shortest of 3 repeats",
        "source": Flow({"file": fit_log}),
        "note": "beyond 2048 tokens extrapolated",
    }
    single = model["prefill_single_table"]
    d0, d1 = model["decode_step"]["d"]
    line: dict[str, Any] = {
        "d0": d0,
        "d1": d1,
        "per_sequence": d1,
        "until_batch": MOST_SEQUENCES,
        "until_context": MOST_CONTEXT,
        "statistic": "least squares over the 499 decode steps of one run, batch 30 to 32, 160 to 15 593 tokens",
        "source": Flow({"file": fit_log}),
        "note": "taken to hold at every batch size; the logs count the token being computed as context, hence the "
        "term per sequence",
    }
    steps = [(low, add) for low, _, add in offset["seconds_by_predicted_ms"] if add]
    corrected = {
        **line,
        "offsets": [Flow({"above": low / 1000.0, "add": add}) for low, add in steps],
        "note": "the offsets are those that the policy adds in its check; they are undefined where the line gives "
        "45, 50 or 55 ms exactly, and the larger one is taken there",
    }
    tokens = sorted(points.singles)
    staircase = {"tokens": tokens, "between": "up"}
    scheduler = {
        **staircase,
        "seconds": [single["seconds"]],
        "statistic": "one of three repeats of a single prompt, as in the policy's table",
        "source": Flow({"file": f"{where}latency_model.json", "name": f"{key}.prefill_single_table"}),
        "beyond": beyond,
    }
    measured = {
        **staircase,
        "seconds": [[statistics.median(points.singles[n]) for n in tokens]],
        "samples": 3,
        "statistic": "median of three repeats of a single prompt; several count as one of all their tokens",
        "source": Flow({"file": f"{where}prefill_single.csv.gz"}),
        "beyond": beyond,
    }
    scheduler["beyond"] = {**beyond, "until": MOST_PLANNED, "note": "the policy extrapolates without bound"}
    planned = {**line, "until_batch": MOST_PLANNED, "until_context": MOST_PLANNED}
    mixed = {"mixed": {"note": "no step that both computes prompts and decodes was measured"}}
    return {
        "scheduler": {"prefill": scheduler, "line": planned, **mixed},
        "measured": {"prefill": measured, "line": line, **mixed},
        "corrected": {"prefill": measured, "line": corrected, **mixed},
    }


def _costs(key: str, table: TokenTable, points: Logs) -> dict[str, Any]:
    where = f"neustream-ae/{FOLDER}/"
    prefill = [s / table.prefill(n * b, n * n * b) for (n, b), all_ in points.grid.items() for s in all_]
    decode = [s / table.decode(batch, context - batch) for batch, context, s in points.decode]
    return {
        RATIO("prefill"): {
            "meaning": "how long a prefill step took over what the measured table gives for its tokens in all",
            "unit": "ratio",
            "modules": ["prefill"],
            **_ratios(prefill),
            "how": f"126 batches of equal prompts, three times each ({key}); none of them is in the table",
            "source": Flow({"file": f"{where}prefill_grid.csv.gz"}),
        },
        RATIO("decode"): {
            "meaning": "how long a decode step took over what the measured line gives",
            "unit": "ratio",
            "modules": ["decode"],
            **_ratios(decode),
            "how": f"499 decode steps of one run ({key}), those of the fit, a stall of 0.1 s included",
            "source": Flow({"file": f"{where}decode_steps.csv.gz"}),
        },
    }


def _ratios(ratios: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(ratios)
    last = len(ordered) - 1
    values = []
    for share in SHARES:
        low = min(int(share * last), last - 1)
        values.append(round(ordered[low] + (share * last - low) * (ordered[low + 1] - ordered[low]), 6))
    return {
        "value": round(float_sum(ratios) / len(ratios), 6),
        "quantiles": {"p": list(SHARES), "values": values},
        "samples": len(ratios),
    }
