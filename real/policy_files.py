"""Policies by name, for schedulers of other servers: a module of ours, of an installed package, or a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from servetwin.core import BadInput

Kind = TypeVar("Kind")


def find_policy(name: str, kind: type[Kind], package: str, served: str) -> type[Kind]:
    """The subclass of *kind* called *name*: a module of *package*, ``package.module:Class``, or a file (``mine.py``,
    ``mine.py:Class``). *served* says in a message what such policies are for. Raises `BadInput` if there is none."""
    place, _, attribute = name.partition(":")
    if place.endswith(".py"):
        path = place
        module = _from_file(Path(place).resolve())
    else:
        path = place if attribute or "." in place else f"{package}.{place.replace('-', '_')}"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            right = "a name, module:Class, or a file, my_policy.py"
            raise BadInput(f"there is no module {error.name!r}", where="policy", right=right) from None
    own = {
        n: c
        for n, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, kind) and c.__module__ == module.__name__
    }
    if attribute in own:
        return own[attribute]
    if attribute or len(own) != 1:
        has = ", ".join(own) or f"no policy for {served}"
        raise BadInput(f"{path} has {has}", where="policy", right="module:Class of one of them")
    return next(iter(own.values()))


def _from_file(path: Path) -> ModuleType:
    """The module in the file *path*, which may import what lies beside it."""
    if not path.is_file():
        raise BadInput("there is no such policy file", where=str(path))
    name = f"servetwin_policy_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
