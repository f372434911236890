"""Restates the latency models of the NeuStream artifact's multi-agent part as profile files (see `diffusion`).

CodeLlama-7B and LLaVA-1.5-7B, each on an RTX 4090 of its own. Nothing is computed here: there are no single points,
only a table of one prompt's prefill, and the coefficients of fits whose points were not published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..schema import SCHEMA_VERSION
from ..yaml_writer import Flow

FOLDER = "multi-agent"
MODEL = f"{FOLDER}/latency_model.json"
ORIGIN = {
    "repository": "github.com/Fjallraven-hc/NeuStream-AE",
    "commit": "57fb0c5",
    "licence": "MIT",
    "restated_from": f"neustream-ae/{MODEL}",
}
#: key in the reference -> profile, architecture, model, precision
MODELS = {
    "codellama": ("rtx4090/codellama-7b", "codellama-7b", "codellama/CodeLlama-7b-Instruct-hf", "bf16"),
    "llava": ("rtx4090/llava-1.5-7b", "llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "fp16"),
}
STEP = "wall clock of a whole engine step (vLLM 0.6.1)"
LIMITS = {
    "codellama": "Decode was fitted at batch 1, 2 and 4 with up to 12 500 tokens of context, of which no points "
    "were published; what larger batches take is extrapolated.",
    "llava": "The text path only: image preprocessing and the vision tower are in no number. Decode was fitted at "
    "batch 1, 2 and 4 with up to 12 500 tokens of context, of which no points were published; what larger batches "
    "take is extrapolated.",
}
#: The policy prices prefills by the table up to here, by the polynomial beyond.
POLICY_TABLE = 2048
MOST_SEQUENCES, MOST_CONTEXT, MOST_PREFILL = 256, 65536, 16384


def profiles(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, content) of the profile files."""
    try:
        content = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except OSError as e:
        raise BadInput(f"cannot be read: {e.strerror}", where=str(folder / MODEL)) from None
    for key, model in content["models"].items():
        yield MODELS[key][0], _profile(key, model)


def _profile(key: str, model: dict[str, Any]) -> dict[str, Any]:
    name, architecture, published, precision = MODELS[key]
    kv = model["kv_cache"]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "description": f"{published.split('/')[1].removesuffix('-hf')}, one RTX 4090",
        "device": Flow({"name": "NVIDIA GeForce RTX 4090", "kind": "gpu", "memory_gib": 24.0}),
        "model": published,
        "precision": precision,
        "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
        "measured_when": "not stated",
        "origin": ORIGIN,
        "limits_of_data": LIMITS[key],
        "tokens": {
            "architecture": architecture,
            "tensor_parallel": 1,
            "engine": {
                "name": "vLLM 0.6.1",
                "max_batched_tokens": 4096,
                "max_sequences": 256,
                "max_model_len": kv["max_model_len"],
                "gpu_memory_utilization": kv["gpu_memory_utilization"],
                "watermark": 0.01,
                "note": "batched tokens, sequences and watermark are that version's defaults",
            },
            "kv": {
                "block_size": kv["block_tokens"],
                "blocks": kv["blocks"],
                "statistic": "as logged when the engine started",
                "source": Flow({"file": kv["source"].split(" ")[0]}),
            },
            "step_includes": STEP,
            "kinds": _kinds(model),
        },
    }


def _kinds(model: dict[str, Any]) -> dict[str, Any]:
    source = Flow({"file": model["source"]})
    c0, c1, c2 = model["prefill_batch"]["c"]
    d0, d1 = model["decode_step"]["d"]
    beyond = {
        "c0": c0,
        "c1": c1,
        "c2": c2,
        "until": MOST_PREFILL,
        "statistic": "least squares over single prompts of up to 4096 tokens",
        "source": source,
        "note": "beyond what was measured extrapolated",
    }
    line = {
        "d0": d0,
        "d1": d1,
        "until_batch": MOST_SEQUENCES,
        "until_context": MOST_CONTEXT,
        "statistic": "least squares over steps of batch 1, 2 and 4",
        "source": source,
        "note": "taken to hold at every batch size",
    }
    single = model["prefill_single_table"]
    tokens, seconds = single["prompt_tokens"], single["seconds"]

    def prefill(most: int, note: str) -> dict[str, Any]:
        count = sum(bool(n <= most) for n in tokens)
        return {
            "tokens": tokens[:count],
            "between": "up",
            "seconds": [seconds[:count]],
            "statistic": f"mean of the last 3 of 80 (up to 640 tokens) or of 3 repeats of a single prompt{note}",
            "source": source,
            "beyond": beyond,
        }

    mixed = {"mixed": {"note": "no step that both computes prompts and decodes was measured"}}
    whole = prefill(tokens[-1], "; several count as one of all their tokens")
    return {
        "scheduler": {"prefill": prefill(POLICY_TABLE, ", as the policy uses it"), "line": line, **mixed},
        "measured": {"prefill": whole, "line": line, **mixed},
    }
