"""Recorded steps in a file, to be read without vLLM or a GPU: a zip of numpy arrays, a folder for each part, and
``engine.json``, which tells of the engine that made them.

Times are whole microseconds since the part began; see `append` for what is there.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .device_steps import Steps

ENGINE = "engine.json"


def append(file: Path, number: int, steps: Steps) -> None:
    """Add a part to *file* as ``NNN-KIND/``: start, scheduled, after, end (microseconds), chunks (step, tokens,
    context before), decode, contexts (of all that decode, step after step), launch (launched and sampled in seconds,
    device and idle in milliseconds; where processes of their own launched, told and held in seconds, too) and info
    (JSON)."""

    def micro(values: Any) -> Any:
        return np.round(np.asarray(values) * 1e6).astype(np.int64)

    chunks = [(i, n, c) for i, some in enumerate(steps.chunks) for n, c in some]
    launch = np.column_stack((steps.launched, steps.sampled, 1e3 * steps.device, 1e3 * steps.idle))
    if steps.apart:
        launch = np.column_stack((launch, steps.told, steps.held))
    arrays = {
        "start": micro(steps.start),
        "scheduled": micro(steps.scheduled),
        "after": micro(steps.after),
        "end": micro(steps.end),
        "chunks": np.array(chunks, dtype=np.int32).reshape(-1, 3),
        "decode": np.array([len(c) for c in steps.contexts], dtype=np.int32),
        "contexts": np.concatenate([*steps.contexts, np.zeros(0)]).astype(np.int32),
        "launch": launch.astype(np.float32),
        "info": np.frombuffer(json.dumps(steps.info).encode(), dtype=np.uint8),
    }
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{number:03d}-{steps.kind}/{name}.npy", "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def add_engine(file: Path, facts: dict[str, Any]) -> None:
    """Keep in *file* what `compose.described` told of the engine."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ENGINE, json.dumps(facts))


def engine_of(file: Path) -> dict[str, Any]:
    """What *file* tells of its engine."""
    with zipfile.ZipFile(file) as archive:
        found: dict[str, Any] = json.loads(archive.read(ENGINE))
    return found


def read(file: Path) -> list[Steps]:
    """The parts of *file*, in their order."""
    arrays: dict[str, dict[str, Any]] = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name == ENGINE:
                continue
            part, _, member = name.partition("/")
            content = io.BytesIO(archive.read(name))
            arrays.setdefault(part, {})[member.removesuffix(".npy")] = np.lib.format.read_array(content)
    return [_steps(part.partition("-")[2], arrays[part]) for part in sorted(arrays)]


def _steps(kind: str, arrays: dict[str, Any]) -> Steps:
    count = len(arrays["start"])
    chunks: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for i, n, c in arrays["chunks"].tolist():
        chunks[i].append((n, c))
    known = arrays["launch"][:count].astype(float)
    columns = known.shape[1]
    launch = np.full((count, columns), np.nan)
    launch[: len(known)] = known
    contexts = np.split(arrays["contexts"].astype(float), np.cumsum(arrays["decode"])[:-1]) if count else []
    seconds = {name: arrays[name] * 1e-6 for name in ("start", "scheduled", "after", "end")}
    return Steps(
        kind,
        json.loads(bytes(arrays["info"])),
        **seconds,
        chunks=chunks,
        contexts=contexts,
        launched=launch[:, 0],
        sampled=launch[:, 1],
        device=1e-3 * launch[:, 2],
        idle=1e-3 * launch[:, 3],
        **({"told": launch[:, 4], "held": np.nan_to_num(launch[:, 5])} if columns > 4 else {}),
    )
