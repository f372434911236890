"""``servetwin explore``: a page on which an experiment is changed and simulated anew at once.

`servetwin.experiments.cli.app` takes it up. What it needs is imported when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import overrides_of


def explore(
    experiment: Annotated[str, typer.Argument(help="A workload's name (see `servetwin workloads`) or a YAML file.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="The policy to begin with; more are offered, too (repeatable; a file, say: my_policy.py)."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Mean arrival rate, in requests per second.")] = None,
    cv: Annotated[float | None, typer.Option(help="Coefficient of variation of the gaps between arrivals.")] = None,
    slo: Annotated[
        float | None, typer.Option(help="SLO, as a multiple of the latency of a request served alone.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Number of requests.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of arrivals, lengths and noise.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the experiment (repeatable)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page; else 7437, or any if that is taken.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Change an experiment on a page, on this machine alone, and see at once what comes of it."""
    from ...assembly.build import build
    from ...exploring.lanes import Lanes
    from ...exploring.pages import Pages
    from ...exploring.server import Server, serve
    from ...registry.catalog import source_of
    from ...spec.loading import load
    from ...spec.overrides import ByOption, Override

    chosen = list(policy or ())
    short = {"rate": rate, "cv": cv, "slo": slo, "requests": requests, "seed": seed}
    base: list[Override] = [(ByOption(k), v) for k, v in short.items() if v is not None]
    base += overrides_of(sets, {"policy": chosen[0] if chosen else None, **short})
    policies: list[Override] = [(ByOption("policy"), name) for name in chosen]
    for own in [[policy] for policy in policies] or [[]]:  # what is wrong is told before there is a page
        build(load(source_of(experiment), [*own, *base]))
    base = [*policies[:1], *base]
    lanes = Lanes(2)
    try:
        server = Server(Pages(experiment, base, chosen[1:], lanes), port)
        typer.echo(f"exploring {experiment} at {server.invitation} (Ctrl-C ends it)")
        if browser:
            _open(server.invitation)
        serve(server)
    finally:
        lanes.close()


def _open(address: str) -> None:
    """Open *address* in the user's browser, if there is one; who has none has the address."""
    import webbrowser
    from contextlib import suppress

    with suppress(webbrowser.Error):
        webbrowser.open(address)
