"""One run."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from servetwin.core import ServeTwinError
from servetwin.core.errors import Stopped
from servetwin.core.processes import temporary_folders

from . import given
from .errors import Error, spoken
from .results import Result

if TYPE_CHECKING:
    from servetwin.experiments.backends.diffusion import Setup
    from servetwin.experiments.spec.experiment import Experiment

    from .given import PolicyLike, Source

#: Keys of *real*, and what of `servetwin.experiments.backends.diffusion.Setup` they are.
_SETUP = {
    **{name: name for name in ("devices", "model", "weights", "eager", "sampler", "slots", "processes", "compile")},
    "any_device": "foreign",
}
_VLLM = ("url", "api_key_env", "asynchronous")


@spoken
def run(
    experiment: Source,
    *,
    policy: PolicyLike | None = None,
    rate: float | None = None,
    cv: float | None = None,
    slo: float | Mapping[str, Any] | None = None,
    requests: int | None = None,
    seed: int | None = None,
    variant: str | None = None,
    deployment: str | Mapping[str, Any] | None = None,
    trace: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    backend: Literal["sim", "real", "vllm"] = "sim",
    real: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    records: bool = True,
    say: Callable[[str], None] | None = None,
    strict: bool = False,
    jobs: int = 1,
) -> Result:
    """Run one experiment, in simulation or for real. What is left out is as the experiment says.

    *experiment* is a workload's name (``servetwin workloads`` lists them), an experiment file (text or path), or the
    content of one as a dict. *policy* is a name, a file, a class, any of these with its parameters as ``(policy,
    {...})``, or a function without arguments that gives a new policy at each call. *rate* is in requests per second,
    *cv* the coefficient of variation of the gaps between requests, *slo* a multiple of a request's latency alone, or
    a dict (``{"seconds": 2.0}``), *requests* their number, *seed* that of all that is drawn. *variant* and
    *deployment* are names that the experiment offers. *trace* takes the requests from a recorded file, all of them
    unless *requests* is given, at its own rate unless *rate* is (docs/guides/traces.md); a dict has the file's other
    keys. *settings* changes any other key: ``{"policy.params.max_batch": 4}``.

    With *backend* "real" or "vllm" devices of this machine serve, as *real* says: a dict with any of devices, model,
    weights, eager, sampler, any_device, slots, processes, compile (a script then needs Python's usual
    ``if __name__ == "__main__":``), and for vllm url, api_key_env and asynchronous. *say* hears what it does.

    The records are kept in *folder*, which must hold no run, or else in a temporary one for as long as the result is
    there; without *records* only the summary is, which is quicker for long runs, and replicas may be simulated on
    *jobs* processes (-1: one per core; what cannot be split *say* hears). Where it is *strict*, a simulation
    that is outside of what was validated by recorded runs is an error (`Result.validity` says what is).

    Raises `Error` for what does not fit, before anything runs; `TypeError` for what is of the wrong kind; `RunError`
    if the run breaks, caused by what a policy raised, if it did.
    """
    from servetwin.experiments.backends.serve import serve
    from servetwin.experiments.spec.loading import load

    policies = given.Policies()
    source = given.source(experiment, policies)
    short = {"policy": policy, "rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    short |= {"variant": variant, "deployment": deployment, "trace": trace}
    chosen = given.settings_of(policies, short, settings)
    setup, more = _real(backend, real)
    with policies.known():
        resolved = load(source, list(chosen.items()))
        if strict:
            _refuse(resolved, backend)
        if folder is None and not records:
            served = serve(resolved, None, backend=backend, setup=setup, say=say, jobs=jobs, **more)
            return Result(served.summary, resolved.as_dict(), real=served.real)
        if folder is not None:
            place = Path(folder).expanduser()
            served = serve(resolved, place, backend=backend, setup=setup, say=say, jobs=jobs, **more)
            return Result(served.summary, resolved.as_dict(), folder=place, real=served.real)
        place = temporary_folders.make()
        with _gone_if_broken(place):
            served = serve(resolved, place, backend=backend, setup=setup, say=say, jobs=jobs, **more)
    result = Result(served.summary, resolved.as_dict(), folder=place, real=served.real)
    weakref.finalize(result, temporary_folders.remove, place)
    return result


def _refuse(experiment: Experiment, backend: str) -> None:
    """Raise if *experiment* is outside of what was validated."""
    from servetwin.experiments.validation.envelope import standing

    if backend != "sim":
        raise Error("only simulations take this", where="strict", right="to leave it out")
    standing.refuse([standing.of(experiment)])


@contextmanager
def _gone_if_broken(folder: Path) -> Iterator[None]:
    """Remove *folder* if what fills it breaks, and let the error not say that something is left there."""
    try:
        yield
    except BaseException as error:
        temporary_folders.remove(folder)
        if isinstance(error, ServeTwinError | Stopped):
            error.args = tuple(str(arg).replace(f"; what was recorded is in {folder}", "") for arg in error.args)
        raise


def _real(backend: str, real: Mapping[str, Any] | None) -> tuple[Setup | None, dict[str, Any]]:
    """The set-up of a real backend, and what else it takes."""
    from servetwin.experiments.registry.catalog import suggest

    if backend == "sim":
        if real:
            raise Error("only real runs take this", where="real", right='backend="real"')
        return None, {}
    from servetwin.experiments.backends.diffusion import Setup

    setup: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for key, value in (real or {}).items():
        if key in _SETUP:
            setup[_SETUP[key]] = value
        elif key in _VLLM and backend == "vllm":
            more[key] = value
        else:
            known = [*_SETUP, *(_VLLM if backend == "vllm" else ())]
            raise Error(f"there is no option {key!r}", where="real", right=suggest(str(key), known))
    devices = setup.get("devices", ())
    setup["devices"] = (devices,) if isinstance(devices, str) else tuple(devices)
    if setup.get("weights") is not None:
        setup["weights"] = Path(setup["weights"])
    return Setup(**setup), more
