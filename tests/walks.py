"""The two walks through ServeTwin that `docs/explanation/architecture.md` draws: of an experiment from YAML to a run,
and of a request from arrival to record. ``python tests/walks.py`` draws them anew.

A function is on a walk if it is handed what is followed, whole or in part, as an argument or as its own object; what
is followed is mappings and objects, not single names and numbers. Not counted are comprehensions, lambdas, properties
and methods that Python generates; and checks of bad input, each of which stands beside the walk as one call
(``check``, or ``check_`` and what), with pydantic's check of types.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

from servetwin.core import Request, Task
from servetwin.experiments.assembly import build
from servetwin.experiments.spec.keys.field_types import Strict
from servetwin.experiments.spec.loading import load
from servetwin.experiments.spec.variants import Chosen, Layer
from servetwin.sim.time.calendar import Calendar

import servetwin
from servetwin import core, experiments, policies, profiles, sim

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.md"
EXPERIMENTS = ("dit-s2-256-rtx4090", "opt-13b-a6000")

#: Where each package of ServeTwin lies, by its name.
PACKAGES = {
    str(p.__file__).removesuffix("__init__.py"): p.__name__.rpartition(".")[2]
    for p in (servetwin, core, experiments, policies, profiles, sim)
}


def place_of(code: CodeType) -> str | None:
    """``core/serving/loop.py::ServingLoop.arrive`` for a function of ServeTwin's, None for any other."""
    folder = next((f for f in PACKAGES if code.co_filename.startswith(f)), None)
    if folder is None or code.co_qualname.rpartition(".")[2].startswith("<"):
        return None
    return f"{PACKAGES[folder]}/{Path(code.co_filename[len(folder) :]).as_posix()}::{code.co_qualname}"


def function_at(place: str) -> Callable[..., Any]:
    """The function that `place_of` calls so. Raises `AttributeError` or `ImportError` if there is none."""
    file, _, name = place.partition("::")
    found: Any = importlib.import_module("servetwin." + file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    return getattr(found, "__func__", found)  # type: ignore[no-any-return]


def is_property(code: CodeType, given: list[Any]) -> bool:
    """Whether it only gives an attribute of its object."""
    found = inspect.getattr_static(type(given[0]), code.co_name, None) if len(given) == 1 else None
    return isinstance(found, property | cached_property)


def is_check(place: str) -> bool:
    """Whether it is a check of bad input, as its name says."""
    name = place.rpartition("::")[2].rpartition(".")[2].lstrip("_")
    return name == "check" or name.startswith("check_")


class Walk:
    """The functions that are entered while this is Python's profile function, in order.

    *passes* says whether a value is what is followed, or a part of it; *aside* which functions, with all that they
    call, are none of the walk.
    """

    def __init__(self, passes: Callable[[Any], bool], aside: Callable[[str], bool] = lambda place: False) -> None:
        self.passes, self.aside = passes, aside
        #: On the walk, and how many others of the walk each is called from.
        self.functions: dict[str, int] = {}
        #: The checks of bad input beside it.
        self.checks: dict[str, None] = {}
        #: All that were entered, on the walk or not.
        self.entered: dict[str, None] = {}
        self._beside: FrameType | None = None

    @property
    def files(self) -> list[str]:
        """Those of the functions on the walk, in the order in which they are come to."""
        return list(dict.fromkeys(place.partition("::")[0] for place in self.functions))

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame is self._beside:
            self._beside = None
        code = frame.f_code
        place = place_of(code) if event == "call" else None
        if place is None:
            return
        self.entered[place] = None
        if self._beside is not None:
            return
        by = frame.f_back
        if is_check(place):
            self._beside = frame
            self.checks[place] = None
        elif self.aside(place) or (by is not None and "pydantic" in Path(by.f_code.co_filename).parts):
            self._beside = frame
        elif place not in self.functions:
            count = code.co_argcount + code.co_kwonlyargcount
            count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
            given = [frame.f_locals[name] for name in code.co_varnames[:count] if name in frame.f_locals]
            if any(map(self.passes, given)) and not is_property(code, given):
                above = set()
                while by is not None:
                    above.add(place_of(by.f_code))
                    by = by.f_back
                self.functions[place] = len(above & self.functions.keys())


@contextmanager
def watching(walk: Walk) -> Iterator[Walk]:
    """Within this, *walk* sees each call."""
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)


