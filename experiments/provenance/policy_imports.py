"""Importing a policy so that the code which runs is the code that was hashed.

Modules outside the standard library, installed packages and ServeTwin itself are imported by `SourceLoader`: it
compiles the very bytes that it hashes, and no file of bytecode, which only goes by whole seconds. Each load of a
policy imports all of them anew, whatever this process had of them, so nothing that was edited since is left over; who
holds the older modules keeps them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .file_digests import file_digest, own_folders

#: One import of policies at a time, for they share `sys.modules`.
LOCK = threading.RLock()


@dataclass
class Source:
    """A module's file: its *label* is the module's name (of a policy file, the file's), *late* says that it was not
    imported with the policy, but would be by a function of it, *fixed* that it cannot be imported anew."""

    label: str
    path: str
    digest: str
    content: bytes = field(default=b"", repr=False)
    late: bool = False
    fixed: bool = False

    @property
    def file(self) -> str:
        """The file by the name of the module, wherever that lies: ``pack/inner.py``."""
        if self.label.endswith(".py"):
            return self.label
        name, place = Path(self.path), self.label.replace(".", "/")
        return f"{place}/{name.name}" if name.name.startswith("__init__.") else f"{place}{name.suffix}"


#: What `SourceLoader` and its kin have imported, in order.
loaded: list[Source] = []

_wanted = threading.local()


class SourceLoader(SourceFileLoader):
    """Imports a module from its source, and notes what it read."""

    digest = ""

    def get_code(self, fullname: str) -> Any:
        path = os.path.abspath(self.get_filename(fullname))
        data = bytes(self.get_data(path))
        label = Path(path).name if fullname.startswith(PREFIX) else fullname
        self.digest = hashlib.sha256(data).hexdigest()
        loaded.append(Source(label, path, self.digest, data))
        return self.source_to_code(data, path)


#: How the modules of policy files are called.
PREFIX = "servetwin_policy_"


class _Finder(MetaPathFinder):
    """Stands before the other finders, and passes on what they find with a `SourceLoader` in it."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if not getattr(_wanted, "on", 0) or fullname.partition(".")[0] in _never():
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None else None
            if spec is not None:
                break
        else:
            return None
        if spec.origin is None or not is_followed(fullname, spec.origin):
            return None
        if spec.origin.endswith(".py") and os.path.isfile(spec.origin):
            spec.loader = SourceLoader(fullname, spec.origin)
        else:  # compiled, or in an archive: it is what the file is, as far as can be known
            path = Path(os.path.abspath(spec.origin))
            file = next((str(p) for p in (path, *path.parents) if p.is_file()), str(path))
            loaded.append(Source(fullname, file, file_digest(file)))
        return spec


_finder = _Finder()


@contextmanager
def following() -> Iterator[None]:
    """Within this, the modules of users are imported by `SourceLoader`."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _wanted.on = getattr(_wanted, "on", 0) + 1
    try:
        yield
    finally:
        _wanted.on -= 1


# -- whose modules they are -----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _never() -> frozenset[str]:
    return frozenset({"servetwin", "__main__", "__mp_main__", *sys.builtin_module_names})


@lru_cache(maxsize=8)
def _library_roots(search: tuple[str, ...]) -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages()}
    for entry in search:
        place = Path(entry)
        if place.name in ("site-packages", "dist-packages") or next(place.glob("*.dist-info"), None) is not None:
            roots.add(entry)
    roots |= {str(folder) for folder in own_folders().values()}
    both = {r for root in roots for r in (root, str(Path(root).resolve()))}
    return tuple(sorted(root.rstrip("/") + "/" for root in both if root))


@lru_cache(maxsize=4096)
def _lies_in(folder: str, roots: tuple[str, ...]) -> bool:
    return folder.startswith(roots) or (str(Path(folder).resolve()) + "/").startswith(roots)


def is_library(origin: str) -> bool:
    """Whether the file *origin* belongs to Python, an installed package or ServeTwin."""
    entries = tuple(entry for entry in sys.path if entry)
    return _lies_in(str(Path(origin).parent) + "/", _library_roots(entries))


def is_followed(name: str, origin: str) -> bool:
    """Whether the module *name* from the file *origin* is a user's."""
    return name.partition(".")[0] not in _never() and origin not in ("built-in", "frozen") and not is_library(origin)


def _file_of(module: Any) -> str | None:
    origin = getattr(getattr(module, "__spec__", None), "origin", None) or getattr(module, "__file__", None)
    return origin if isinstance(origin, str) else None


# -- importing ------------------------------------------------------------------------------------------


@contextmanager
def anew() -> Iterator[list[Source]]:
    """Within this, no module of a user counts as imported, so that all are imported anew; gives what was imported.

    Afterwards modules that were not needed again are back in `sys.modules`. If it fails, everything is as before.
    """
    with LOCK, following():
        fixed = solid()
        hidden = {
            name: module
            for name, module in list(sys.modules.items())
            if (origin := _file_of(module)) is not None
            and is_followed(name, origin)
            and name.partition(".")[0] not in fixed
        }
        for name in hidden:
            del sys.modules[name]
        importlib.invalidate_caches()
        start = len(loaded)
        found: list[Source] = []
        try:
            yield found
        except BaseException:
            for name, module in list(sys.modules.items()):
                if isinstance(getattr(module, "__loader__", None), SourceLoader):
                    del sys.modules[name]
            sys.modules.update(hidden)
            raise
        found += loaded[start:]
        packages = {name.partition(".")[0] for name in sys.modules.keys() & hidden.keys()}
        for name, module in hidden.items():
            # Below a package that was imported anew, the older modules would be no attributes of it. What functions
            # of a policy imported is left out too: they import it as it is now.
            ours = isinstance(getattr(module, "__loader__", None), SourceLoader)
            if name.partition(".")[0] not in packages and not ours:
                sys.modules.setdefault(name, module)


def solid() -> set[str]:
    """The packages of users that have compiled modules: those bear no second import."""
    return {
        name.partition(".")[0]
        for name, module in list(sys.modules.items())
        if (origin := _file_of(module)) is not None
        and origin.endswith(tuple(EXTENSION_SUFFIXES))
        and is_followed(name, origin)
    }


def load_file(path: Path) -> ModuleType:
    """The policy file *path* as a module."""
    name = PREFIX + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    loader = SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def let_go(sources: list[Source]) -> None:
    """Forget modules that functions of a policy import and that were imported otherwise, or of another version."""
    for source in sources:
        module = sys.modules.get(source.label)
        loader = getattr(module, "__loader__", None)
        if (
            source.late
            and not source.fixed
            and module is not None
            and getattr(loader, "digest", None) != source.digest
        ):
            del sys.modules[source.label]


# -- what a source says of itself -------------------------------------------------------------------------


def imports_of(tree: ast.AST, name: str, package: bool) -> set[str]:
    """The modules that the code *tree* of the module *name* may import, also in its functions; some are no modules,
    but names in them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if package else name.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            if base:
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {".".join(n.split(".")[: i + 1]) for n in found for i in range(n.count(".") + 1)}


def locate(name: str) -> str | None:
    """The source file of the module *name* if it is a user's; nothing is imported."""
    path: Any = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    if parts[0] in _never():
        return None
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and i < len(parts) - 1:
            return None
    if spec is None or spec.origin is None or not is_followed(name, spec.origin):
        return None
    return os.path.abspath(spec.origin)
