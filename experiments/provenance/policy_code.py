"""The code of a policy as this process loaded it: what it was made of, what else it reads, whether it is still so.

`code_of` finds a policy by its place and loads it anew as soon as one of its files has changed. Within `as_loaded`
each policy stays what it was when it was first asked for, so that one run is of one version.

A hook on the interpreter's audit events tells which files a policy opens that it does not declare (the class
attribute ``files``), and what else it does that no hash can hold. It costs nothing while none of that happens.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from . import policy_imports
from .file_digests import MISSING, combined, file_digest, installed, own_folders, path_digest
from .nondeterminism import doubts_of, goes_by_hashes
from .policy_imports import Source, imports_of, is_library, locate


@dataclass(eq=False)
class Code:
    """A policy class and its code.

    *sources* are the modules that it was loaded from, and those that its functions may import; *packages* the
    installed ones that these name, with versions; *declared* the files of the class attribute ``files``, by the names
    given there. *reads* are other files that it opened, with the hash of what they held; *doubts* say why its rows
    cannot be kept. *ours* is set for policies that come with ServeTwin. *text* is the source of a class that was
    given as an object (see `servetwin.experiments.registry.policy_objects`). *hashed* says that its rows may depend
    on the seed of Python's hashes, PYTHONHASHSEED. *used* is set once a run is over: what that run left in its
    classes and modules is not to reach the next, which loads it anew.
    """

    policy: Any
    sources: dict[str, Source] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    declared: dict[str, Path] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    writes: set[str] = field(default_factory=set)
    doubts: dict[str, None] = field(default_factory=dict)
    ours: bool = False
    text: str = ""
    hashed: bool = False
    used: bool = False

    def fresh(self) -> bool:
        """Whether all that it was loaded from still is what it was."""
        return all(file_digest(s.path) == s.digest for s in self.sources.values()) and all(
            os.path.abspath(path) in self.writes or path_digest(Path(path)) == digest
            for path, digest in self.reads.items()
        )

    @property
    def anew(self) -> bool:
        """Whether it can be loaded once more: what comes with ServeTwin or is installed cannot."""
        return not self.ours and bool(self.sources) and not any(s.fixed for s in self.sources.values())

    def files(self) -> dict[str, str]:
        """What its rows depend on: hashes of its modules and declared files, by name."""
        found = {s.file: s.digest for s in self.sources.values()}
        return {**found, **{name: path_digest(path) for name, path in self.declared.items()}}

    def digest(self) -> str:
        """A hash of all of that, the same on every machine."""
        if self.ours:
            source = sys.modules[self.policy.__module__].__file__
            return file_digest(source) if source else MISSING
        lines = [f"class {self.policy.__qualname__}"]
        lines += sorted(f"{name} {digest}" for name, digest in self.files().items())
        lines += sorted(f"package {name} {version}" for name, version in self.packages.items())
        lines += [f"text {self.text}"] if self.text else []
        lines += [f"hashes {hash('servetwin')}"] if self.hashed else []
        return combined(lines)

    def others(self) -> dict[str, str]:
        """The files that it has read without declaring them, so far."""
        declared = tuple(str(path) for path in self.declared.values())
        folders = tuple(f"{path}/" for path in declared)
        known = {*declared, *self.writes}
        return {
            path: digest
            for path, digest in self.reads.items()
            if (full := os.path.abspath(path)) not in known and not full.startswith(folders)
        }


# -- finding --------------------------------------------------------------------------------------------

_codes: dict[tuple[Any, ...], Code] = {}
_pinned: ContextVar[dict[tuple[Any, ...], Code] | None] = ContextVar("policies as loaded", default=None)


@contextmanager
def as_loaded() -> Iterator[None]:
    """Within this, a policy is not loaded anew: all that asks for it gets the same class."""
    if _pinned.get() is not None:
        yield
        return
    pinned: dict[tuple[Any, ...], Code] = {}
    token = _pinned.set(pinned)
    try:
        yield
    finally:
        _pinned.reset(token)
        for code in pinned.values():
            code.used = True


def load_again() -> None:
    """Within `as_loaded`, begin again: policies that were asked for so far are loaded anew."""
    pinned = _pinned.get()
    for code in (pinned or {}).values():
        code.used = True
    if pinned is not None:
        pinned.clear()


def code_of(kind: str, place: str, attribute: str, load: Any) -> Code:
    """The code of the policy *attribute* in *place*, a "file" or a "module"; *load* gives its class."""
    key: tuple[Any, ...] = (kind, place, attribute)
    if kind == "module":
        key = (*key, _here(), tuple(sys.path))
    pinned = _pinned.get()
    if pinned is not None and key in pinned:
        return pinned[key]
    code = _codes.get(key)
    again = pinned is not None and code is not None and code.used and code.anew
    if code is None or again or not code.fresh():
        with policy_imports.LOCK:
            code = _load(kind, place, load, code)
            _codes[key] = code
    if pinned is not None:
        policy_imports.let_go(list(code.sources.values()))
        pinned[key] = code
    return code


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _load(kind: str, place: str, load: Any, before: Code | None) -> Code:
    top = place.partition(".")[0] if kind == "module" else None
    if top in ("servetwin", "__main__"):
        code = Code(load(), ours=top == "servetwin")
        if not code.ours:
            code.doubts["it is defined in __main__, whose code cannot be read again"] = None
        return code
    if top is not None and _installed(top):
        return _of_package(top, load, before)
    code = Code(None)
    _watch_events()
    with policy_imports.beside(place if kind == "file" else None):
        with policy_imports.anew() as sources:
            _loading.code = code
            try:
                code.policy = load()
            finally:
                _loading.code = None
        for source in sources:
            code.sources[source.path] = source
        _follow(code)
    _declare(code)
    _stays(code)
    _attend(code, before)
    return code


def _attend(code: Code, before: Code | None) -> None:
    """From now on what the files of *code* do is put down to it, and not to what it was *before*."""
    for path in code.sources:
        codes = _by_file.setdefault(path, [])
        codes[:] = [*(c for c in codes if c is not before), code]


def _installed(top: str) -> bool:
    """Whether *top* is an installed package."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and is_library(spec.origin)


