"""Recorded engine steps of a language model: a profile is made of them, and judged by the traffic among them.

``python -m servetwin.experiments.validation.replay.steps [FILE ...]`` fits each recording (by default all under
``measured/``) anew, without a GPU, as `servetwin profile` does on one, and prints how far the profile is off on steps
of traffic that it was not made of, by kind of step; beside it stand predictors that look at less, and how far steps
are off that were made several times, each predicted by the median of the others: who knows nothing but what a step
computes can hardly be nearer.

With ``--halves`` before the files each is judged on every second load of its traffic, as it is and made of the other
loads as well: what requests at random tell that chosen steps do not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...registry.catalog import recording_of
from . import as_command
from .llm import MEASURED

if TYPE_CHECKING:
    from servetwin.real.vllm.profiling.measuring.device_steps import Sample

#: Errors of single steps as shares, by kind of step.
Errors = Mapping[str, Sequence[float]]


def recordings() -> list[Path]:
    """The files of steps that come with ServeTwin."""
    return sorted(MEASURED.glob("*/steps-*.npz"))


def judged(file: Path) -> dict[str, Errors]:
    """By predictor, the errors on the steps of traffic in *file*: of "the profile" that is made of all others, of
    "tokens alone" (the median of steps of about as many tokens), and of "the table alone", without recent load; and
    of "the same again", steps of one composition predicted by the others of it."""
    from servetwin.profiles.llm.schema import TokenModel
    from servetwin.profiles.llm.step_table import TokenTable
    from servetwin.real.vllm.profiling.fitting import step_profile
    from servetwin.real.vllm.profiling.measuring import step_files
    from servetwin.real.vllm.profiling.measuring.device_steps import all_samples

    engine = step_files.engine_of(file)
    parts = step_files.read(file)
    last = max(engine["graphs"], default=0)
    made = step_profile.section(parts, engine, {"file": file.name})
    table = TokenTable(TokenModel.model_validate(made["tokens"]["kinds"]["measured"]), hold=True)
    found = all_samples(parts, last, step_profile.MEMORY)
    return {
        "the profile": step_profile.blind_errors(found, table, made["costs"], last),
        "the table alone": step_profile.blind_errors(found, table, {}, last),
        "tokens alone": _by_tokens(found, last),
        "the same again": _by_themselves(found, last),
    }


def halves(file: Path) -> list[dict[str, Errors]]:
    """The errors on every second load of the traffic in *file*, and on the others, by what the profile is made of:
    "no traffic" or "the other loads too"."""
    from servetwin.profiles.llm.schema import TokenModel
    from servetwin.profiles.llm.step_table import TokenTable
    from servetwin.real.vllm.profiling.fitting import step_profile
    from servetwin.real.vllm.profiling.measuring import step_files
    from servetwin.real.vllm.profiling.measuring.device_steps import all_samples

    engine, parts = step_files.engine_of(file), step_files.read(file)
    last = max(engine["graphs"], default=0)
    loads = [i for i, part in enumerate(parts) if part.kind == "traffic"]
    told = []
    for judged_on in (set(loads[::2]), set(loads[1::2])):
        found = all_samples([parts[i] for i in sorted(judged_on)], last, step_profile.MEMORY)
        others = [
            replace(p, kind="requests") if p.kind == "traffic" and i not in judged_on else p
            for i, p in enumerate(parts)
        ]
        errors: dict[str, Errors] = {}
        for made_of, some in (("no traffic", parts), ("the other loads too", others)):
            made = step_profile.section(some, engine, {"file": file.name})
            table = TokenTable(TokenModel.model_validate(made["tokens"]["kinds"]["measured"]), hold=True)
            errors[made_of] = step_profile.blind_errors(found, table, made["costs"], last)
        told.append(errors)
    return told


def _by_tokens(found: Sequence[Sample], last: int) -> Errors:
    from servetwin.real.vllm.profiling.fitting.step_profile import KINDS, kind_of

    made = [s for s in found if s.kind != "traffic" and s.alone]
    tokens = np.array([s.tokens for s in made])
    seconds = np.array([s.seconds for s in made])
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for s in found:
        if s.kind == "traffic" and s.alone and not s.waited:
            near = np.argsort(np.abs(tokens - s.tokens), kind="stable")[:15]
            errors[kind_of(s, last)].append(float(np.median(seconds[near])) / s.seconds - 1.0)
    return errors


#: Steps of one composition at least, and by which share their contexts may differ.
ALIKE, NEAR = 4, 0.02


def _by_themselves(found: Sequence[Sample], last: int) -> Errors:
    """Chosen steps alone are made several times; those of requests at random hardly ever are."""
    from servetwin.real.vllm.profiling.fitting.step_profile import KINDS, kind_of

    cells: dict[tuple[Any, ...], list[Sample]] = {}
    for s in found:
        if s.kind != "traffic" and s.alone and not s.waited:
            context = round(float(np.log(max(s.context, 1))) / NEAR)
            cells.setdefault((s.kind, tuple(s.chunks), s.decode, context), []).append(s)
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for some in cells.values():
        if len(some) >= ALIKE:
            seconds = np.array([s.seconds for s in some])
            for i, s in enumerate(some):
                errors[kind_of(s, last)].append(float(np.median(np.delete(seconds, i))) / s.seconds - 1.0)
    return errors


def lines(file: Path, by_halves: bool = False) -> list[str]:
    """What is printed of *file*; *by_halves*: as of `halves`."""
    from servetwin.real.vllm.profiling.measuring import step_files

    engine: dict[str, Any] = step_files.engine_of(file)
    told = [f"{engine['options']['model']}, {engine['device']}, vLLM {engine['vllm']} ({file.parent.name})"]
    told.append(f"  {'':20}{'steps of':14}{'number':>7}{'median':>9}{'p95':>8}{'bias':>8}")
    for predictions in halves(file) if by_halves else [judged(file)]:
        for predictor, errors in predictions.items():
            for kind, values in errors.items():
                if values:
                    off = np.abs(np.array(values))
                    numbers = [100 * float(v) for v in (np.median(off), np.quantile(off, 0.95), np.median(values))]
                    shares = f"{numbers[0]:>7.1f} %{numbers[1]:>6.1f} %{numbers[2]:>+6.1f} %"
                    told.append(f"  {predictor:20}{kind:14}{len(values):>7}{shares}")
    return told


def main(arguments: Sequence[str]) -> None:
    names = [name for name in arguments if name != "--halves"]
    for file in [recording_of(name) for name in names] or recordings():
        for line in lines(file, "--halves" in arguments):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    as_command.run(main)
