"""Where a policy stands: its name, its file and the line that is at fault, for messages of one line."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any


def own(policy: object) -> object:
    """*policy* itself, also where somebody watches it (`servetwin.core.laws`)."""
    while getattr(type(policy), "watches", False):
        policy = policy.inner  # type: ignore[attr-defined]
    return policy


def files_of(policy: object) -> set[str]:
    """The files that the classes of *policy* are defined in, without those of the seam itself."""
    found = set()
    for kind in type(own(policy)).__mro__[:-1]:
        module = sys.modules.get(kind.__module__)
        name = _file(kind, module)
        if name is not None and not kind.__module__.startswith("servetwin.core."):
            found.add(name)
    return found


def _file(kind: type, module: ModuleType | None) -> str | None:
    for thing in vars(kind).values():
        code = getattr(thing, "__code__", None)
        if isinstance(code, CodeType) and thing.__module__ == kind.__module__:
            return code.co_filename
    return getattr(module, "__file__", None)


def named(policy: object, line: tuple[str, int] | None = None, method: str = "decide") -> str:
    """``policy Name (file.py:12)``: by *line* (file and number) where it is known, else where *method* begins."""
    inner = own(policy)
    if line is None:
        function = inspect.unwrap(getattr(type(inner), method, None) or (lambda: None))
        code = getattr(function, "__code__", None)
        if code is not None and not function.__module__.startswith("servetwin.core."):
            line = code.co_filename, code.co_firstlineno
        else:
            line = next(((name, 1) for name in sorted(files_of(inner))), None)
    at = f" ({os.path.basename(line[0])}:{line[1]})" if line is not None else ""
    return f"policy {type(inner).__name__}{at}"


def raised_at(policies: Iterable[object], error: BaseException) -> tuple[object, str, int, str] | None:
    """(policy, file, line, function) of the innermost line of one of *policies* that *error* went through."""
    owners = {name: policy for policy in policies for name in files_of(policy)}
    found = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename in owners:
            found = owners[code.co_filename], code.co_filename, trace.tb_lineno, code.co_name
        trace = trace.tb_next
    return found


def by_its_own_word(error: BaseException) -> bool:
    """Whether *error* was raised by a statement, in the innermost frame that it went through, and did not come from
    outside as what a signal raises does."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, at = trace.tb_frame.f_code, trace.tb_lasti
    operation = dis.opname[code.co_code[at]] if 0 <= at < len(code.co_code) else ""
    return operation.startswith("RAISE")


def writes(policy: object, names: Iterable[str]) -> tuple[str, int] | None:
    """The first (file, line) of *policy*'s code that writes an attribute of one of *names*, as far as the code tells:
    ``x.name = ...`` before a call that is handed the name as a text."""
    wanted = set(names)
    spoken: tuple[str, int] | None = None
    for code in _codes(policy):
        line = code.co_firstlineno
        for step in dis.get_instructions(code):
            if step.starts_line:
                line = int(step.positions.lineno or line) if step.positions else line
            if step.opname in ("STORE_ATTR", "DELETE_ATTR") and step.argval in wanted:
                return code.co_filename, line
            if step.opname == "LOAD_CONST" and spoken is None:
                said = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                if any(isinstance(word, str) and word in wanted for word in said):
                    spoken = code.co_filename, line
    return spoken


def _codes(policy: object) -> Iterator[CodeType]:
    """All code in the modules of *policy*'s classes, innermost class first."""
    seen: set[CodeType] = set()
    inner = own(policy)
    for kind in type(inner).__mro__[:-1]:
        if kind.__module__.startswith("servetwin.core."):
            continue
        module = sys.modules.get(kind.__module__)
        roots: list[Any] = [*vars(kind).values()]
        if module is not None:
            roots += [
                thing for thing in vars(module).values() if getattr(thing, "__module__", None) == kind.__module__
            ]
        for root in roots:
            yield from _below(root, seen)


def _below(thing: object, seen: set[CodeType]) -> Iterator[CodeType]:
    if isinstance(thing, staticmethod | classmethod):
        thing = thing.__func__
    if isinstance(thing, property):
        for part in (thing.fget, thing.fset):
            if part is not None:
                yield from _below(part, seen)
    elif isinstance(thing, FunctionType):
        yield from _below(inspect.unwrap(thing).__code__, seen)
    elif isinstance(thing, type):
        for part in vars(thing).values():
            if not isinstance(part, type):
                yield from _below(part, seen)
    elif isinstance(thing, CodeType) and thing not in seen:
        seen.add(thing)
        yield thing
        for constant in thing.co_consts:
            yield from _below(constant, seen)


