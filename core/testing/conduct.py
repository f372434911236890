"""What the code of a policy does while it is asked, beside answering: clocks, randomness, files, shared state.

Two ways of looking, since each misses what the other sees. `Ear` hears every call that is made while the policy is
asked, however it came by the function, `loaded` those made while its module is loaded; `uses` reads the code, also
where no run comes by. `Shared` tells whether
anything that other objects of the class would meet has changed.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import datetime
import decimal
import dis
import functools
import gc
import io
import locale
import logging
import os
import random
import sys
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import PolicyFault
from ..isolation.code_inspection import files_of, own

#: What is told of a call, by the module of the function.
_MODULES = {
    "time": "reads the clock",
    "_thread": "starts a thread",
    "_socket": "opens a connection",
    "_posixsubprocess": "starts a process",
    "_signal": "sets a signal",
    "select": "waits for files or connections",
    "gc": "asks the garbage collector",
    "atexit": "leaves something to be done at the process's end",
}
#: Functions of those, and of `os`, that do nothing of the kind.
_HARMLESS = frozenset(["fspath", "allocate_lock", "get_ident", "getsignal", "isenabled", "RLock", "_count"])
_SYSTEM = frozenset(["posix", "nt"])
_BUILTINS = frozenset(["open", "print", "input", "breakpoint"])
_NOW = frozenset(["now", "utcnow", "today"])
#: Of `sys`: what says how the process has fared so far, or changes how it goes on.
_INTERPRETER = {
    **dict.fromkeys(("getrefcount", "getallocatedblocks", "_current_frames"), "asks the interpreter"),
    **dict.fromkeys(
        ("setrecursionlimit", "setswitchinterval", "settrace", "addaudithook", "set_int_max_str_digits"),
        "changes the interpreter",
    ),
}
#: What would end the process, and with it the check, as if nothing had been found.
_ENDS = frozenset(["_exit", "abort", "kill", "execv", "execve"])
#: What code may not do when it is loaded either, where it may read files.
_WRITES = frozenset(
    [
        *("write", "writelines", "truncate", "print", "input", "mkdir", "rmdir", "remove", "unlink", "rename"),
        *("replace", "symlink", "link", "chmod", "putenv", "unsetenv", "system", "fork", "urandom"),
    ]
)
#: Python functions that nothing in C tells of.
_CODES = {os.environ.__class__.__getitem__.__code__: "reads the environment"}


def _told(function: Any) -> str | None:
    """What a policy does that calls *function*, if that is what it must not."""
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or getattr(owner, "__name__", None)
    if module in _MODULES:
        return None if name in _HARMLESS else f"{_MODULES[module]} ({module.lstrip('_')}.{name})"
    if module == "sys" and name in _INTERPRETER:
        return f"{_INTERPRETER[name]} (sys.{name})"
    if module in _SYSTEM:
        if name in ("urandom", "getrandom"):
            return f"draws what cannot be drawn again (os.{name})"
        return None if name in _HARMLESS else f"asks the operating system (os.{name})"
    if module in ("builtins", "io", "_io") and name in _BUILTINS and (owner is builtins or owner in (io, None)):
        return f"does input or output ({name})"
    if module in ("io", "_io") and name in ("open", "open_code"):
        return f"does input or output ({name})"
    if isinstance(owner, io.IOBase) and not isinstance(owner, io.StringIO | io.BytesIO):
        return f"does input or output ({type(owner).__name__}.{name})"
    if isinstance(owner, type) and issubclass(owner, datetime.date) and name in _NOW:
        return f"reads the clock ({owner.__name__}.{name})"
    if owner is getattr(random, "_inst", ()):
        return f"draws from the generator that all of the process share (random.{name})"
    numpy = sys.modules.get("numpy.random.mtrand")
    if owner is not None and owner is getattr(numpy, "_rand", ()):
        return f"draws from the generator that all of the process share (numpy.random.{name})"
    return None


class Ear:
    """Hears the calls that the code of *policy* makes within `hear`. *found* is what it must not have done: (what,
    file, line). With *loading* it may read files, as code may that is being loaded."""

    def __init__(self, policy: object, *, loading: bool = False) -> None:
        self.files, self.loading = files_of(policy), loading
        self.found: tuple[str, str, int] | None = None
        self._known: dict[Any, str | None] = {}

    def hear(self, call: Callable[..., Any], *given: Any) -> Any:
        """What *call* gives. (Where a profiler listens already, only what the code says is looked at.)"""
        shared, taken = random.getstate(), sys.getprofile() is not None
        if not taken:
            sys.setprofile(self._event)
        try:
            return call(*given)
        finally:
            if not taken:
                sys.setprofile(None)
            if self.found is None and random.getstate() != shared:
                self.found = ("draws from the generator that all of the process share (random)", "", 0)

    def _event(self, frame: types.FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            told = _told(function)
        elif event == "call":
            told = _CODES.get(frame.f_code)
            if told is None and frame.f_code is _SEEDING and frame.f_locals.get("x", 0) is None:
                told = "draws from a generator without a seed (random.Random)"
        else:
            return
        if told is not None and self.loading and _reads_only(told):
            return
        if told is None or self.found is not None or frame.f_code.co_filename.startswith("<frozen importlib"):
            return
        at: types.FrameType | None = frame
        collectors = [getattr(callback, "__code__", None) for callback in gc.callbacks]
        while at is not None and at.f_code.co_filename not in self.files:
            if at.f_code.co_filename.startswith("<frozen importlib"):
                return  # a module is loaded when it is first wanted
            if at.f_code in collectors:
                return  # who listens to the garbage collector (Hypothesis does) is called wherever that sets in
            at = at.f_back
        if at is not None:
            self.found = told, at.f_code.co_filename, at.f_lineno
            if event == "c_call" and getattr(function, "__name__", "") in _ENDS:
                raise PolicyFault(f"it {told}")


_SEEDING = random.Random.__init__.__code__


def _reads_only(told: str) -> bool:
    """Whether what was *told* of a call is input, or a question to the operating system, that changes nothing."""
    what, _, name = told.rstrip(")").partition(" (")
    return what in ("does input or output", "asks the operating system") and name.split(".")[-1] not in _WRITES


def loaded(kind: type) -> tuple[str, str, int] | None:
    """(what, file, line) where the module of the class *kind* does, when it is loaded, what a policy must not: it is
    loaded once more, apart. It may read files. None where the module is no file of Python, and of scripts and tests,
    which do more than define policies."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not file.endswith(".py") or not _theirs(module.__name__):
        return None
    if module.__name__.rpartition(".")[2].startswith(("__main__", "test_", "conftest")):
        return None
    again = types.ModuleType(module.__name__)
    kept = ("__file__", "__package__", "__spec__", "__loader__", "__path__")
    again.__dict__.update({name: getattr(module, name) for name in kept if hasattr(module, name)})
    ear = Ear(object.__new__(kind), loading=True)
    with open(file, "rb") as source:
        code = compile(source.read(), file, "exec")
    with _of_no_use_to_anybody():
        before = dict(Shared.of_process())
        with contextlib.suppress(Exception):  # what may not be loaded twice is not looked at further
            ear.hear(exec, code, again.__dict__)
        changed = next((name for name, value in Shared.of_process() if before.get(name, value) != value), None)
    if ear.found is None and changed is not None:
        return f"changed {changed}, when it is loaded", file, 1
    return ear.found


