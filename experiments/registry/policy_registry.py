"""Finding a policy by what the user calls it, and checking its parameters.

A policy can be named four ways, tried in this order::

    neustream                   a file below servetwin.policies, or an entry point of the group "servetwin.policies"
                                (neustream-llm is neustream_llm.py)
    my_policy.py                a file anywhere that defines one policy
    my_policy.py:Greedy         a class in a file
    package.module:Greedy       a class in an importable module

So a new policy is one file, and nothing is edited elsewhere.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import sys
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from servetwin.core import BadInput, Policy
from servetwin.core.errors import PolicyFault, Stopped, brief
from servetwin.core.invariants.watchdog import longest, watched
from servetwin.core.isolation.answers import fault
from servetwin.core.isolation.code_inspection import by_its_own_word, named
from servetwin.core.isolation.integrity import comes_along, intact
from servetwin.core.llm import TokenPolicy
from servetwin.core.policy import PolicyBase
from servetwin.policies import diffusion, llm

from ..provenance import policy_code
from ..provenance.policy_imports import load_file
from . import policy_objects
from .catalog import suggest
from .policy_errors import policy_is_made
from .vllm_options import of_vllm

GROUP = "servetwin.policies"

#: What policies were called once, for whoever has an experiment of then.
RENAMED = {"pace": "slack-batch"}


@cache
def _ours() -> dict[str, str]:
    """The policies that come with ServeTwin: name -> module."""
    return {
        m.name.replace("_", "-"): f"{package.__name__}.{m.name}"
        for package in (diffusion, llm)
        for m in pkgutil.iter_modules(package.__path__)
        if not m.name.startswith("_")
    }


@cache
def policy_names() -> list[str]:
    """The policies that are known by name: ours, and those that installed packages offer."""
    return sorted({*_ours(), *offered(GROUP)})


@cache
def offered(group: str) -> dict[str, tuple[str, str]]:
    """What installed packages offer in the *group* of entry points: module and attribute, by name. Read once: the
    descriptions of all packages are looked through for it."""
    return {entry.name: (entry.module, entry.attr) for entry in importlib.metadata.entry_points(group=group)}


def find_policy(name: str) -> type[Policy | TokenPolicy]:
    """The policy class that *name* means, loaded anew if its code has changed. Raises `BadInput` if there is none."""
    found: type[Policy | TokenPolicy] = code_of(name).policy
    return found


def code_of(name: str) -> policy_code.Code:
    """The policy that *name* means, with the code that it was loaded from. Raises `BadInput` if there is none."""
    given = policy_objects.offered(name)
    if given is not None:
        return given
    place, _, attribute = name.partition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        return policy_code.code_of(
            "file", str(path), attribute, lambda: _policy_in(load_policy_file(path), attribute, place)
        )
    if attribute:
        return policy_code.code_of(
            "module", place, attribute, lambda: _policy_in(import_policy_module(place), attribute, place)
        )
    module, inner = _known(name)
    return policy_code.code_of("module", module, inner, lambda: _policy_in(import_policy_module(module), inner, name))


@cache
def _known(name: str) -> tuple[str, str]:
    """The module, and the name in it, of a policy that is known by name."""
    if name not in policy_names():
        if name in RENAMED:
            raise BadInput(f"the policy {name!r} has another name now", right=RENAMED[name])
        raise BadInput(f"unknown policy {name!r}", right=_right(name))
    return offered(GROUP).get(name) or (_ours()[name], "")


def _right(name: str) -> str:
    return f"{suggest(name, policy_names())}; or a file, my_policy.py; or package.module:Class"


def import_policy_module(module: str) -> ModuleType:
    """The module of that name, of a policy or a router. Raises `BadInput` if it cannot be imported."""
    if module.startswith("servetwin."):
        return importlib.import_module(module)
    longest()
    try:
        with intact(module), watched((), module):
            return importlib.import_module(module)
    except PolicyFault:
        raise
    except ModuleNotFoundError as error:
        right = "a module that Python finds (PYTHONPATH), or a file: my_policy.py:Class"
        raise BadInput(f"there is no module {error.name!r}", where=module, right=right) from None
    except BaseException as error:
        _unless_stopped(error)
        raise BadInput(f"the module cannot be imported: {brief(error)}", where=module) from error


def _unless_stopped(error: BaseException) -> None:
    """Raise *error* again if it is not the doing of the code that was being imported."""
    if isinstance(error, Stopped) or (isinstance(error, KeyboardInterrupt) and not by_its_own_word(error)):
        raise error


def load_policy_file(path: Path) -> ModuleType:
    """The module that the file *path* of a policy or a router defines. Raises `BadInput` if it cannot be loaded."""
    if not path.is_file():
        raise BadInput("there is no such policy file", where=str(path))
    longest()  # what is wrong with that is no fault of the file
    try:
        with intact(str(path)), watched((), str(path)):
            return load_file(path)
    except PolicyFault:
        raise
    except BaseException as error:
        _unless_stopped(error)
        raise BadInput(f"the file cannot be loaded: {brief(error)}", where=str(path)) from error


#: The two kinds of policies, and what is right where there is none.
KINDS = (Policy, TokenPolicy)
RIGHT = "one subclass of servetwin.core.Policy, or of servetwin.core.llm.TokenPolicy"


def _policy_in(module: ModuleType, attribute: str, where: str) -> type[Policy | TokenPolicy]:
    own = {
        n: c
        for n, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, Policy | TokenPolicy) and c not in KINDS and not n.startswith("_")
    }
    if attribute:
        if attribute not in own:
            right = suggest(attribute, own) if own else RIGHT
            raise BadInput(f"there is no policy {attribute!r} there", where=where, right=right)
        return own[attribute]
    here = [c for c in own.values() if c.__module__ == module.__name__]
    if len(here) != 1:
        found = f"{len(here)} policies there: {', '.join(c.__name__ for c in here)}" if here else "no policy there"
        right = f"{where}:{here[0].__name__}" if here else RIGHT
        raise BadInput(f"there are {found}" if here else f"there is {found}", where=where, right=right)
    return here[0]


def _parameters(policy: type[Any]) -> dict[str, tuple[Any, inspect.Parameter]]:
    """Name -> (type, parameter) of what the policy's constructor takes."""
    if policy.__init__ is object.__init__:
        return {}
    signature = inspect.signature(policy.__init__)
    try:
        hints = typing.get_type_hints(policy.__init__)
    except (NameError, AttributeError, TypeError):  # of names that are imported for a type checker only
        hints = {}
    plain = [p for p in list(signature.parameters.values())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: (hints.get(p.name, Any), p) for p in plain}


