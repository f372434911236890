"""NVIDIA's aiconfigurator (extra servetwin[import]): its operator tables, for a model by name on a --device.

The package sums times of operators that were measured on the device under vLLM (or another engine, ``--set
backend=trtllm``): matrix products, attention of prompts and of decodes, reductions between devices. It works offline.
A step that does both is, there too, one pass of all tokens with the attention of both.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

from servetwin.core import BadInput

from ...llm.hf_config import shape_of
from ..devices import device, key_of
from ..grids import padded, tables, up_to
from ..imported import Imported, Places
from ..settings import Option, Settings

OPTIONS: Mapping[str, Option[Any]] = {
    "backend": Option("vllm", "the engine whose operators were measured: vllm, trtllm or sglang"),
    "version": Option("", "of that engine; left out, the latest that the package has for the device"),
}

#: Their names of devices and models by ours.
SYSTEMS = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "l40s": "l40s",
    "rtxpro6000": "rtx_pro_6000_server",
}
MODELS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
}

KNOWN_ERROR = (
    "against 90 closed-loop runs of Qwen3-32B on H100s (vLLM 0.12, published with it) simulations by these tables "
    "give 17 % too little time per token in the median, 29 % at p90, and time to first token off by 33 % in the "
    "median; against LLMServingSim's kernels of Llama-3.1-8B on an RTX PRO 6000 decode steps differ by 3 % and "
    "prompts by 13 %"
)
UNLIKE = (
    "Operators were timed one by one; gaps between them, fused kernels, sequences of unlike lengths, padding to CUDA "
    "graphs and the host's part are not in them."
)


def read(source: str, settings: Settings) -> Imported:
    """The model *source*, by name, on the settings' device. Raises `BadInput`."""
    told = settings.known(OPTIONS)
    if settings.device is None:
        raise BadInput("operator tables are of a device", where="--device", right=", ".join(SYSTEMS))
    if settings.model is not None:
        raise BadInput("the source is the model", where="--model", right="nothing there")
    name, shape = shape_of(source)
    shape.check_dense(source)
    key = key_of(settings.device)
    if name not in MODELS:
        raise BadInput(f"{name} is not known to it", where=source, right=", ".join(MODELS))
    if key not in SYSTEMS:
        raise BadInput(f"{key} is not known to it", where="--device", right=", ".join(SYSTEMS))
    known, parallel = device(key), settings.tensor_parallel_size
    steps = Operators(MODELS[name], SYSTEMS[key], parallel, told["backend"], told["version"])
    longest = settings.max_model_len or shape.positions
    return Imported(
        model=tables(steps, places(settings, longest), statistic="sum of the operators' times", file=SYSTEMS[key]),
        kind="imported",
        source=f"aiconfigurator {steps.package}'s tables of {known.name}'s operators ({steps.engine})",
        known_error=KNOWN_ERROR,
        architecture=name,
        shape=shape,
        device=known.name,
        memory_gib=known.memory_gib,
        origin={"repository": "https://github.com/ai-dynamo/aiconfigurator", "licence": "Apache-2.0"},
        engine=steps.engine,
        unlike=UNLIKE,
    )


def places(settings: Settings, longest: int) -> Places:
    """Where the tables are asked: steps are not padded there, so no staircase is."""
    most = settings.max_num_batched_tokens
    contexts = [n for n in (512, 2048, 8192, 32768) if n < longest]
    # Prompts of one token are no attention that anybody timed.
    return Places(
        tokens=padded((), most, lambda n: 8 if n < 128 else 32 if n < 1024 else 128 if n < 4096 else 256),
        prompts=[1, 2, 4, 8, 16, 32],
        chunks=up_to([n for n in (16, 64, 256, 1024, 4096) if n < most], most),
        context=sorted({0, *(n for n in contexts if n < longest - most), max(longest - most, 1)}),
        batch=sorted({n for n in (1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), 384, 512, settings.max_num_seqs)
                      if n <= settings.max_num_seqs}),
        each=[16, 128, *contexts, longest],
    )  # fmt: skip


class Operators:
    """`servetwin.profiles.importing.imported.Steps` by the package's tables. Raises `BadInput` if it is not there, or
    has none for this."""

    def __init__(self, model: str, system: str, parallel: int, backend: str, version: str) -> None:
        def part(name: str) -> Any:
            return importlib.import_module(f"aiconfigurator.sdk.{name}")

        try:
            with _silenced():
                data, config = part("perf_database"), part("config")
                self.package = importlib.import_module("aiconfigurator").__version__
        except ImportError:
            what = "aiconfigurator is not installed"
            raise BadInput(what, right="pip install 'servetwin[import]'") from None
        self._config = config
        with _silenced():
            try:
                found = version or data.get_latest_database_version(system=system, backend=backend)
                tables_of = found and data.get_database_view(system, backend, found)
            except Exception as error:
                raise BadInput(f"aiconfigurator: {_line(error)}", right="another backend or version") from None
            if not tables_of:
                what = f"it has no tables of {backend} {version or ''} on {system}".replace("  ", " ")
                raise BadInput(
                    what, where="--set backend, version", right="vllm, trtllm or sglang, and a version it has"
                )
            self.engine = f"{backend} {found}"
            try:
                made = part("models").get_model(model, config.ModelConfig(tp_size=parallel), backend)
                engine = part("backends.factory").get_backend(backend)
                self._session = part("inference_session").InferenceSession(made, tables_of, engine)
                self._seconds("static_gen", 1, 16)
            except Exception as error:
                raise BadInput(
                    f"aiconfigurator: {_line(error)}", right="another model, device or parallelism"
                ) from None

    def _seconds(self, mode: str, batch: int, tokens: int, before: int = 0) -> float:
        asked = self._config.RuntimeConfig(batch_size=batch, isl=tokens, osl=2, prefix=before)
        try:
            return 1e-3 * float(self._session.run_static_latency_only(asked, mode))
        except Exception as error:
            what = f"aiconfigurator has no time for {batch} x {tokens} tokens: {_line(error)}"
            raise BadInput(what, right="a smaller --max-model-len or --max-num-seqs") from None

    def whole(self, tokens: int, prompts: int) -> float:
        return self._seconds("static_ctx", prompts, max(tokens // prompts, 1))

    def chunk(self, tokens: int, context: int) -> float:
        return self._seconds("static_ctx", 1, context + tokens, context)

    def decode(self, batch: int, per_sequence: int) -> float:
        return self._seconds("static_gen", batch, per_sequence)

    def mixed(self, tokens: int, context: int, batch: int, per_sequence: int) -> float:
        raise NotImplementedError  # one pass stands for it, as in the package


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextlib.contextmanager
def _silenced() -> Any:
    """The package prints what it loads, and warns of what is old in it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