@contextlib.contextmanager
def _of_no_use_to_anybody() -> Iterator[None]:
    """Within this, what all of the process go by is as nobody would set it: it shows who sets it again as it was."""
    numpy, root, path = sys.modules.get("numpy"), logging.getLogger(), [*sys.path]
    level = root.level
    with contextlib.ExitStack() as stack:
        if numpy is not None:
            stack.enter_context(numpy.errstate(all="print"))
            stack.enter_context(numpy.printoptions(precision=13))
        stack.enter_context(decimal.localcontext(prec=29))
        stack.enter_context(warnings.catch_warnings())
        warnings.filters.insert(0, ("ignore", None, FutureWarning, None, 31_415))  # type: ignore[attr-defined]
        root.level = 31
        try:
            yield
        finally:
            root.level, sys.path[:] = level, path


# -- what the code says -----------------------------------------------------------------------------------------


def functions(kind: type) -> Iterator[types.FunctionType]:
    """The functions that the class *kind* could run, as far as its code names them: its methods, and those of modules
    that are no part of Python or of ServeTwin."""
    seen: set[int] = set()
    waiting: list[Any] = [thing for each in _own_kinds(kind) for thing in vars(each).values()]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, staticmethod | classmethod):
            thing = thing.__func__
        if isinstance(thing, property):
            waiting += [part for part in (thing.fget, thing.fset) if part is not None]
        elif isinstance(thing, functools.cached_property):
            waiting.append(thing.func)
        elif isinstance(thing, type):
            if id(thing) not in seen and _theirs(thing.__module__):
                seen.add(id(thing))
                waiting += vars(thing).values()
        elif hasattr(thing, "__wrapped__") and not isinstance(thing, types.FunctionType):
            waiting.append(thing.__wrapped__)
        elif isinstance(thing, types.FunctionType) and id(thing) not in seen and _theirs(thing.__module__):
            seen.add(id(thing))
            yield thing
            if hasattr(thing, "__wrapped__"):
                waiting.append(thing.__wrapped__)
            for cell in thing.__closure__ or ():
                try:
                    waiting.append(cell.cell_contents)
                except ValueError:
                    continue
            names = {name for code in _codes(thing.__code__) for name in code.co_names}
            for name in names:
                value = thing.__globals__.get(name)
                if isinstance(value, types.ModuleType) and _theirs(value.__name__):
                    waiting += [getattr(value, n) for n in names if hasattr(value, n)]
                else:
                    waiting.append(value)


