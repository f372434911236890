"""Options of the command line: those that are of no use where they are given are refused; what ``--set`` sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from servetwin.core import BadInput

if TYPE_CHECKING:
    from ...spec.experiment import Experiment
    from ...spec.keys.host_factors import HostFactors
    from ...spec.overrides import Override
    from ...validation.replay.host_band import OnHost

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
HostFactor = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORS",
        help="Also simulate hosts that launch steps so many times as slow as the profile's: 1.0,1.3,1.6; the folder "
        "of a real run stands for the host that it told.",
    ),
]
Objective = Annotated[
    float | None,
    typer.Option("--objective", metavar="SHARE", help="Requests that are to meet their SLO (0.99): tells the burn."),
]


def hosts_of(experiment: Experiment, factors: str | None, backend: str) -> list[float | HostFactors]:
    """The hosts that ``--host-factor`` names. Raises `BadInput` where *experiment* cannot be simulated on them."""
    if factors is None:
        return []
    only_simulated({"--host-factor": backend != "sim"})
    from ...validation.replay import host_band

    hosts = host_band.hosts_of(factors)
    if not experiment.pipeline.llms:
        what = f"{experiment.name} serves no language model, of whose engines launches are known"
        raise BadInput(what, where="--host-factor", right="to leave it out")
    if experiment.time.host is not None:
        raise BadInput("the host is set already, by time.host", where="--host-factor", right="one of the two")
    from ...assembly.build import build

    try:
        build(host_band.on_host(experiment, hosts[0]))  # what it cannot do is said before anything is served
    except BadInput as error:
        if error.where != "time.host":
            raise
        raise BadInput(error.what, where="--host-factor", right=error.right) from None
    return hosts


def band_of(experiment: Experiment, hosts: list[float | HostFactors], jobs: int | None) -> list[OnHost]:
    """What *experiment* comes to on these *hosts*."""
    if not hosts:
        return []
    from ...validation.replay.host_band import band

    return band(experiment, hosts, jobs=jobs or 1)


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