def defaults(policy: type[Any]) -> dict[str, Any]:
    """The policy's parameters that may be left out, with their values then."""
    given = {n: p.default for n, (_, p) in _parameters(policy).items() if p.default is not p.empty}
    return {name: value for name, value in given.items() if _plain(value)}


def _plain(value: object) -> bool:
    """Whether an experiment's file could say *value*. Other defaults (a dataclass' factories) are the class's own."""
    try:
        to_jsonable_python(value)
    except ValueError:
        return False
    return True


class WrongParameter(BadInput):
    """A parameter that a policy does not take, or not like that; *parameter* names it."""

    def __init__(self, parameter: str, what: str, right: str) -> None:
        self.parameter = parameter
        super().__init__(what, right=right)


def complete(policy: type[Any], params: Mapping[str, Any], what: str = "policy") -> dict[str, Any]:
    """*params* of *what* it is with the defaults filled in, in the order of the constructor; raises
    `WrongParameter`."""
    known = _parameters(policy)
    for name, value in params.items():
        if name not in known:
            option = of_vllm(name) if TokenPolicy in policy.__mro__ else None
            if option is not None:
                raise WrongParameter(name, *option)
            right = suggest(name, known) if known else "no parameters"
            raise WrongParameter(name, f"{what} {policy.__name__} takes no parameter {name!r}", right)
        _check_type(name, value, known[name][0])
    full = {**defaults(policy), **params}
    for name, (_, parameter) in known.items():
        if name not in full and parameter.default is parameter.empty:
            raise WrongParameter(name, f"{what} {policy.__name__} needs the parameter {name!r}", f"{name}: ...")
    return {name: full[name] for name in known if name in full}


def try_out(policy: type[Any], params: Mapping[str, Any]) -> None:
    """Make a policy of ours, so that it can say what is wrong with its parameters. Raises `WrongParameter`."""
    if not comes_along(policy):
        return
    try:
        policy(**params)
    except BadInput as error:
        name = error.what.split()[0]
        if name not in params or error.right is None:
            raise
        raise WrongParameter(name, error.what, error.right) from None


def _check_type(name: str, value: Any, hint: Any) -> None:
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValueError, TypeError):  # no JSON: dates, mappings that hold themselves
        raise WrongParameter(name, f"{value!r} does not fit parameter {name!r}", spell(hint)) from None


def spell(hint: Any) -> str:
    """A type as one would write it in a signature."""
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("NoneType", "None")


def make(name: str, params: Mapping[str, Any]) -> Policy | TokenPolicy:
    """A new policy object."""
    kind = find_policy(name)
    if comes_along(kind):
        return kind(**params)
    with policy_is_made(kind), intact(getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__):
        if inspect.isabstract(kind):
            at = f"{Path(_file_of(kind)).name}:{_line_of(kind)}"
            what = f"it leaves {', '.join(sorted(getattr(kind, '__abstractmethods__', ())))} abstract"
            raise PolicyFault(f"policy {kind.__name__} ({at}): {what}")
        policy = kind(**params)
        _check_said(policy)
        _check_methods(policy)
        return policy


