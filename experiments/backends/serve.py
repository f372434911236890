"""One experiment, served by the backend that is asked for: what ``servetwin run`` and `servetwin.run` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput

from ..registry.catalog import suggest

if TYPE_CHECKING:
    from ..assembly.build import Watch
    from ..spec.experiment import Experiment
    from .diffusion import Setup

BACKENDS = ("sim", "real", "vllm")


@dataclass(frozen=True)
class Served:
    """What a run came to: the content of ``summary.json`` and, of a real one, of ``real.json``."""

    summary: dict[str, Any]
    real: dict[str, Any] | None = None


def serve(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    backend: str = "sim",
    setup: Setup | None = None,
    url: str | Sequence[str] | None = None,
    api_key_env: str | None = None,
    asynchronous: bool | None = None,
    say: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    jobs: int = 1,
) -> Served:
    """Serve *experiment* by *backend*, one of `BACKENDS`; with *folder*, leave its records there.

    Real ones go by *setup*; "vllm" alone takes *url* (or several, one for each worker) and *asynchronous*, and with
    *url* the name of an environment variable that holds the server's API key. *say* hears what a real one is doing.
    *watch* gets the recorder before the first request comes. A simulation runs on *jobs* processes (-1: one per
    core), or in so many pieces on the cluster of this context, where it can be split
    (`servetwin.experiments.splitting`).
    """
    if backend not in BACKENDS:
        raise BadInput(f"there is no backend {backend!r}", where="--backend", right=suggest(backend, BACKENDS))
    if backend == "sim":
        if jobs != 1:
            from ..sweeps import one_run

            if folder is None:
                return Served(one_run.run(experiment, jobs, watch=watch, say=say).as_dict())
            (say or (lambda _: None))(f"runs whole, on one core: {one_run.RECORDS}")
        from ..assembly.build import run

        return Served(run(experiment, folder, watch).as_dict())
    from .diffusion import Backend, Setup, watching

    watching.set(watch)

    setup = setup or Setup()
    tell = say or (lambda _: None)
    if backend == "vllm":
        from .vllm import VllmBackend

        vllm = VllmBackend(setup.model, eager=setup.eager, foreign=setup.foreign, asynchronous=asynchronous)
        if not url and api_key_env is not None:
            raise BadInput("this is for a server", where="--api-key-env", right="--url https://host")
        if url:
            from servetwin.real.vllm.http_connection import key_in

            served = vllm.ask(url, experiment, folder, tell, key=key_in(api_key_env, os.environ))
        else:
            served = vllm.run(experiment, folder, tell)
        return Served(served.summary.as_dict(), served.as_dict())
    from . import pipeline

    if pipeline.serves(experiment):
        report = pipeline.run(experiment, setup.model, folder, tell, foreign=setup.foreign)
    else:
        report = Backend(setup).run(experiment, folder, tell)
    return Served(report.summary.as_dict(), report.as_dict())