def _of_package(top: str, load: Any, before: Code | None) -> Code:
    """A policy of an installed package, of which all modules count. It may have been loaded for long, and is not
    loaded again: packages do not expect that."""
    code = Code(load())
    _watch_events()
    origin = getattr(sys.modules[top], "__file__", None)
    if isinstance(origin, str):
        file = Path(origin)
        files = sorted(file.parent.rglob("*.py")) if file.name.startswith("__init__.") else [file]
        for path in files:
            label = f"{top}/{path.relative_to(file.parent).as_posix()}"
            content = path.read_bytes()
            code.sources[str(path)] = Source(
                label, str(path), hashlib.sha256(content).hexdigest(), content, fixed=True
            )
    else:
        code.doubts[f"the files of the package {top} cannot be found"] = None
    for source in code.sources.values():
        _examine(code, source)
        source.content = b""
    code.packages = {top: installed(top)}
    _stays(code)
    _attend(code, before)
    return code


def _examine(code: Code, source: Source) -> frozenset[str] | None:
    """Look a *source* over for what makes its rows doubtful; gives the modules that it imports."""
    if not source.path.endswith(".py"):
        return None
    package = source.path.endswith("__init__.py")
    found = _looked_over(source.content, source.label, package, os.environ.get("PYTHONHASHSEED"))
    if found is None:
        return None
    hashed, doubts, imports = found
    code.hashed = code.hashed or hashed
    for what, line in doubts:
        code.doubts[f"it {what} ({Path(source.path).name}:{line})"] = None
    return imports


