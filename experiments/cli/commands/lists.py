"""Commands that list what there is: ``policies``, ``workloads``, ``profiles``.

`servetwin.experiments.cli.app` takes them up. What a command needs is imported when it runs.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output.terminal import print_json, print_table, say, table
from .options import AsJson

if TYPE_CHECKING:
    from servetwin.profiles import ProfileFile


def policies(
    name: Annotated[
        str | None, typer.Argument(help="One of them, my_policy.py, or package.module:Class: what it does and takes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the policies known by name; or tell what one does, and its parameters."""
    from ...registry.policy_docs import page
    from ...registry.policy_registry import describe, policy_names

    if name is not None:
        lines = page(name)
        if as_json:
            text, params = describe(name)
            print_json({"policy": name, "about": text, "parameters": params, "page": lines})
        else:
            say("\n".join(lines))
        return
    found = [(known, *describe(known)) for known in policy_names()]
    if as_json:
        print_json([{"policy": known, "about": text, "parameters": params} for known, text, params in found])
        return
    lines = table(("policy", "left"), ("", "left"))
    for known, text, params in found:
        lines.add_row(known, "\n".join([text, *(f"  {p}: {kind}" for p, kind in params.items())]))
    print_table(lines)
    say("a policy of your own: servetwin run WORKLOAD --policy my_policy.py")


def workloads(as_json: AsJson = False) -> None:
    """List the workloads that come with ServeTwin."""
    from ...registry.catalog import workload_names
    from ...spec.loading import load
    from ...sweeps.point import settings_of

    columns = [("workload", "left"), ("", "left"), ("rate", "right"), ("cv", "right"), ("SLO", "right")]
    lines = table(*columns, ("requests", "right"))
    found: list[dict[str, Any]] = []
    for name in workload_names():
        e = load(name)
        given = settings_of(e)
        found.append({**given, "workload": name, "about": e.about, "requests": e.workload.requests})
        rate, cv, factor = ("" if given[k] is None else f"{given[k]:g}" for k in ("rate", "cv", "slo_factor"))
        slo = f"{factor}x" if factor else ""
        if given.get("prefill_slo"):
            slo = f"{given['prefill_slo']:g}+{given['decode_slo']:g}"
        lines.add_row(name, e.about, rate, cv, slo, str(e.workload.requests))
    if as_json:
        print_json(found)
        return
    print_table(lines)


def profiles(
    name: Annotated[str | None, typer.Argument(help="A profile or a file: print its verdict.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Copy that profile to this file, for you to change.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the profiles that come with ServeTwin; or judge one: noisy samples, gaps in what was measured."""
    from servetwin.core import BadInput
    from servetwin.profiles import load, names, verdict

    if name is not None:
        data = load(name).data
        copied = copy_profile(name, out) if out is not None else None
        if as_json:
            print_json(profile_dict(data, copied))
            return
        say(f"{data.name}: {data.description}")
        show_verdict(data)
        if copied is not None:
            say(f"copied to {copied}")
        return
    if out is not None:
        raise BadInput("says where a copy goes, and not of what", where="--out", right="a NAME before it")
    lines = table(("profile", "left"), ("device", "left"), ("modules", "left"), ("", "left"), ("digest", "left"))
    found = []
    for known in names():
        profile = load(known)
        basis = verdict.origin(profile.data)
        device, modules = profile.data.device.name, [*profile.modules]
        place = {"profile": known, "device": device, "modules": modules, "basis": basis}
        found.append({**place, "digest": profile.digest})
        lines.add_row(known, device, ", ".join(modules), basis, profile.digest[:12])
    if as_json:
        print_json(found)
        return
    print_table(lines)


def copy_profile(name: str, out: Path) -> Path:
    """Copy the files of a profile, as they are, to *out* and what goes beside it. Raises `BadInput`."""
    from servetwin.core import BadInput
    from servetwin.profiles import files
    from servetwin.profiles.profile import COSTS

    from ...sweeps.tables import make_folder, write_whole

    if out.suffix not in (".yaml", ".yml"):
        raise BadInput(f"{str(out)!r} is no name of a profile", where="--out", right="FILE.yaml")
    beside = out.with_name(out.stem + COSTS)
    found = files(name)
    if found[0].suffix == ".csv":
        raise BadInput(f"{name} is a CSV file", where="--out", right="a copy by hand; or a profile in YAML")
    for place in (out, beside):
        if os.path.lexists(place):  # a link that leads nowhere, too
            raise BadInput(f"{place} exists", where="--out", right="a file that does not exist")
    make_folder(out.parent)
    for source, place in reversed([*zip(found, (out, beside), strict=False)]):
        write_whole(place, functools.partial(shutil.copyfile, source))
    return out


def profile_dict(data: ProfileFile, file: Path | None = None) -> dict[str, Any]:
    """A profile and its verdict, for ``--json``; *file* is where it was written, if it was."""
    from servetwin.profiles import verdict

    return {
        "profile": data.name,
        "about": data.description,
        "clean": not verdict.lines(data),
        "basis": verdict.basis(data),
        "faults": [*verdict.lines(data)],
        "not_measured": [*verdict.beyond(data)],
        "blind": [*verdict.blind(data)],
        **({"files": [str(file)]} if file is not None else {}),
    }


def show_verdict(data: ProfileFile) -> None:
    """Print whether a profile is clean, and what may be asked of it that nobody measured."""
    from servetwin.profiles import verdict

    if line := verdict.basis(data):
        say(line)
    lines = verdict.lines(data)
    say("verdict: not clean" if lines else "verdict: clean")
    for line in lines:
        say(f"  {line}")
    for line in verdict.beyond(data):
        say(f"  not measured: {line}")
    for line in verdict.blind(data):
        say(line)
