"""Finding a diffusion model by what the user calls it.

A model can be named four ways, tried in this order::

    sdxl-1024                   a kind of a class below servetwin.real.diffusion.models, or an entry point
                                of the group "servetwin.models" (whose name is that of the kind)
    my_model.py                 a file with one class of models, which has one kind
    my_model.py:mine            a kind of the classes in a file
    package.module:mine         a kind of the classes in an importable module

So a new model is one file, and nothing is edited elsewhere.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

from servetwin.core import BadInput
from servetwin.core.errors import Stopped, brief

from .diffusion_model import DiffusionModel
from .kind import Kind

GROUP = "servetwin.models"
RIGHT = "one subclass of servetwin.real.DiffusionModel, with its kinds"


def find(name: str) -> Kind:
    """The kind of this name. Raises `BadInput`."""
    if name in KINDS:
        return KINDS[name]
    entry = offered().get(name)
    if entry is not None:
        module, attribute = entry
        kinds = _kinds(_imported(module), module, attribute)
        return _chosen(kinds, name if name in kinds else "", f"the entry point {name}")
    place, _, inner = name.rpartition(":") if ":" in name else (name, "", "")
    if place.endswith(".py"):
        return _chosen(_kinds(_loaded(Path(place).resolve()), str(Path(place).resolve())), inner, place)
    if inner:
        return _chosen(_kinds(_imported(place), place), inner, place)
    known = [*KINDS, *offered()]
    near = difflib.get_close_matches(name, known, 1)
    right = near[0] if near else f"one of {', '.join(known)}"
    raise BadInput(f"unknown model {name!r}", right=f"{right}; or a file, my_model.py; or package.module:name")


@cache
def offered() -> dict[str, tuple[str, str]]:
    """The models that installed packages offer: module and attribute, by name."""
    return {entry.name: (entry.module, entry.attr) for entry in importlib.metadata.entry_points(group=GROUP)}


def known() -> Iterator[Kind]:
    """All models that have a name. Raises `BadInput` if one that a package offers cannot be loaded."""
    yield from KINDS.values()
    yield from (find(name) for name in offered() if name not in KINDS)


def class_of(kind: Kind) -> type[DiffusionModel]:
    """The class that serves *kind*. Raises `BadInput` if it is not where it was found."""
    place, _, name = kind.code.rpartition(":")
    module = _loaded(Path(place)) if place.endswith(".py") else _imported(place)
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, DiffusionModel)):
        raise BadInput(f"there is no class {name!r} of models there", where=place, right=RIGHT)
    return found


class _Shipped(Mapping[str, Kind]):
    """The models below `servetwin.real.diffusion.models`, tiny ones last; read when they are first asked for."""

    @cached_property
    def _found(self) -> dict[str, Kind]:
        package = importlib.import_module(f"{__package__}.models")
        found: dict[str, Kind] = {}
        for info in pkgutil.iter_modules(package.__path__):
            name = f"{package.__name__}.{info.name}"
            found |= _classes(importlib.import_module(name), name)
        return dict(sorted(found.items(), key=lambda item: item[0].startswith("tiny-")))

    def __getitem__(self, name: str) -> Kind:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _classes(module: ModuleType, place: str, attribute: str = "") -> dict[str, Kind]:
    """The kinds of the classes of models that *module* defines (or of its *attribute*)."""
    found: dict[str, Kind] = {}
    for name, value in vars(module).items():
        mine = inspect.isclass(value) and issubclass(value, DiffusionModel) and value.__module__ == module.__name__
        if mine and attribute in ("", name):
            for kind in value.kinds:
                _check(kind, value, place)
                found[kind.name] = replace(kind, code=f"{place}:{name}")
    return found


def _kinds(module: ModuleType, place: str, attribute: str = "") -> dict[str, Kind]:
    found = _classes(module, place, attribute)
    if not found:
        raise BadInput("there is no diffusion model there", where=place, right=RIGHT)
    return found


def _check(kind: object, where: type[DiffusionModel], place: str) -> None:
    """Raise `BadInput` unless *kind* can be served by the class *where*."""
    at = f"{place}:{where.__name__}"
    if not isinstance(kind, Kind):
        raise BadInput(f"{kind!r} is no kind of model", where=at, right="servetwin.real.Kind(...)")
    loops = [name for name, loop in kind.chain if loop]
    if not loops:
        raise BadInput(f"{kind.name} has no module that loops", where=at, right="one")
    silent = [name for name in loops[1:] if not callable(getattr(where, f"predict_{name}", None))]
    if silent:
        right = f"def predict_{silent[0]}(self, slots, index, x, t, guidance)"
        raise BadInput(f"{kind.name} loops in {silent[0]!r} too, which predicts nothing", where=at, right=right)
    lacks = [n for n, loop in kind.chain if not loop and not callable(getattr(where, n, None))]
    if lacks:
        raise BadInput(
            f"it says nothing of the module {lacks[0]!r}", where=at, right=f"def {lacks[0]}(self, slots, index)"
        )
    if where.predict is DiffusionModel.predict:
        raise BadInput("it predicts nothing", where=at, right="def predict(self, slots, index, x, t, guidance)")
    for name in kind.networks:
        if name not in kind.modules:
            right = f"one of {', '.join(kind.modules)}"
            raise BadInput(f"{kind.name} has a network {name!r} and no such module", where=at, right=right)
    if kind.sampling.sampler not in kind.sampling.samplers:
        what = f"{kind.name} is sampled by {kind.sampling.sampler!r}"
        raise BadInput(what, where=at, right=" or ".join(kind.sampling.samplers))
    if [m for group in kind.placement for m in group] != list(kind.modules):
        right = ", ".join(kind.modules)
        raise BadInput(f"the groups of {kind.name} are not its modules in order", where=at, right=right)
    shared = [name for name in loops if [name] not in kind.placement]  # what the profiler takes apart
    if shared:
        right = f"a group ({shared[0]!r},)"
        raise BadInput(f"{kind.name}: a worker of the loop has other modules", where=at, right=right)


def _chosen(kinds: Mapping[str, Kind], name: str, where: str) -> Kind:
    if not name:
        if len(kinds) == 1:
            return next(iter(kinds.values()))
        what = f"there are {len(kinds)} models there"
        raise BadInput(what, where=where, right=" or ".join(f"{where}:{n}" for n in kinds))
    if name not in kinds:
        raise BadInput(f"there is no model {name!r} there", where=where, right=f"one of {', '.join(kinds)}")
    return kinds[name]


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        right = "a module that Python finds (PYTHONPATH), or a file: my_model.py"
        raise BadInput(f"there is no module {problem.name!r}", where=module, right=right) from None
    except (Stopped, KeyboardInterrupt):
        raise
    except BaseException as problem:
        raise BadInput(f"the module cannot be imported: {brief(problem)}", where=module) from problem


def _loaded(path: Path) -> ModuleType:
    """The module that the file *path* defines; loaded once, by each process."""
    if not path.is_file():
        raise BadInput("there is no such file of a model", where=str(path))
    name = f"servetwin_model_{abs(hash(str(path)))}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as problem:
        del sys.modules[name]
        if isinstance(problem, Stopped | KeyboardInterrupt):
            raise
        raise BadInput(f"the file cannot be loaded: {brief(problem)}", where=str(path)) from problem
    return module


#: The models that come with ServeTwin, by name.
KINDS: Mapping[str, Kind] = _Shipped()
