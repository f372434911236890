"""From a source in some format to a profile.

>>> about("llmservingsim")
"LLMServingSim 2's tables of one layer: a folder with dense.csv, per_sequence.csv, attention.csv and meta.yaml."
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, Protocol

from servetwin.core import BadInput

from ..llm.architectures import architectures, kv_blocks
from ..schema import SCHEMA_VERSION, ProfileFile
from ..tables.loading import check
from ..verdict import lines
from ..yaml_writer import Anchored
from .devices import devices
from .grids import plain
from .imported import Imported
from .settings import Option, Settings


class Format(Protocol):
    """What a file in ``formats/`` has: a docstring whose first line says what it reads, the *OPTIONS* that are its
    own, and `read`."""

    OPTIONS: Mapping[str, Option[Any]]

    def read(self, source: str, settings: Settings) -> Imported:
        """What *source* says. Raises `BadInput`."""


@functools.cache
def formats() -> dict[str, Any]:
    """The formats by name: the files in ``formats/``."""
    package = importlib.import_module(f"{__package__}.formats")
    found = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in found}


def about(name: str) -> str:
    """What a format reads, in a line."""
    return (formats()[name].__doc__ or "").strip().splitlines()[0]


def import_profile(name: str, source: str, settings: Settings, *, profile: str | None = None) -> dict[str, Any]:
    """The content of a profile file, with its verdict: what *source* says in the format called *name*. *profile* is
    the profile's name (None: of device and model). Raises `BadInput`."""
    if name not in formats():
        raise BadInput(f"unknown format {name!r}", right=f"one of {', '.join(formats())}")
    made = content(formats()[name].read(source, settings), settings, profile)
    return {**made, "verdict": list(lines(check(plain(made), ProfileFile, where=source)))}


def content(found: Imported, settings: Settings, profile: str | None = None) -> dict[str, Any]:
    """A profile of what was *found*, as the content of its file."""
    shape, parallel = found.shape, settings.tensor_parallel_size
    longest = settings.max_model_len or (shape.positions if shape else None)
    if longest is None:
        raise BadInput("nothing says how long a request may be", where="--max-model-len", right="it, or a --model")
    if shape is not None:
        shape.check_length(longest, f"{found.architecture}, --max-model-len")
    new = shape is not None and found.architecture not in architectures()
    steps = Anchored(dict(found.model), "steps")
    return {
        "schema_version": SCHEMA_VERSION,
        "name": profile or default_name(found, settings),
        "description": f"{found.architecture} on {found.device}, tensor parallel {parallel}: {found.kind}",
        "device": {"name": found.device, "kind": "gpu", "memory_gib": found.memory_gib, "count": parallel},
        "model": found.architecture,
        "precision": found.precision,
        "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
        "measured_when": found.measured_when,
        "origin": dict(found.origin),
        "limits_of_data": found.unlike,
        "basis": {"kind": found.kind, "source": found.source, "known_error": found.known_error},
        "tokens": {
            "architecture": found.architecture,
            **({"shape": shape.model_dump(exclude_none=True)} if shape is not None and new else {}),
            "tensor_parallel": parallel,
            "engine": {
                "name": found.engine,
                "max_batched_tokens": settings.max_num_batched_tokens,
                "max_sequences": settings.max_num_seqs,
                "max_model_len": longest,
                "gpu_memory_utilization": settings.gpu_memory_utilization,
                "chunked_prefill": True,
                "cuda_graphs": not settings.enforce_eager,
                "asynchronous": settings.asynchronous,
            },
            "kv": _memory(found, settings),
            "step_includes": found.step_includes,
            "kinds": {"scheduler": steps, "measured": steps},
        },
    }


def _memory(found: Imported, settings: Settings) -> dict[str, Any]:
    """The engine's KV blocks: those given, or computed from the device's memory."""
    size = settings.block_size
    if settings.blocks is not None:
        return {"block_size": size, "blocks": settings.blocks, "statistic": "given, as an engine reported them"}
    if found.memory_gib is None or found.shape is None:
        what = "nothing says how many KV blocks there are"
        raise BadInput(what, where="--blocks", right="--blocks, or a --device and a --model that are known")
    blocks = kv_blocks(
        found.shape,
        memory_gib=found.memory_gib,
        utilization=settings.gpu_memory_utilization,
        tensor_parallel=settings.tensor_parallel_size,
        block_size=size,
        max_batched_tokens=settings.max_num_batched_tokens,
        max_sequences=settings.max_num_seqs,
    )
    statistic = "computed (servetwin.profiles.kv_blocks); follows the engine's settings"
    return {"block_size": size, "blocks": blocks, "memory_gib": found.memory_gib, "statistic": statistic}


def default_name(found: Imported, settings: Settings) -> str:
    """The name of a profile by its device and model."""
    keys = [key for key, known in devices().items() if known.name == found.device]
    device = keys[0] if keys else _slug(found.device)
    return f"{device}/{_slug(found.architecture)}-tp{settings.tensor_parallel_size}-{found.kind}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "unnamed"