def _check_said(policy: Policy | TokenPolicy) -> None:
    """Raise `PolicyFault` if *policy* says of itself what is no answer."""
    wanted: dict[str, tuple[tuple[type, ...], str]] = {
        "ahead": ((bool,), "True or False"),
        "pools": ((bool,), "True or False"),
    }
    if isinstance(policy, TokenPolicy):
        wanted["whole_prompts"] = wanted["chunks"] = (bool,), "True or False"
        wanted["tokens_a_step"] = (int, type(None)), "a number of tokens, an int from 1, or None"
    for name, (kinds, right) in wanted.items():
        value = getattr(policy, name)
        if type(value) not in kinds or (type(value) is int and value < 1):
            raise fault(policy, f"its {name} is {value!r}", right)


#: What a policy is asked, and with what.
ASKED = {
    "start": ("view",),
    "admit": ("task", "view", "now"),
    "decide": ("view", "now"),
    "ended": ("batch", "view", "now"),
    "removed": ("task", "view", "now"),
    "onward": ("task", "view", "now"),
}


def _check_methods(policy: Policy | TokenPolicy) -> None:
    """Raise `PolicyFault` if *policy* has no `decide`, or cannot be asked what policies are."""
    kind = type(policy)
    if "decide" not in vars(policy) and kind.decide in (Policy.decide, TokenPolicy.decide):
        own = [n for c in kind.__mro__ if c not in (*KINDS, PolicyBase, object) for n in vars(c) if n not in ASKED]
        near = next(iter(difflib.get_close_matches("decide", own, 1)), None)
        what = f"it has no decide, but {near}" if near is not None else "it has no decide"
        line = (_file_of(kind), _line_of(kind)) if near is None else None
        right = "def decide(self, view, now)"
        raise PolicyFault(f"{named(policy, line, near or 'decide')}: {what} (right would be: {right})")
    for name, given in ASKED.items():
        if name in ("ended", "onward") and isinstance(policy, TokenPolicy):
            continue  # which nobody asks
        try:
            takes = inspect.signature(getattr(policy, name), follow_wrapped=False)
        except (TypeError, ValueError) as error:
            if not callable(getattr(policy, name)):
                raise fault(policy, f"its {name} is no function", _head(name), name) from error
            continue  # not of Python, and found out when it is called
        try:
            takes.bind(*given)
        except TypeError:
            plain = [p.replace(annotation=p.empty) for p in takes.parameters.values()]
            theirs = f"(self{', ' * bool(plain)}{str(inspect.Signature(plain))[1:]}"
            raise fault(policy, f"its {name} takes {theirs}", _head(name), name) from None


def _head(name: str) -> str:
    return f"def {name}({', '.join(['self', *ASKED[name]])})"


def _file_of(kind: type) -> str:
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__


def _line_of(kind: type) -> int:
    try:
        return inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return 1


def same_policy(one: str, other: str) -> bool:
    """Whether two names mean the same policy: the same class, or classes of one name in files of the same content."""
    if one == other:
        return True
    try:
        a, b = find_policy(one), find_policy(other)
    except BadInput:
        return False
    if a is b:
        return True
    files = [getattr(sys.modules.get(policy.__module__), "__file__", None) for policy in (a, b)]
    if a.__qualname__ != b.__qualname__ or None in files:
        return False
    x, y = (Path(str(file)).read_bytes() for file in files)
    return x == y


def code_digest(name: str) -> str:
    """A hash of the code of the policy: the file that defines it if it comes with ServeTwin, else all that it imports
    of a user's, and the files that it declares."""
    return code_of(name).digest()


def file_of(name: str) -> Path | None:
    """The source file that defines the policy."""
    module = sys.modules.get(find_policy(name).__module__)
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


def files_of(name: str) -> dict[str, str]:
    """Hashes of the files that make up the policy of a user, by name, and of those that it has read, by path."""
    code = code_of(name)
    return {} if code.ours else {**code.files(), **code.others()}


def describe(name: str) -> tuple[str, dict[str, str]]:
    """The first line of the policy's documentation, and its parameters with type and default."""
    return describe_class(find_policy(name))


def describe_class(policy: type[Any]) -> tuple[str, dict[str, str]]:
    """Likewise, of a class."""
    text = inspect.getdoc(sys.modules[policy.__module__]) or inspect.getdoc(policy) or ""
    params = {}
    for parameter, (hint, p) in _parameters(policy).items():
        params[parameter] = spell(hint) + ("" if p.default is p.empty else f" = {p.default!r}")
    return (text.splitlines() or [""])[0], params
