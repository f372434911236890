"""A whole profile file of a language model, of the steps that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measuring.async_steps import Rotation
    from .measuring.step_grid import Grid, Measured


def profile_content(
    measured: Sequence[Measured],
    described: dict[str, Any],
    grid: Grid | Rotation,
    *,
    name: str,
    when: str,
    command: str,
    source: str,
) -> dict[str, Any]:
    """The content of a profile file called *name*, measured *when* by *command*; see `tokens_section`."""
    from .fitting.grid_fit import tokens_section
    from .measuring.step_grid import Grid

    if isinstance(grid, Grid):
        section = tokens_section(measured, described, grid, source)
    else:
        from .fitting.async_fit import steady_section

        section = steady_section(measured, described, grid, source)
    return file_content(section, described, name=name, when=when, command=command)


def file_content(
    section: dict[str, Any], described: dict[str, Any], *, name: str, when: str, command: str
) -> dict[str, Any]:
    """The content of a profile file called *name*, of its ``tokens`` and ``costs``, measured *when* by *command* on
    the engine *described*."""
    model = section["tokens"]["kinds"]["measured"]
    # The policies of a measured system plan with what was measured.
    section["tokens"]["kinds"] = {"scheduler": model, "measured": model}
    options = described["options"]
    gpu = described["device"] != "cpu"
    device = {"name": described["device"], "kind": "gpu" if gpu else "cpu"}
    if gpu:
        device["memory_gib"] = round(described["memory_gib"], 2)
    return {
        "schema_version": 1,
        "name": name,
        "description": f"{model_title(options['model'])}, {described['device']}, vLLM {described['vllm']}",
        "device": device,
        "model": model_title(options["model"]),
        "precision": {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[options["dtype"]],
        "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
        "measured_when": when,
        "origin": {"repository": f"this one; {command}"},
        "limits_of_data": f"Weights random. torch {described['torch']}, vLLM {described['vllm']}; one process; "
        f"{'asynchronous' if options['asynchronous'] else 'synchronous'} scheduling, "
        f"{'a prefix cache' if options.get('enable_prefix_caching') else 'no prefix cache'}. What "
        "else the host does moves steps by some per cent from one minute to the next.",
        **section,
    }


def model_title(model: str) -> str:
    """How a model is called in a description."""
    return "a tiny OPT" if model == "tiny" else model.upper() if model.startswith("opt-") else model
