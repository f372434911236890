"""All profiles that restate the NeuStream artifact, written as files."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from servetwin.core import BadInput

from ..schema import ProfileFile
from ..tables.loading import check
from ..yaml_writer import text
from .diffusion import WORKLOADS, Reference, profile


def restate(reference: Path, out: Path) -> list[Path]:
    """Write every profile below *out*; returns the files."""
    from . import agents, llm

    source = Reference(reference)
    files = [(w.name, profile(source, w)) for w in WORKLOADS]
    paths: list[Path] = []
    for name, data in itertools.chain(files, llm.profiles(reference), agents.profiles(reference)):
        path = out / f"{name}.yaml"
        content = text(data)
        check(yaml.safe_load(content), ProfileFile, where=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    args = sys.argv[1:] if arguments is None else list(arguments)
    if len(args) != 2:
        sys.stderr.write("usage: python -m servetwin.profiles.neustream_artifact REFERENCE_DIR OUT_DIR\n")
        return 2
    try:
        for path in restate(Path(args[0]), Path(args[1])):
            sys.stdout.write(f"{path}\n")
    except BadInput as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    return 0
