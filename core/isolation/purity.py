"""Whether the code of a policy is certain to do nothing but read: then nobody needs to keep books of what it reads.

A denial goes by names: what code never says, it cannot write. That holds only as far as it cannot say a name in some
other way, so it may use nothing but modules of which that is known (`HARMLESS`); whoever uses others, or words that
lead further (`WORDS`), is not accused of anything: books are kept, which costs time.
"""

from __future__ import annotations

import ast
import dis
import functools
import gc
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .code_inspection import own
from .integrity import comes_along

#: Modules through which nothing is written by a name that a policy's code does not say, nor reached what it is not
#: shown: as long as what lies behind them, private names and other modules, is not named.
HARMLESS = frozenset((
    "__future__", "_abc", "_bisect", "_collections", "_collections_abc", "_decimal", "_functools", "_heapq",
    "_operator", "_random", "abc", "array", "bisect", "builtins", "collections", "collections.abc", "dataclasses",
    "decimal", "enum", "fractions", "functools", "heapq", "itertools", "math", "numbers", "numpy", "numpy.linalg",
    "numpy.random", "numpy.typing", "random", "statistics", "sys", "time", "typing", "servetwin", "servetwin.core",
    "servetwin.core.arithmetic", "servetwin.core.errors", "servetwin.core.parameters", "servetwin.core.pipeline",
    "servetwin.core.request", "servetwin.core.policy", "servetwin.core.slo", "servetwin.core.llm",
    "servetwin.core.llm.limits", "servetwin.core.llm.orders", "servetwin.core.llm.policy",
    "servetwin.core.llm.request", "servetwin.core.llm.slo",
))  # fmt: skip

#: What is harmless of modules that are not otherwise.
ONLY = {"sys": frozenset(["float_info", "intern", "maxsize", "version_info"])}

#: What is not, of modules that are otherwise.
NOT = {"numpy": frozenset(["load"]), "dataclasses": frozenset(["make_dataclass"]), "enum": frozenset(["global_enum"])}

#: What code that never says one of these words cannot do: write an attribute of a name that it does not say, or reach
#: what it is not shown.
WORDS = frozenset(
    [
        "BatchWorker",
        "Books",
        "Client",
        "ClosedView",
        "DecodeSums",
        "Executor",
        "ForwardRef",
        "LLMWorker",
        "Pool",
        "Recorder",
        "RunFolder",
        "ServingLoop",
        "TokenBooks",
        "TokenEngine",
        "TokenEngineAhead",
        "TokenWorker",
        "Worker",
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
        "__loader__",
        "__reduce__",
        "__reduce_ex__",
        "__self__",
        "__set__",
        "__setattr__",
        "__setstate__",
        "__spec__",
        "__subclasses__",
        "__wrapped__",
        "_getframe",
        "_settle",
        "ticks",
        "breakpoint",
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
        "get_field",
        "get_type_hints",
        "getattr",
        "gi_frame",
        "globals",
        "import_module",
        "importlib",
        "input",
        "inspect",
        "locals",
        "marshal",
        "methodcaller",
        "mock",
        "open",
        "operator",
        "pickle",
        "request",
        "resolve_name",
        "setattr",
        "setprofile",
        "settrace",
        "stack",
        "tb_frame",
        "types",
        "unittest",
        "update_wrapper",
        "vars",
        "worker",
        "wraps",
    ]
)


def innocent(policy: object, names: frozenset[str]) -> bool:
    """Whether the code of *policy* is certain never to write attributes of these *names*, nor to reach what it is not
    shown: as far as its modules tell, with all that they import. What cannot be told counts as not certain."""
    inner = own(policy)
    held = list(_held(inner))
    if any(callable(value) for value in held):
        return False
    kinds = {type(inner), *map(type, held)}
    return all((_innocent_here if comes_along(kind) else _innocent)(kind, names) for kind in kinds)


def read_again() -> None:
    """A run begins: what classes of a user were found to be may have been changed since."""
    _innocent.cache_clear()


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
    return _Reading(names).of(kind)


@functools.lru_cache(maxsize=256)
def _innocent_here(kind: type, names: frozenset[str]) -> bool:
    """Likewise, of a class that comes along, and is as its file says whenever this is asked."""
    return _Reading(names).of(kind)


def _comes_along(name: str, source: str) -> bool:
    """Whether the module of that *name* and file is one of the policies that come along, which are read like those of
    a user where ServeTwin is an installed package."""
    package = sys.modules.get("servetwin.policies")
    return name.startswith("servetwin.policies") and any(
        source.startswith(folder + os.sep) for folder in getattr(package, "__path__", ())
    )


class Doubt(Exception):
    """It is not certain."""


