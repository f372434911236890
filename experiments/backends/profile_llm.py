"""``servetwin profile`` for language models: measured on vLLM in this process."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from servetwin.core import BadInput

from ..registry.vllm_settings import VllmSettings
from .vllm import require_vllm

if TYPE_CHECKING:
    from servetwin.real.vllm.engine import EngineOptions, VllmEngine
    from servetwin.real.vllm.profiling.measuring.async_steps import Rotation
    from servetwin.real.vllm.profiling.measuring.step_grid import Grid

#: Hears (what is measured next, how much is done, and of how much).
Progress = Callable[[str, int, int], None]
TERMS = ("prefill", "decode", "mixed", "chunks", "preemption")
#: Seconds for which steps of all compositions are made, and for which traffic judges them.
COMPOSE, JUDGED = 225.0, 50.0
#: Seconds for which the tiny model is measured in rotation.
ROTATE = 3.0
#: What the tiny model is called, and what vLLM is told to build.
TINY = "tiny-opt"


def is_language_model(model: str) -> bool:
    """Whether *model* names one that vLLM is to measure: tiny-opt, a known one (with random weights), with or without
    who published it, or a folder with a ``config.json``."""
    from servetwin.profiles.llm.architectures import architectures

    name = model.rpartition("/")[2].lower().removeprefix("meta-").removesuffix("-instruct")
    folder = (Path(model) / "config.json").is_file()
    return model == TINY or model.startswith("opt-") or name in architectures() or folder or model.endswith(".json")


def called(model: str) -> str:
    """The name of a *model* in that of a profile."""
    from servetwin.profiles.llm.hf_config import shape_of

    return model if model == TINY else shape_of(model)[0]


def plan_for(
    model: str,
    *,
    eager: bool = False,
    limit: int | None = None,
    asynchronous: bool | None = None,
    settings: VllmSettings | None = None,
) -> tuple[EngineOptions, Grid | Rotation | None]:
    """The engine for *model*, and what to measure on it: steps of all compositions (None), on a GPU; of the tiny
    model, or without CUDA graphs, rows of like steps. *limit* is the most sequences at a time, before what *settings*
    say. Raises `BadInput` for an unknown model, or without a GPU."""
    from servetwin.profiles.llm.hf_config import shape_of
    from servetwin.real.vllm.engine import TINY as TINIEST
    from servetwin.real.vllm.engine import EngineOptions, device_name
    from servetwin.real.vllm.profiling.measuring.async_steps import SMALL_ROTATION
    from servetwin.real.vllm.profiling.measuring.step_grid import SMALL

    settings = settings or VllmSettings()
    if asynchronous is None:
        asynchronous = settings.async_scheduling
    there = device_name()
    if asynchronous is None:
        asynchronous = there != "cpu"
    parallel = settings.tensor_parallel_size
    if model == TINY:
        _check_parallel(parallel, TINIEST["heads"], TINIEST["heads"], TINY)
        options = EngineOptions(
            max_sequences=limit or 32,
            kv_bytes=(16 << 20) // parallel,
            asynchronous=asynchronous,
            tensor_parallel=parallel,
        )
        return options, SMALL_ROTATION if asynchronous else SMALL
    name, shape = shape_of(model)
    if there == "cpu":
        raise BadInput(f"{model} wants a GPU, and there is none", right=TINY)
    import torch

    _check_parallel(parallel, shape.heads, shape.kv_heads or shape.heads, name)
    if parallel > (there_are := torch.cuda.device_count()):
        what = f"{name} on {parallel} GPUs, but this machine has {there_are}"
        raise BadInput(what, where="--vllm tensor_parallel_size", right=f"{there_are} at most")
    tokens, sequences = settings.sizes(torch.cuda.get_device_properties(0).total_memory / 2**30, there)
    longest = settings.max_model_len or shape.positions
    if longest > shape.positions:
        what = f"{longest} tokens, but {name} takes {shape.positions}"
        raise BadInput(what, where="--vllm max_model_len", right=f"{shape.positions} at most")
    shape.check_length(longest, name)
    options = EngineOptions(
        model=_folder(model) or name,
        dtype=_dtype(model, name, settings.dtype),
        max_model_len=longest,
        max_batched_tokens=tokens,
        max_sequences=limit or sequences,
        block_size=settings.block_size,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_bytes=settings.kv_cache_memory_bytes,
        tensor_parallel=parallel,
        compiled=not (eager or settings.enforce_eager),
        asynchronous=asynchronous,
        seed=settings.seed,
        enable_prefix_caching=settings.enable_prefix_caching,
    )
    if not asynchronous:
        raise BadInput(
            "steps of all compositions are made with asynchronous scheduling",
            where="--asynchronous",
            right="vLLM's default, which is asynchronous",
        )
    return options, None


def _check_parallel(parallel: int, heads: int, kv_heads: int, name: str) -> None:
    """Raise `BadInput` where vLLM would: if so many devices cannot share the heads of a model evenly."""
    if heads % parallel or max(kv_heads, parallel) % min(kv_heads, parallel):
        what = f"{name} has {heads} heads with {kv_heads} of keys and values, which {parallel} devices cannot share"
        can = [n for n in range(1, heads + 1) if not heads % n and not max(kv_heads, n) % min(kv_heads, n)]
        right = f"one of {', '.join(map(str, can))}"
        raise BadInput(what, where="--vllm tensor_parallel_size", right=right)


def _folder(model: str) -> str | None:
    """The folder that *model* is, or whose configuration it is."""
    path = Path(model)
    if path.suffix == ".json":
        path = path.parent
    return str(path) if (path / "config.json").is_file() else None


def _dtype(model: str, name: str, asked: str) -> Any:
    """The type of the weights: as asked, or as the configuration says, or as the model was published."""
    if asked != "auto":
        return asked
    folder = _folder(model)
    if folder is None:
        return "float16" if name.startswith("opt-") else "bfloat16"
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    said = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    return "float16" if said == "float32" else said


def measure_language_model(
    model: str,
    name: Callable[[str], str],
    *,
    eager: bool = False,
    limit: int | None = None,
    asynchronous: bool | None = None,
    settings: VllmSettings | None = None,
    progress: Progress | None = None,
) -> str:
    """Measure *model*, and give the text of its profile file; *name* makes the profile's name of the device's."""
    from servetwin.real.vllm.engine import VllmEngine, device_name

    require_vllm()
    options, grid = plan_for(model, eager=eager, limit=limit, asynchronous=asynchronous, settings=settings)
    engine = VllmEngine(options)
    when, command = datetime.now().strftime("%Y-%m-%d"), shlex.join(["servetwin", *sys.argv[1:]])
    if grid is None:
        content = composed(engine, name(device_name()), model, when, command, progress=progress)
    else:
        content = _in_rows(engine, grid, name(device_name()), when, command, progress)
    return text_of(content)


def text_of(content: dict[str, Any]) -> str:
    """A profile file with this *content*, its verdict added."""
    from servetwin.profiles.verdict import with_verdict

    content = with_verdict(content)
    text = yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None, allow_unicode=True)
    return f"# Made by `servetwin profile`; times in seconds.\n{text}"


def composed(
    engine: VllmEngine,
    name: str,
    model: str,
    when: str,
    command: str,
    *,
    seconds: float = COMPOSE,
    judged: float = JUDGED,
    progress: Progress | None = None,
    keep: Callable[[list[Any]], None] | None = None,
) -> dict[str, Any]:
    """The content of a profile file of *model*, made of steps of all compositions on *engine* and judged by traffic.
    *keep* hears of all parts that were played."""
    from servetwin.profiles.llm.architectures import architectures
    from servetwin.profiles.llm.hf_config import shape_of
    from servetwin.real.vllm.profiling.compose import compose, described
    from servetwin.real.vllm.profiling.fitting.step_profile import section
    from servetwin.real.vllm.profiling.profile_content import file_content

    say = _in_seconds(progress, seconds + judged)
    parts, intake = compose(engine, seconds, judged, say)
    if keep is not None:
        keep(parts)
    facts = described(engine)
    made = section(parts, facts, {"file": "real/vllm/profiling/compose.py"}, intake)
    called, shape = (model, None) if engine.options.model.startswith("tiny") else shape_of(model)
    made["tokens"]["architecture"] = called
    if shape is not None and called not in architectures():
        made["tokens"]["shape"] = shape.model_dump(exclude_none=True)
    facts = {**facts, "options": {**facts["options"], "model": called}}
    return file_content(made, facts, name=name, when=when, command=command)


def _in_seconds(progress: Progress | None, most: float) -> Callable[[str], None]:
    """Tells *progress* what comes next and how many of *most* seconds have passed: measuring ends when its time is
    over."""
    began = time.monotonic()

    def say(what: str) -> None:
        if progress is not None:
            progress(f"{what}, seconds", round(min(time.monotonic() - began, most)), math.ceil(most))

    return say


def made_anew(recording: Path, profile: Path) -> str:
    """The text of the file *profile*, its parts fitted anew to the steps in *recording* by the program as it is. What
    taking requests in takes stays: it is in no recording."""
    from servetwin.profiles.tables.costs import INTAKE
    from servetwin.real.vllm.profiling.fitting.step_profile import section
    from servetwin.real.vllm.profiling.measuring import step_files

    content = yaml.safe_load(profile.read_text(encoding="utf-8"))
    engine = step_files.engine_of(recording)
    inside = recording.resolve().parts
    origin = {"file": "/".join(inside[inside.index("experiments") :] if "experiments" in inside else inside[-1:])}
    made = section(step_files.read(recording), engine, origin)
    made["tokens"]["kinds"] = dict.fromkeys(("scheduler", "measured"), made["tokens"]["kinds"]["measured"])
    kept = {key: value for key, value in content["tokens"].items() if key not in made["tokens"]}
    tokens = {**made["tokens"], **kept}
    content["tokens"] = {key: tokens.pop(key) for key in [*content["tokens"]] if key in tokens} | tokens
    content["costs"] = made["costs"] | {name: cost for name, cost in content["costs"].items() if name == INTAKE()}
    return text_of(content)


def _in_rows(
    engine: VllmEngine,
    grid: Grid | Rotation,
    name: str,
    when: str,
    command: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Likewise, of rows of like steps."""
    from servetwin.real.vllm.profiling.measuring.async_steps import LONGER, rotate
    from servetwin.real.vllm.profiling.measuring.step_grid import Grid, measure
    from servetwin.real.vllm.profiling.profile_content import profile_content

    in_seconds = _in_seconds(progress, ROTATE * (1.0 + LONGER))

    def say(what: str) -> None:
        if progress is not None and isinstance(grid, Grid):
            progress(what, TERMS.index(what), len(TERMS))
        else:
            in_seconds(what)

    measured = measure(engine, grid, say) if isinstance(grid, Grid) else rotate(engine, grid, ROTATE, say)
    source = "async_steps.py" if engine.options.asynchronous else "step_grid.py"
    return profile_content(
        measured,
        engine.describe(),
        grid,
        name=name,
        when=when,
        command=command,
        source=f"real/vllm/profiling/{source}",
    )


if __name__ == "__main__":  # RECORDING PROFILE: the latter is written anew
    target = Path(sys.argv[2])
    target.write_text(made_anew(Path(sys.argv[1]), target), encoding="utf-8")