def _own_kinds(kind: type) -> list[type]:
    return [each for each in kind.__mro__[:-1] if not each.__module__.startswith("servetwin.core.")]


def _theirs(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return not (module or "").startswith("servetwin.core") and top not in sys.stdlib_module_names


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def uses(kind: type) -> tuple[str, str, int] | None:
    """(what, file, line) where the code of the class *kind* reads a clock, draws what all of the process share, or
    sets an attribute of a module."""
    for function in functions(kind):
        for code in _codes(function.__code__):
            for value, line in _mentioned(code, function.__globals__):
                told = _told(value) if callable(value) and not isinstance(value, type) else None
                if value in _DRAWS:
                    told = f"draws what cannot be drawn again ({value.__module__}.{value.__qualname__})"
                if isinstance(value, _Stored):
                    told = f"keeps state in a module ({value.name})"
                if told is not None and told.startswith(("reads the clock", "draws", "keeps state")):
                    return told, code.co_filename, line
    return None


def _unrepeatable() -> list[Any]:
    import secrets
    import uuid

    return [secrets.randbelow, secrets.token_bytes, secrets.token_hex, secrets.choice, uuid.uuid1, uuid.uuid4]


class _Draws:
    """Whether a function draws what cannot be drawn again; looked up when it is first asked."""

    def __contains__(self, value: object) -> bool:
        return any(value is each for each in _lazily())


_lazily = functools.cache(_unrepeatable)
_DRAWS = _Draws()


@dataclass(frozen=True)
class _Stored:
    """An attribute of a module that code sets, or deletes."""

    name: str


def _mentioned(code: types.CodeType, names: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """(value, line) of the functions that *code* names, by way of modules and classes, where *names* are global."""
    now: Any = None
    line, local = code.co_firstlineno, dict[str, Any]()
    for step in dis.get_instructions(code):
        if step.starts_line and step.positions is not None:
            line = step.positions.lineno or line
        name = step.argval
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            now = names.get(name, getattr(builtins, str(name), None))
        elif step.opname in ("LOAD_FAST", "LOAD_DEREF"):
            now = local.get(name)
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            if isinstance(now, types.ModuleType):
                yield _Stored(f"{now.__name__}.{name}"), line
            now = None
            continue
        elif step.opname == "IMPORT_NAME":
            now = sys.modules.get(name)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            here = isinstance(now, types.ModuleType | type)
            found = getattr(now, name, None) if here else None
            if step.opname == "IMPORT_FROM":
                yield found, line
                local["from " + str(name)] = found
                continue
            now = found
        elif step.opname in ("STORE_FAST", "STORE_DEREF"):
            local[name] = local.pop("from " + str(name), now if isinstance(now, types.ModuleType) else None)
            now = None
            continue
        elif step.opname in ("PUSH_NULL", "CACHE", "PRECALL", "EXTENDED_ARG", "RESUME"):
            continue
        else:
            now = None
            continue
        if callable(now):
            yield now, line


# -- what objects of a class share ------------------------------------------------------------------------------


class Shared:
    """What all objects of the class *kind* share: attributes of classes, globals that its code names, defaults of
    parameters, closures; and what all of the process share. `changed` says what of it is not as it was."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.before = dict(self._say())

    def changed(self) -> str | None:
        now = dict(self._say())
        for name in {**self.before, **now}:
            if self.before.get(name) != now.get(name):
                return name
        return None

    @staticmethod
    def of_process() -> Iterator[tuple[str, Any]]:
        """What code anywhere in the process goes by, numpy's where it is loaded."""
        whose = "which all of the process share"
        yield f"the filters of warnings, {whose}", repr(warnings.filters)
        yield f"where modules are found (sys.path), {whose}", list(sys.path)
        yield f"the context of decimal, {whose}", repr(decimal.getcontext())
        yield f"the locale, {whose}", locale.setlocale(locale.LC_ALL)
        root = logging.getLogger()
        yield f"the root logger, {whose}", (root.level, list(root.handlers), logging.root.manager.disable)
        yield f"what is done at the process's end, {whose}", _pending_finalizers()
        loaded: dict[str, object] = {**sys.modules}
        yield f"the loaded modules, {whose}", {n for n, m in loaded.items() if not isinstance(m, types.ModuleType)}
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            yield f"how numpy takes errors (numpy.seterr), {whose}", numpy.geterr()
            yield f"how numpy prints, {whose}", repr(numpy.get_printoptions())
        held = contextvars.copy_context().items()
        yield f"variables of the context, {whose}", {v.name: x if type(x) in _ATOMS else id(x) for v, x in held}

    def _say(self) -> Iterator[tuple[str, Any]]:
        yield from self.of_process()
        for name, value in self._of_class():
            who = "of the process" if name.startswith("the module ") else "its objects"
            yield f"{name}, which all {who} share", value

    def _of_class(self) -> Iterator[tuple[str, Any]]:
        for each in _own_kinds(self.kind):
            for name, value in list(vars(each).items()):
                if name not in _ASIDE and not isinstance(value, types.FunctionType | type):
                    yield f"{each.__name__}.{name}", said(value)
        for function in functions(self.kind):
            label = function.__qualname__
            if function.__defaults__ or function.__kwdefaults__:
                given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
                yield f"a default of a parameter of {label}", said(given)
            if function.__dict__:
                yield f"an attribute of {label}", said(function.__dict__)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
                try:
                    yield f"{name}, outside of {label}", said(cell.cell_contents)
                except ValueError:
                    continue
            names = {name for code in _codes(function.__code__) for name in code.co_names}
            for name in sorted(names & function.__globals__.keys()):
                value = function.__globals__[name]
                if isinstance(value, types.ModuleType) and _theirs(value.__name__):
                    yield from ((f"{value.__name__}.{n}", said(getattr(value, n, None))) for n in sorted(names))
                elif isinstance(value, types.ModuleType):
                    yield f"the module {value.__name__}", _attributes(value)
                else:
                    yield f"the global {name}", said(value)


def _attributes(module: types.ModuleType) -> dict[str, int]:
    """Which functions and classes *module* has, and what else of it that is no module."""
    held = {name: value for name, value in vars(module).items() if not isinstance(value, types.ModuleType)}
    return {name: id(value) if callable(value) else 0 for name, value in held.items() if not name.startswith("__")}


def _pending_finalizers() -> int:
    """How many calls wait for an object's end, or that of the process, of those that Python knows by number."""
    return len(getattr(weakref.finalize, "_registry", ()))


_ATOMS = (type(None), bool, int, float, str, bytes)
#: How objects are told that do not say it themselves.
_PLAIN: object = object.__reduce_ex__
_ASIDE = frozenset(
    ["__dict__", "__weakref__", "__doc__", "__slotnames__", "__annotations__", "__abstractmethods__", "_abc_impl"]
)
#: Parts of a value that are looked at, at most.
_PIECES = 200_000


def said(value: object) -> Any:
    """What *value* holds now, as something that can be compared later."""
    return _Saying().of(value)


class _Saying:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.kept: list[object] = []

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bytes | int | float | complex):
            return type(value).__name__, repr(value)
        if id(value) in self.seen or len(self.seen) > _PIECES:
            return "seen", self.seen.get(id(value))
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if isinstance(value, list | tuple | deque):
            return type(value).__name__, [self.of(each) for each in value]
        if isinstance(value, dict):
            return type(value).__name__, [(self.of(k), self.of(v)) for k, v in list(value.items())]
        if isinstance(value, set | frozenset):
            return type(value).__name__, sorted(repr(self.of(each)) for each in value)
        if isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            return "generator", None if frame is None else (frame.f_lasti, self.of(dict(frame.f_locals)))
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type):
            return "at", id(value)
        if type(value).__module__.startswith("servetwin.core"):
            return "of ServeTwin", type(value).__name__  # which sees to that by itself
        return self._within(value)

    def _within(self, value: Any) -> Any:
        if isinstance(value, random.SystemRandom):
            return "at", id(value)  # it has no state; who draws from it is heard
        if isinstance(value, random.Random):
            return "Random", value.getstate()
        held = getattr(value, "__dict__", None)
        slots = [n for k in type(value).__mro__ for n in getattr(k, "__slots__", ()) if isinstance(n, str)]
        if isinstance(held, dict) or slots:
            more = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            inside = self.of({**(held if isinstance(held, dict) else {}), **more})
            if getattr(type(value), "__reduce_ex__", None) is _PLAIN:
                return type(value).__qualname__, inside
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = value.__reduce_ex__(4)
        except Exception:  # locks, files, caches: what cannot be told is taken for the same
            return "at", id(value)
        if isinstance(made, str):
            return "named", made
        return type(value).__qualname__, [self.of(_listed(part)) for part in made[1:]]


def _listed(part: Any) -> Any:
    """*part* of what `__reduce_ex__` gave; iterators of items as lists."""
    return list(part) if isinstance(part, Iterable) and not isinstance(part, str | bytes | dict) else part


def kind_of(policy: object) -> type:
    """The class of *policy*, also where somebody watches it."""
    return type(own(policy))