class _Reading:
    """Reads all the code that a class could run, also what others have put into it since its file was read."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.seen: set[int] = set()
        self.kept: list[object] = []  # what *seen* knows by its id
        self.codes: set[CodeType] = set()

    def of(self, kind: type) -> bool:
        try:
            for each in {*inspect.getmro(kind)[:-1], *inspect.getmro(type(kind))[:-1]} - {type}:
                self.thing(each)
                self.module(sys.modules.get(each.__module__), each.__module__)
        except (Doubt, OSError, SyntaxError, ValueError, RecursionError):
            return False
        return True

    def module(self, module: ModuleType | None, name: str) -> None:
        """All the code of a module, and of those that it imports."""
        if name in HARMLESS:
            return
        if module is None or name.partition(".")[0] in sys.stdlib_module_names or name.startswith("servetwin.core."):
            raise Doubt
        if id(module) in self.seen:
            return
        self.remember(module)
        source = getattr(module, "__file__", None)
        if source is None or ("site-packages" in source.split(os.sep) and not _comes_along(name, source)):
            raise Doubt
        with open(source, "rb") as file:
            text = file.read()
        tree = ast.parse(text, source)
        imported, bound, said = _imports(tree, module.__name__, hasattr(module, "__path__"))
        for each, name in said:
            if name == "*" or name in _behind(each):
                raise Doubt
        self.code(compile(text, source, "exec"), frozenset().union(*map(_behind, bound)))
        for each in imported:
            if each in sys.modules:
                self.module(sys.modules[each], each)
            elif each not in HARMLESS:
                raise Doubt
        self.each([thing for name, thing in vars(module).items() if not name.startswith("__")])

    def thing(self, thing: Any) -> None:
        """Whatever a module, a class or a function has, as far as it can be run."""
        if isinstance(thing, str | int | float | None) or id(thing) in self.seen:
            return
        self.remember(thing)
        if isinstance(thing, ModuleType):
            self.module(thing, thing.__name__)
        elif isinstance(thing, FunctionType):
            module = thing.__globals__.get("__name__", "")
            if thing.__globals__ is not vars(sys.modules.get(module, sys)):
                raise Doubt  # it says that it is of another module
            if module in HARMLESS:
                return
            self.code(thing.__code__, _NOTHING)
            cells = [cell.cell_contents for cell in thing.__closure__ or () if not _empty(cell)]
            self.each([*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()])
            self.each(vars(thing).values())
            self.module(sys.modules.get(module), module)
        elif isinstance(thing, type):
            name = thing.__qualname__.partition(".")[0]
            if thing.__module__ not in HARMLESS or (
                thing.__flags__ & _HEAP  # made by code, which may say that it is of any module
                and getattr(sys.modules.get(thing.__module__), name, None) is not thing
            ):
                self.each(vars(thing).values())
                self.module(sys.modules.get(thing.__module__), thing.__module__)
        elif isinstance(thing, staticmethod | classmethod):
            self.thing(thing.__func__)
        elif isinstance(thing, property):
            self.each((thing.fget, thing.fset, thing.fdel))
        elif isinstance(thing, functools.partial):
            self.each((thing.func, *thing.args, *thing.keywords.values()))
        elif isinstance(thing, MethodType):
            self.each((thing.__func__, thing.__self__))
        elif isinstance(thing, BuiltinFunctionType):
            if thing.__name__ in WORDS:
                raise Doubt
        elif isinstance(thing, dict):
            self.each([*thing.values()])
        elif isinstance(thing, list | tuple | set | frozenset):
            self.each(thing)
        elif hasattr(thing, "__wrapped__"):
            self.thing(inspect.unwrap(thing))

    def each(self, things: Iterable[object]) -> None:
        for thing in list(things):
            self.thing(thing)

    def remember(self, thing: object) -> None:
        self.seen.add(id(thing))
        self.kept.append(thing)

    def code(self, code: CodeType, beyond: frozenset[str]) -> None:
        """Raise `Doubt` if *code*, or any within it, says what it should not."""
        if code in self.codes and not beyond:
            return
        self.codes.add(code)
        names = _names(code)
        if not WORDS.isdisjoint(names) or not beyond.isdisjoint(names) or not _says_nothing(code, self.names):
            raise Doubt
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.code(constant, beyond)


_NOTHING: frozenset[str] = frozenset()


#: Of the flags of a type: it was made at run time, and not by Python's own C code as it was compiled.
_HEAP = 1 << 9


def _empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _imports(tree: ast.AST, name: str, package: bool) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Of the source *tree* of the module *name*: the modules that are imported anywhere in it; those of them that it
    has as modules; and (module, name) of what it takes out of harmless ones."""
    imported: set[str] = set()
    bound: set[str] = set()
    said: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                above = {".".join(parts[: n + 1]) for n in range(len(parts))}
                imported |= above
                bound |= above
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                within = name.split(".")
                within = within[: len(within) - node.level + package]
                base = ".".join([*within, *([base] if base else [])])
            imported.add(base)
            for alias in node.names:
                below = f"{base}.{alias.name}"
                if below in sys.modules or below in HARMLESS:
                    imported.add(below)
                    bound.add(below)
                else:
                    said.add((base, alias.name))
    return imported, bound & HARMLESS, {(base, name) for base, name in said if base in HARMLESS}


@functools.lru_cache(maxsize=256)
def _behind(module: str) -> frozenset[str]:
    """The names in a harmless *module* behind which there is what is not."""
    if module not in sys.modules:
        return _NOTHING
    members = vars(sys.modules[module])
    if module in ONLY:
        return frozenset(members) - ONLY[module] - {"__name__", "__doc__"}
    return NOT.get(module, _NOTHING) | {
        name
        for name, thing in members.items()
        if (name.startswith("_") and not name.startswith("__"))
        or (isinstance(thing, ModuleType) and thing.__name__ not in HARMLESS)
        or (isinstance(thing, BuiltinFunctionType | FunctionType | type) and thing.__module__ == "operator")
    }


def _names(code: CodeType) -> set[str]:
    """The names that *code* says as attributes, globals and patterns."""
    names = set(code.co_names)
    if any(code.co_code[at] == _MATCH for at in range(0, len(code.co_code), 2)):
        names.update(*[c for c in code.co_consts if isinstance(c, tuple) and all(isinstance(n, str) for n in c)])
    return names


def _says_nothing(code: CodeType, names: frozenset[str]) -> bool:
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
        extended = argument << 8 if operation == dis.EXTENDED_ARG else 0
    return True


_WRITES = frozenset(dis.opmap[name] for name in ("STORE_ATTR", "DELETE_ATTR"))
_MATCH = dis.opmap["MATCH_CLASS"]
