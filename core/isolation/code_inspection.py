"""Where a policy stands: its name, its file and the line that is at fault, for messages of one line."""

from __future__ import annotations

import ast
import dis
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, TypeVar

Kind = TypeVar("Kind")


#: Classes of what stands in for a policy, and passes all on to its *inner*.
WATCHERS: set[type] = set()


def watcher(kind: type[Kind]) -> type[Kind]:
    """A decorator: objects of this class stand in for a policy."""
    WATCHERS.add(kind)
    return kind


_HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def own(policy: object) -> object:
    """*policy* itself, also where somebody watches it (`servetwin.core.invariants.checker`)."""
    while type(policy) in WATCHERS:
        policy = policy.inner  # type: ignore[attr-defined]
    return policy


def files_of(policy: object) -> set[str]:
    """The files that the classes of *policy* are defined in, without those of the interface itself."""
    found = set()
    for kind in type(own(policy)).__mro__[:-1]:
        module = sys.modules.get(kind.__module__)
        name = _file(kind, module)
        if name is not None and not os.path.abspath(name).startswith(_HERE):
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
        if code is not None and not os.path.abspath(code.co_filename).startswith(_HERE):
            line = code.co_filename, code.co_firstlineno
        else:
            line = next(((name, 1) for name in sorted(files_of(inner))), None)
    at = f" ({os.path.basename(line[0])}:{line[1]})" if line is not None else ""
    return f"{getattr(type(inner), 'CALLED', 'policy')} {type(inner).__name__}{at}"


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
    ``x.name = ...`` before ``x.name[key] = ...``, and that before a call that is handed the name as a text."""
    wanted = set(names)
    held: tuple[str, int] | None = None
    spoken: tuple[str, int] | None = None
    for code in _codes(policy):
        line = code.co_firstlineno
        if held is None and wanted & HOLDERS:
            held = _writes_to_holders(code, wanted & HOLDERS)
        for step in dis.get_instructions(code):
            if step.starts_line:
                line = int(step.positions.lineno or line) if step.positions else line
            if step.opname in ("STORE_ATTR", "DELETE_ATTR") and step.argval in wanted:
                return code.co_filename, line
            if step.opname == "LOAD_CONST" and spoken is None:
                said = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                if any(isinstance(word, str) and word in wanted for word in said):
                    spoken = code.co_filename, line
    return held or spoken


#: Attributes of tasks and requests that hold others, and the methods that change what holds others.
HOLDERS = frozenset({"work", "tokens", "tasks", "waiting_for", "waiting", "running", "backlog"})
_CHANGES = frozenset(
    {"update", "pop", "popitem", "popleft", "clear", "setdefault", "append", "extend", "insert", "remove", "sort"}
)


def _writes_to_holders(code: CodeType, names: frozenset[str] | set[str]) -> tuple[str, int] | None:
    """The first line of *code* that writes an item of an attribute of one of *names*, also by a local name for it."""
    line, aliases, loaded, touched = code.co_firstlineno, set[str](), False, False
    for step in dis.get_instructions(code):
        if step.starts_line:
            line = int(step.positions.lineno or line) if step.positions else line
            touched = False
        if loaded and step.opname == "STORE_FAST":
            aliases.add(step.argval)
        loaded = step.opname == "LOAD_ATTR" and step.argval in names
        touched = touched or loaded or (step.opname.startswith("LOAD_FAST") and step.argval in aliases)
        writes = step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR")
        changes = step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in _CHANGES
        if touched and (writes or changes):
            return code.co_filename, line
    return None


def writes_in(file: str, name: str) -> int | None:
    """The first line of *file* that writes an attribute of this *name*, or else says it, as far as its text tells."""
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return None
    said: list[int] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name and not isinstance(node.ctx, ast.Load):
            return node.lineno
        if isinstance(node, ast.Constant) and node.value == name:
            said.append(node.lineno)
    return said[0] if said else None


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


#: Words by which the interpreter shows what is behind everything.
INTERPRETER = frozenset(
    {
        "_getframe",
        "_current_frames",
        "currentframe",
        "f_back",
        "f_locals",
        "tb_frame",
        "gi_frame",
        "cr_frame",
        "get_objects",
        "get_referrers",
        "get_referents",
        "ctypes",
    }
)


def says(policy: object, words: frozenset[str]) -> tuple[str, tuple[str, int]] | None:
    """One of *words* that *policy*'s code uses, and the (file, line) where it first does."""
    for code in _codes(policy):
        found = words & {*code.co_names}
        if found:
            line = code.co_firstlineno
            for step in dis.get_instructions(code):
                if step.starts_line and step.positions is not None:
                    line = step.positions.lineno or line
                if step.argval in found and step.opname != "LOAD_CONST":
                    return str(step.argval), (code.co_filename, line)
    return None