#: What code that never says one of these words cannot do: write an attribute of a name that it does not say, or reach
#: what it is not shown.
WORDS = frozenset(
    [
        "__builtins__",
        "__class__",
        "__closure__",
        "__code__",
        "__delattr__",
        "__delete__",
        "__dict__",
        "__func__",
        "__get__",
        "__getattribute__",
        "__getstate__",
        "__globals__",
        "__import__",
        "__reduce__",
        "__reduce_ex__",
        "__self__",
        "__set__",
        "__setattr__",
        "__setstate__",
        "__subclasses__",
        "__wrapped__",
        "_getframe",
        "_settle",
        "_ticks",
        "builtins",
        "cell_contents",
        "compile",
        "copyreg",
        "cr_frame",
        "ctypes",
        "currentframe",
        "delattr",
        "eval",
        "exec",
        "f_back",
        "f_globals",
        "f_locals",
        "flight",
        "gc",
        "getattr",
        "gi_frame",
        "globals",
        "import_module",
        "importlib",
        "inspect",
        "locals",
        "marshal",
        "methodcaller",
        "mock",
        "operator",
        "pickle",
        "request",
        "setattr",
        "setprofile",
        "settrace",
        "stack",
        "tb_frame",
        "types",
        "unittest",
        "vars",
        "worker",
    ]
)


def innocent(policy: object, names: frozenset[str]) -> bool:
    """Whether the code of *policy* is certain never to write attributes of these *names*, nor to reach what it is not
    shown: as far as its modules tell, with all that they import outside of installed packages. What cannot be told
    counts as not certain."""
    inner = own(policy)
    held = list(_held(inner))
    if any(callable(value) for value in held):
        return False
    return all(_innocent(kind, names) for kind in {type(inner), *map(type, held)})


def _held(thing: object) -> Iterator[object]:
    """What the attributes of *thing* hold. By what the garbage collector sees: to ask for a ``__dict__`` that nobody
    has asked for yet would slow each of them down for good."""
    for value in gc.get_referents(thing):
        if type(value) is dict and all(isinstance(name, str) for name in value):
            yield from value.values()  # somebody has asked for it
        if value is not type(thing):
            yield value


@functools.lru_cache(maxsize=256)
def _innocent(kind: type, names: frozenset[str]) -> bool:
    seen: set[str] = set()
    todo = [each.__module__ for each in kind.__mro__[:-1]]
    while todo:
        name = todo.pop()
        if name in seen or _installed(name):
            continue
        seen.add(name)
        module = sys.modules.get(name)
        source = getattr(module, "__file__", None)
        if module is None or source is None:
            return False
        try:
            with open(source, "rb") as file:
                code = compile(file.read(), source, "exec")
        except (OSError, SyntaxError, ValueError):
            return False
        for part in _below(code, set()):
            if not _says_nothing(part, names):
                return False
        todo += [
            thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None) or name
            for thing in vars(module).values()
            if isinstance(thing, ModuleType | FunctionType | type)
        ]
    return True


def _installed(module: str) -> bool:
    """Whether *module* is of Python, of this package's seam or of an installed package: none that a user writes for a
    policy."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or module.startswith("servetwin.core."):
        return True
    source = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in source.split(os.sep)


def _says_nothing(code: CodeType, names: frozenset[str]) -> bool:
    if not WORDS.isdisjoint(code.co_names):
        return False
    if "sys" in code.co_names and "modules" in code.co_names:
        return False
    if "__init__" in code.co_names:  # to define one is no call of it
        steps = dis.get_instructions(code)
        if any(
            step.argval == "__init__" and step.opname != "STORE_NAME" for step in steps if step.opname != "LOAD_CONST"
        ):
            return False
    raw, extended = code.co_code, 0
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | extended
        if operation in _WRITES and code.co_names[argument] in names:
            return False
        if (
            operation == _IMPORT
            and not _installed(code.co_names[argument])
            and code.co_names[argument] not in sys.modules
        ):
            return False
        extended = argument << 8 if operation == dis.EXTENDED_ARG else 0
    return True


_WRITES = frozenset(dis.opmap[name] for name in ("STORE_ATTR", "DELETE_ATTR"))
_IMPORT = dis.opmap["IMPORT_NAME"]
