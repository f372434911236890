"""``servetwin profile``: a model is measured on a device of this machine, and becomes a profile file."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from servetwin.core import BadInput, Policy, Shape
from servetwin.profiles import Profile, load

from ..registry import policy_registry
from ..registry.vllm_settings import settings_of
from ..sweeps import tables
from .diffusion import Setup, check_not_compiled, make_server

if TYPE_CHECKING:
    from servetwin.real import Kind

#: Hears (what is measured next, how much is done, and of how much).
Progress = Callable[[str, int, int], None]

#: What these policies take between two iterations is measured too.
POLICIES = {"neustream": {"bound": 4}, "edf": {}}


def measure(
    model: str,
    out: Path,
    setup: Setup | None = None,
    *,
    name: str | None = None,
    limit: int | None = None,
    seconds: float = 0.4,
    brief: bool = False,
    asynchronous: bool | None = None,
    vllm: Sequence[str] = (),
    without: Sequence[str] = (),
    shapes: Sequence[Shape] = (),
    reuse: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Measure *model* and write its profile to *out*, which must not exist; the file appears whole or not at all.

    *name* is the profile's, otherwise that of device and model. *limit* is the largest batch, *seconds* about how
    long each point is measured; with *brief* only what a simulation reads is. *asynchronous* is vLLM's asynchronous
    scheduling, for language models (None: as vLLM does it by default here), and *vllm* other settings of its engine,
    ``NAME=VALUE``. *without* are modules of a diffusion model that are left out, *shapes* other shapes of requests
    that are measured too; with *reuse* so are steps that use the last prediction again. Raises `BadInput`.
    """
    from .profile_llm import is_language_model

    setup = setup or Setup()
    if is_language_model(model):
        if shapes or reuse:
            where = "--shape" if shapes else "--reuse"
            raise BadInput(f"{model} is served by vLLM", where=where, right="a diffusion model")
        return _measure_language_model(
            model, out, setup, name=name, limit=limit, asynchronous=asynchronous, vllm=vllm, progress=progress
        )
    if vllm:
        raise BadInput(f"{model} is not served by vLLM", where="--vllm", right="a language model")
    from servetwin.real import require

    kind = _found(model, without)
    for shape in shapes:
        kind.at(shape, "--shape")
    require()  # one clear line if torch is not there
    from servetwin.real.diffusion.profiling.profile_writer import write_profile
    from servetwin.real.diffusion.profiling.take_profile import take_profile
    from servetwin.real.server import device_facts

    if shapes and setup.compile is None:
        setup = replace(setup, compile="none")  # what measured best did so of one size
    check_target(out, name)
    if limit is not None and limit < 1:
        raise BadInput(f"batches of up to {limit}", where="--limit", right="1 at least")
    device = setup.devices[0] if setup.devices else "cuda:0"
    server = make_server(kind, setup, {"gpu0": device}, reuse=reuse)
    if shapes:
        check_not_compiled(server, ["gpu0"])
    if name is None:
        name = f"{slug(device_facts(server.options.torch_device('gpu0'))['name'])}/{kind.name}"
    tables.make_folder(out.parent)
    content = take_profile(
        server,
        name,
        limit=limit,
        policies={p: _maker(p) for p in POLICIES},
        command=shlex.join(["servetwin", *sys.argv[1:]]),
        seconds=seconds,
        brief=brief,
        progress=progress,
        shapes=shapes,
        reuse=reuse,
    )
    tables.write_whole(out, lambda path: write_profile(content, path))
    return load(str(out))


def _measure_language_model(
    model: str,
    out: Path,
    setup: Setup,
    *,
    name: str | None,
    limit: int | None,
    asynchronous: bool | None,
    vllm: Sequence[str],
    progress: Progress | None,
) -> Profile:
    """As `measure`."""
    from .profile_llm import called, measure_language_model

    check_target(out, name)
    if limit is not None and limit < 2:
        raise BadInput(f"batches of up to {limit}", where="--limit", right="2 at least")
    if setup.compile is not None:
        raise BadInput(f"{model} is served by vLLM", where="--compile", right="a diffusion model")
    settings = settings_of(vllm)
    text = measure_language_model(
        model,
        lambda device: name or f"{slug(device)}/{called(model)}",
        eager=setup.eager,
        limit=limit,
        asynchronous=asynchronous,
        settings=settings,
        progress=progress,
    )
    tables.make_folder(out.parent)
    tables.write_whole(out, lambda path: path.write_text(text, encoding="utf-8"))
    return load(str(out))


def _found(model: str, without: Sequence[str]) -> Kind:
    """The diffusion model of that name, file or module, without some of its modules. Raises `BadInput`."""
    from servetwin.real.diffusion.model_registry import KINDS, find

    if model not in KINDS and not re.search(r"\.py(:|$)|:", model):
        try:
            kind = find(model)
        except BadInput as problem:
            right = (
                f"one of {', '.join(KINDS)}, tiny-opt, a language model such as opt-13b or llama-3.1-8b, a folder "
                "with a config.json, or a file of a diffusion model, my_model.py"
            )
            raise BadInput(problem.what, right=right) from None
    else:
        kind = find(model)
    for module in without:
        if module not in kind.modules:
            what = f"{kind.name} has no module {module!r}"
            may = [*kind.optional, *(kind.loops if len(kind.loops) > 1 else ())]
            raise BadInput(what, where="--without", right=f"one of {', '.join(may) or 'none'}")
    return kind.profiled_without(without)


def check_target(out: Path, name: str | None) -> None:
    """Raise `BadInput` unless a profile called *name* can be written to *out*."""
    if out.suffix not in (".yaml", ".yml"):
        raise BadInput(f"{out.suffix or 'no ending'} is no kind of profile", where=f"--out {out}", right=".yaml")
    if out.exists():
        raise BadInput("the file is there already", where=f"--out {out}", right="another --out")
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*", name):
        raise BadInput(f"{name!r} is no name", where="--name", right="lower-case letters, digits and . _ - /")


def _maker(policy: str) -> Callable[[], Policy]:
    def make() -> Policy:
        made = policy_registry.make(policy, POLICIES[policy])
        assert isinstance(made, Policy)
        return made

    return make


def slug(name: str) -> str:
    """A device's name as it can stand in the name of a profile."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:r|tm)\)|@.*", "", name.lower())).strip("-") or "device"
