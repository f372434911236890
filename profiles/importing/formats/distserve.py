"""DistServe's fitted times of steps (profiler-a100-80g.*.json): OPT-13B and 66B on A100s, by tensor parallelism.

Milliseconds, as its estimator takes them (simdistserve/estimators/time_estimator.py): a step of prompts takes
``a + b n + c s``, of n tokens whose prompts' squared lengths sum to s; a decode step ``a + b n + c k``, of k
sequences with n tokens in all, with other numbers from *decoding_large_small_bs_threshold* sequences on. Nothing in
it is of steps that do both, or of chunks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ...llm.architectures import architecture
from ..devices import device
from ..grids import tables, up_to
from ..imported import Imported, Places
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {"model": Option("facebook/opt-13b", "the model as the file calls it")}

KINDS = ("prefill", "decoding_smallbs", "decoding_largebs")
UNLIKE = (
    "Fits of steps on an idle engine: nothing of steps that do both (the pass of all tokens and the attention of a "
    "decode of its own stand for them), of the host between steps, or of sending."
)


def read(source: str, settings: Settings) -> Imported:
    """The fits in the file *source* of the model at the settings' parallelism. Raises `BadInput`."""
    name = settings.known(OPTIONS)["model"]
    path = Path(source)
    fits = _fits(path, name, settings.tensor_parallel_size)
    known = device(settings.device or "a100")
    model = name.rpartition("/")[2]
    at = Places(
        tokens=up_to((1, 64, 128, 256, 512, 1024, 2048, 4096), settings.max_num_batched_tokens),
        prompts=(1, 2, 4, 8, 16),
        chunks=(),
        context=(),
        batch=_batches(fits.threshold, settings.max_num_seqs),
        each=(1, settings.max_model_len or 2048),
    )
    return Imported(
        model=tables(fits, at, statistic="fit by least squares, by its authors", file=path.name),
        kind="imported",
        source=f"DistServe's fits of {model} on {settings.tensor_parallel_size} {known.name} ({path.name})",
        known_error="with it, its authors' simulator is within 2 % of the SLO attainment that they measured "
        "(OSDI'24, Table 2); here it was not compared with an engine",
        architecture=model,
        shape=architecture(model),
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "https://github.com/LLMServe/DistServe", "licence": "Apache-2.0"},
        engine="SwiftTransformer, or vLLM, as DistServe measured them (OSDI'24)",
        unlike=UNLIKE,
        precision="fp16",
        step_includes="times of steps by their authors' clock",
    )


def _batches(threshold: int, most: int) -> list[int]:
    """Both fits are lines. The second, from *threshold* on, does not begin where the first ends (a decode step of one
    sequence more would take less): a line leads from two thirds of the way to it."""
    return up_to([*dict.fromkeys((1, max(2 * threshold // 3, 1))), threshold + 1], most)


@dataclass(frozen=True)
class Fits:
    """Seconds by the fits: *prefill*, *small* and *large* are their numbers, in milliseconds."""

    prefill: Sequence[float]
    small: Sequence[float]
    large: Sequence[float]
    threshold: int

    def whole(self, tokens: int, prompts: int) -> float:
        a, b, c = self.prefill
        return (a + b * tokens + c * tokens * tokens / prompts) / 1e3

    def chunk(self, tokens: int, context: int) -> float:
        raise NotImplementedError("nothing is known of chunks, and no place of one is asked for")

    def decode(self, batch: int, per_sequence: int) -> float:
        a, b, c = self.small if batch < self.threshold else self.large
        return (a + b * batch * per_sequence + c * batch) / 1e3

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        raise NotImplementedError("nothing is known of mixed steps, and no place of one is asked for")


def _fits(path: Path, model: str, parallel: int) -> Fits:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError:
        raise BadInput("is no JSON file (UTF-8)", where=str(path)) from None
    if not isinstance(content, dict) or model not in content:
        there = ", ".join(content) if isinstance(content, dict) else "a mapping by model"
        raise BadInput(f"nothing in it is of {model!r}", where="--set model", right=f"one of {there}")
    if str(parallel) not in content[model]:
        right = f"one of {', '.join(content[model])}"
        raise BadInput(f"nothing in it is of {parallel} devices", where="--tensor-parallel-size", right=right)
    found = content[model][str(parallel)]
    for kind in KINDS:
        numbers = found.get(kind)
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(x, int | float) for x in numbers):
            raise BadInput(f"{kind} of {model} does not fit", where=str(path), right="three numbers, milliseconds")
    threshold = found.get("decoding_large_small_bs_threshold")
    if not isinstance(threshold, int) or threshold < 1:
        what = f"decoding_large_small_bs_threshold of {model} does not fit"
        raise BadInput(what, where=str(path), right="a number of sequences")
    prefill, small, large = (found[kind] for kind in KINDS)
    return Fits(prefill, small, large, threshold)