class Begins(Exception):
    """Simulated time begins."""


def walk_of_an_experiment(name: str) -> Walk:
    """From `load` of a shipped experiment to where simulated time begins."""
    made = False

    def passes(value: Any) -> bool:
        nonlocal made
        if isinstance(value, Strict | build.Run | Layer | Chosen):
            made = made or isinstance(value, Strict)
            return True
        if isinstance(value, list | tuple):
            return any(isinstance(part, Layer | Strict) for part in value)
        if isinstance(value, dict):  # before there is an experiment, all mappings are what files say
            return not made or any(isinstance(part, Strict) for part in value.values())
        return not made and isinstance(value, str | Path) and Path(value).stem == name

    gc.collect()  # generators of other runs end now, not on the way
    try:
        with mock.patch.object(Calendar, "run", side_effect=Begins), watching(Walk(passes)) as walk:
            build.run(load(name))
    except Begins:
        return walk
    raise AssertionError("simulated time never began")


def walk_of_a_request(name: str, batches: bool = False, number: int = 20) -> Walk:
    """From its arrival to its record in a simulated run; what the policy does, and asks for, is its own. With
    *batches* also what is handed a batch that the request is in, among others."""
    followed: list[Request] = []

    def is_it(value: Any) -> bool:
        return (getattr(value, "request", None) if isinstance(value, Task) else value) is followed[0]

    def passes(value: Any) -> bool:
        if isinstance(value, Request) and getattr(value, "id", None) == number and not followed:
            followed.append(value)
        if not followed:
            return False
        if is_it(value):
            return True
        parts = value if isinstance(value, list | tuple | set | dict) else getattr(value, "tasks", ())
        return batches and isinstance(parts, Iterable) and any(map(is_it, parts))

    run = build.build(load(name, [("requests", 2 * number)]))
    with watching(Walk(passes, lambda place: place.startswith("policies/"))) as walk:
        run.play(columns=False)
    assert len(followed) == 1
    return walk


def drawn(places: dict[str, int]) -> str:
    """*places* as lines: number, function, file, and what its docstring begins with."""
    lines = []
    for number, (place, depth) in enumerate(places.items(), 1):
        file, _, name = place.partition("::")
        told = (function_at(place).__doc__ or "").partition("\n\n")[0].replace("*", "")
        text = textwrap.shorten(told.partition(". ")[0].rstrip(".:"), 76, placeholder=" ...")
        lines.append(f"{number:2} {'  ' * depth + name:34} {file:36} {text}".rstrip())
    return "\n".join(lines)


def drawings() -> dict[str, str]:
    """The blocks of the page, by what stands in the comment before each."""
    one, other = map(walk_of_an_experiment, EXPERIMENTS)
    first, second = map(walk_of_a_request, EXPERIMENTS)
    batch, step = [walk_of_a_request(name, batches=True) for name in EXPERIMENTS]
    more = {place: depth for place, depth in other.functions.items() if place not in one.functions}
    return {
        "experiment": drawn(one.functions),
        "experiment, language model": drawn(more),
        "request": drawn(first.functions),
        "batch": drawn({p: depth for p, depth in batch.functions.items() if p not in first.functions}),
        "request, language model": drawn(second.functions),
        "step": drawn({p: depth for p, depth in step.functions.items() if p not in second.functions}),
    }


def with_drawings(text: str) -> str:
    """The page's *text* with the walks as they are now."""
    for name, drawing in drawings().items():
        begin = f"<!-- walk: {name} -->\n\n```text\n"
        before, found, rest = text.partition(begin)
        assert found, f"no place for the walk: {name}"
        _, end, after = rest.partition("\n```")
        text = f"{before}{begin}{drawing}{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_drawings(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