@lru_cache(maxsize=512)
def _looked_over(
    content: bytes, label: str, package: bool, _: str | None
) -> tuple[bool, tuple[tuple[str, int], ...], frozenset[str]] | None:
    """Whether it goes by hashes, its doubts, and what it imports; None if it is no code. Policies are loaded anew for
    each run, and mostly are what they were."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return None
    return goes_by_hashes(tree), tuple(doubts_of(tree)), frozenset(imports_of(tree, label, package))


def _follow(code: Code) -> None:
    """Look through the sources for what they import, when they run too, and for what makes them doubtful."""
    waiting = list(code.sources.values())
    labels = {s.label for s in waiting}
    tops: set[str] = set()
    solid = policy_imports.solid()
    while waiting:
        source = waiting.pop()
        imports = _examine(code, source)
        if imports is None:
            continue
        for name in sorted(imports - labels):
            labels.add(name)
            path = locate(name)
            if path is None:
                tops.add(name.partition(".")[0])
            elif path not in code.sources:
                late = Source(name, path, file_digest(path), late=True, fixed=name.partition(".")[0] in solid)
                late.content = Path(path).read_bytes() if path.endswith(".py") else b""
                code.sources[path] = late
                waiting.append(late)
        source.content = b""
    own = {s.label.partition(".")[0] for s in code.sources.values()}
    known = tops - own - {"servetwin", "__future__"} - sys.stdlib_module_names
    code.packages = {name: version for name in sorted(known) if (version := installed(name))}


def _declare(code: Code) -> None:
    """Take up the files that the class and its bases declare."""
    for kind in reversed(code.policy.__mro__):
        names = vars(kind).get("files", ())
        module = sys.modules.get(kind.__module__)
        home = getattr(module, "__file__", None)
        if not names or not isinstance(home, str) or kind.__module__.startswith("servetwin."):
            continue
        where = f"{Path(home).name}: {kind.__name__}.files"
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise BadInput(f"{names!r} does not fit", where=where, right='the names of files: ("table.json",)')
        for name in names:
            path = Path(home).parent / name
            if not path.exists():
                raise BadInput(f"there is no file {name}", where=where, right="names relative to the policy's file")
            code.declared[name] = Path(os.path.abspath(path))


def _stays(code: Code) -> None:
    """Installed packages, compiled modules and packages with such stay in this process as they were when they were
    first seen, whatever becomes of their files."""
    for path, source in code.sources.items():
        if (source.fixed or not path.endswith(".py")) and _first.setdefault(path, source.digest) != source.digest:
            code.doubts[f"{source.file} {_STALE}"] = None
        if not path.endswith((".py", *EXTENSION_SUFFIXES)):
            code.doubts[f"it imports {source.label} from {Path(path).name}, whose source cannot be read"] = None


#: By path, the hash of what cannot be loaded anew.
_first: dict[str, str] = {}

#: What is said of code that this process cannot load anew.
_STALE = "was changed since this process loaded it: start it again"

# -- what it opens --------------------------------------------------------------------------------------

#: The codes that a file is part of.
_by_file: dict[str, list[Code]] = {}

_loading = threading.local()
_within = threading.local()
_watching = False

#: Events whose outcome is no file's content.
_UNKNOWABLE = {
    "os.listdir": "it lists a folder",
    "os.scandir": "it lists a folder",
    "subprocess.Popen": "it starts a process",
    "os.system": "it starts a process",
    "os.posix_spawn": "it starts a process",
    "os.exec": "it starts a process",
    "os.fork": "it starts a process",
    "socket.connect": "it talks to a server",
    "socket.getaddrinfo": "it talks to a server",
    "socket.sendto": "it talks to a server",
    "sqlite3.connect": "it reads a database",
    "ctypes.dlopen": "it loads a library of machine code",
    "_thread.start_new_thread": "it starts a thread",
}


def _watch_events() -> None:
    global _watching
    if not _watching:
        _watching = True
        sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" and event not in _UNKNOWABLE:
        return
    if getattr(_within, "on", False):
        return
    _within.on = True
    codes: list[Code] = []
    try:
        codes = _asking()
        for code in codes:
            if event == "open":
                _opened(code, *args)
            else:
                code.doubts[_UNKNOWABLE[event]] = None
    except Exception as error:  # raised here, it would seem to be one of the policy's
        for code in codes:
            code.doubts[f"what it opens cannot be followed: {error}"] = None
    finally:
        _within.on = False


def _asking() -> list[Code]:
    """The policies one of whose functions is at work; none if it is the import of a module that is. Code that no file
    holds (of `exec`, say) may be that of any policy of the run."""
    frame: Any = sys._getframe(2)
    made_up = ours = False
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_code is _load.__code__ or (
            name == "<frozen importlib._bootstrap>" and frame.f_code.co_name == "_find_and_load"
        ):
            return []
        loading = getattr(_loading, "code", None)
        if loading is not None and os.path.isabs(name) and not is_library(name):
            return [loading]
        if name in _by_file:
            return list(_by_file[name])
        # What called ServeTwin (a cell, `python -c`) may lie in no file either, and is no policy.
        ours = ours or name.startswith(_own_roots())
        made_up = made_up or not (ours or os.path.isabs(name) or name.startswith("<frozen "))
        frame = frame.f_back
    return list((_pinned.get() or {}).values()) if made_up else []


@lru_cache(maxsize=1)
def _own_roots() -> tuple[str, ...]:
    return tuple(f"{folder}/" for folder in own_folders().values())


def _opened(code: Code, path: Any, mode: Any, flags: Any) -> None:
    if isinstance(path, int):
        return
    given = os.fsdecode(path)
    name = os.path.abspath(given)
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if writes:
        if not flags & os.O_WRONLY or name in code.reads or given in code.reads:
            code.doubts[f"it keeps something in {Path(name).name}"] = None
        code.writes.add(name)
        return
    if name in code.writes:
        code.doubts[f"it keeps something in {Path(name).name}"] = None
        return
    if name in code.sources or (is_library(name) and name.endswith((".py", ".pyc"))):
        return
    if name.endswith(".pyc"):
        code.doubts[f"it loads {Path(name).name} by itself"] = None
    if os.path.exists(name) and not os.path.isfile(name):
        code.doubts[f"it reads {name}, which is no file"] = None
        return
    if name in (str(path) for path in code.declared.values()):
        return
    digest = file_digest(name)
    # What is named by its place in the current folder is another file in another folder.
    if code.reads.setdefault(given, digest) != digest:
        code.doubts[f"{Path(name).name}, which it reads, was changed while it ran"] = None
        code.reads[given] = digest


def settle(codes: list[Code], since: int) -> tuple[dict[str, str], list[str]]:
    """After a run: the undeclared files that *codes* read, modules that were imported meanwhile among them (those in
    `policy_imports.loaded` from place *since*), and the names of modules that are no longer as they were loaded."""
    reads: dict[str, str] = {}
    changed = []
    for code in codes:
        for source in policy_imports.loaded[since:]:
            known = code.sources.get(source.path)
            if known is None:
                code.reads.setdefault(source.path, source.digest)
            elif known.digest != source.digest:
                changed.append(source.file)
        for path, digest in code.others().items():
            reads[path] = digest
            if path_digest(Path(path)) != digest:
                code.doubts[f"{Path(path).name}, which it reads, was changed while it ran"] = None
        changed += [s.file for s in code.sources.values() if file_digest(s.path) != s.digest]
    for source in policy_imports.loaded[since:]:
        source.content = b""
    return reads, list(dict.fromkeys(changed))
