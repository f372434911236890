"""``servetwin profile`` for language models: measured on vLLM in this process."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml
from servetwin.core import BadInput

from .vllm import GRAPHS, LARGER, require_vllm

if TYPE_CHECKING:
    from servetwin.real.vllm.engine import EngineOptions
    from servetwin.real.vllm.profiling.async_steps import Rotation
    from servetwin.real.vllm.profiling.step_grid import Grid

#: Hears (what is measured next, terms done, terms in all).
Progress = Callable[[str, int, int], None]
TERMS = ("prefill", "decode", "mixed", "chunks", "preemption")
#: Seconds for which a model is measured in rotation on a GPU; the tiny one takes a thirtieth.
ROTATE = 90.0
#: What the tiny model is called, and what vLLM is told to build.
TINY = "tiny-opt"


def is_language_model(model: str) -> bool:
    """Whether *model* names one that vLLM is to measure: tiny-opt, or a known architecture with random weights."""
    from servetwin.profiles.llm.architectures import architectures

    return model == TINY or model.startswith("opt-") or model in architectures()


def plan_for(
    model: str, *, eager: bool = False, limit: int | None = None, asynchronous: bool | None = None
) -> tuple[EngineOptions, Grid | Rotation]:
    """The engine for *model*, and what to measure on it: in rotation with asynchronous scheduling, which by default
    is had where vLLM has it by default. Raises `BadInput` for an unknown model, or without a GPU."""
    from servetwin.profiles.llm.architectures import architecture
    from servetwin.real.vllm.engine import EngineOptions, device_name
    from servetwin.real.vllm.profiling.async_steps import SMALL_ROTATION, Rotation
    from servetwin.real.vllm.profiling.step_grid import SMALL, Grid

    if asynchronous is None:
        asynchronous = device_name() != "cpu"
    if model == TINY:
        options = EngineOptions(max_sequences=limit or 32, kv_bytes=16 << 20, asynchronous=asynchronous)
        return options, SMALL_ROTATION if asynchronous else SMALL
    positions = architecture(model).positions
    if device_name() == "cpu":
        raise BadInput(f"{model} wants a GPU, and there is none", right=TINY)
    graphs = () if eager else GRAPHS + LARGER
    options = EngineOptions(
        model=model,
        dtype="float16",
        max_model_len=positions,
        max_batched_tokens=8192,
        max_sequences=limit or 256,
        gpu_memory_utilization=0.92,
        graphs=graphs,
        graphs_for="all",
        asynchronous=asynchronous,
    )
    if asynchronous:
        return options, Rotation()
    if eager:
        return options, Grid()
    return options, Grid(prefill=(1, 16, *graphs[5:], 1280, 1536, 1792, positions - 1), prompts=(1, 4))


def measure_language_model(
    model: str,
    name: Callable[[str], str],
    *,
    eager: bool = False,
    limit: int | None = None,
    asynchronous: bool | None = None,
    progress: Progress | None = None,
) -> str:
    """Measure *model*, and give the text of its profile file; *name* makes the profile's name of the device's."""
    from servetwin.profiles.verdict import with_verdict
    from servetwin.real.vllm.engine import VllmEngine, device_name

    require_vllm()
    from servetwin.real.vllm.profiling.async_steps import rotate
    from servetwin.real.vllm.profiling.profile_content import profile_content
    from servetwin.real.vllm.profiling.step_grid import Grid, measure

    options, grid = plan_for(model, eager=eager, limit=limit, asynchronous=asynchronous)
    engine = VllmEngine(options)
    rounds = itertools.count()

    def say(what: str) -> None:
        if progress is not None and isinstance(grid, Grid):
            progress(what, TERMS.index(what), len(TERMS))
        elif progress is not None:  # how many rounds there will be shows when the time is over
            done = next(rounds)
            progress(what, done, done + 1)

    if isinstance(grid, Grid):
        measured = measure(engine, grid, say)
    else:
        measured = rotate(engine, grid, ROTATE if options.dtype == "float16" else ROTATE / 30, say)
    content: dict[str, Any] = profile_content(
        measured,
        engine.describe(),
        grid,
        name=name(device_name()),
        when=datetime.now().strftime("%Y-%m-%d"),
        command=shlex.join(["servetwin", *sys.argv[1:]]),
        source="real/vllm/profiling/async_steps.py" if options.asynchronous else "real/vllm/profiling/step_grid.py",
    )
    content = with_verdict(content)
    text = yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None, allow_unicode=True)
    return f"# Made by `servetwin profile`; times in seconds.\n{text}"
