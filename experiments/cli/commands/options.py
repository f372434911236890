"""Options of the command line: those that are of no use where they are given are refused; what ``--set`` sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from servetwin.core import BadInput

if TYPE_CHECKING:
    from ...spec.overrides import Override

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON: json-output.md in docs/reference.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse what is outside of what was validated by recorded runs (exit code 2)."),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Number of processes; -1: one per core.", show_default=True)]
RunJobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Simulate replicas on so many processes (-1: one per core), if they can be."),
]

Windows = Annotated[
    float | None,
    typer.Option("--windows", metavar="SECONDS", help="Tell by windows of this length whether a run kept up."),
]
Objective = Annotated[
    float | None,
    typer.Option("--objective", metavar="SHARE", help="Requests that are to meet their SLO (0.99): tells the burn."),
]


@contextmanager
def split(jobs: int | None, cluster: str | None) -> Iterator[int]:
    """Within this, one run is simulated on *jobs* processes, or in so many pieces on the *cluster* at that address;
    gives how many (-1: as many as there is room for)."""
    if jobs is not None and jobs < 1 and jobs != -1:
        raise BadInput(f"{jobs} is no number of processes", where="--jobs", right="1 or more, or -1: one per core")
    if cluster is None:
        yield 1 if jobs is None else jobs
        return
    from ...sweeps.cluster import running_on

    with running_on(cluster):
        yield -1 if jobs is None else jobs


def no_out(instead: str) -> BadInput:
    """That there is no ``--out``, and what could be given *instead*."""
    right = f"--out with a file; or {instead}" if instead else "--out with a folder"
    return BadInput("nothing says where results go", where="--out", right=right)


def only_simulated(given: Mapping[str, Any]) -> None:
    """Raise `BadInput` at the first option that has a value, and that real runs do not take."""
    _refuse(given, "only simulations take this", "to leave it out; real runs take --seeds and --repeats")


def only_real(given: Mapping[str, Any]) -> None:
    """Likewise of those that only real runs take."""
    _refuse(given, "only real runs take this", "--backend real")


def only_modules(given: Mapping[str, Any]) -> None:
    """Likewise of those that are about torch modules, where vLLM serves."""
    _refuse(given, "vLLM does not take this: it is about modules of torch", "to leave it out")


def only_vllm(given: Mapping[str, Any]) -> None:
    """Likewise of those that are about vLLM, where torch modules are served."""
    _refuse(given, "only --backend vllm takes this", "--backend vllm")


def only_with_url(given: Mapping[str, Any]) -> None:
    """Likewise of those that are about a server, where there is none."""
    _refuse(given, "this is for a server", "--url https://host")


def _refuse(given: Mapping[str, Any], what: str, right: str) -> None:
    for option, value in given.items():
        if value:
            raise BadInput(what, where=option, right=right)


def overrides_of(sets: list[str] | None, short: Mapping[str, Any] | None = None) -> list[Override]:
    """What ``--set`` sets. Raises `BadInput` if a key is set twice, by that or by one of the *short* options."""
    from ...spec.loading import parse_override, set_twice

    found = [parse_override(s) for s in sets or ()]
    options = [(f"--{k} {v}", k, v) for k, v in (short or {}).items() if v is not None]
    twice = set_twice([*options, *((f"--set {s}", *pair) for s, pair in zip(sets or (), found, strict=True))])
    if twice is not None:
        raise BadInput(f"{twice[0]} sets {twice[2]} as well", where=twice[1], right="one of the two")
    return found
