"""What ``servetwin policies NAME`` shows of a policy: what it does, its parameters with type, default and meaning.

The meaning of a parameter is the text of its type, ``max_batch: Annotated[int, "requests in a batch, at most"]``, or
else the sentences of the docstring (of the class or its constructor) that name it ``*max_batch*``.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import typing
from dataclasses import dataclass
from typing import Any

from servetwin.core.llm import TokenPolicy

from . import policy_registry

#: What a policy may say of itself, and what that means.
SAYS = {
    "ahead": "it is asked also while a batch runs",
    "pools": "it can serve a pool of threads",
    "starves": "a request may wait for as long as others keep coming",
    "whole_prompts": "it never cuts a prompt",
    "chunks": "it takes prompts in chunks",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a policy: its *name*, *type*, *default* as it is written (None: it must be given), *meaning*;
    *hint* is its type as Python has it."""

    name: str
    type: str
    default: str | None
    meaning: str
    hint: Any = Any


def parameters_of(kind: type) -> list[Parameter]:
    """The parameters that a policy's constructor takes, in its order."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return []
    try:
        hints = typing.get_type_hints(kind.__init__, include_extras=True)  # type: ignore[misc]
    except (NameError, AttributeError, TypeError):  # of names that are imported for a type checker only
        hints = {}
    found = []
    for p in list(inspect.signature(kind.__init__).parameters.values())[1:]:  # type: ignore[misc]
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        hint = hints.get(p.name, Any)
        said = [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)]
        plain = typing.get_args(hint)[0] if said else hint
        meaning = " ".join(said) or _meaning(kind, p.name)
        default = None if p.default is p.empty else repr(p.default)
        found.append(Parameter(p.name, policy_registry.spell(plain), default, meaning, plain))
    return found


def _meaning(kind: type, name: str) -> str:
    """The sentences of the docstrings of *kind* that name a parameter."""
    texts = [inspect.cleandoc(text) for text in (kind.__doc__, getattr(kind.__init__, "__doc__", None)) if text]  # type: ignore[misc]
    sentences = [
        sentence
        for text in texts
        for sentence in re.split(r"(?<=[.;])\s+(?=[*A-Z])|\n\s*\n", " ".join(text.split()) if text else "")
    ]
    return " ".join(sentence.strip().rstrip(";") for sentence in sentences if f"*{name}*" in sentence)


def page(name: str) -> list[str]:
    """Lines about the policy that *name* means. Raises `BadInput` if there is none."""
    kind: Any = policy_registry.find_policy(name)
    module = sys.modules.get(kind.__module__)
    text = inspect.getdoc(module) if module is not None else None
    own = inspect.cleandoc(kind.__doc__) if kind.__doc__ else ""
    for_what = "language models" if issubclass(kind, TokenPolicy) else "workers"
    lines = [f"{name}: a policy for {for_what} ({kind.__module__}:{kind.__qualname__})"]
    lines += ["", *(text or own or "(it has no docstring)").splitlines()]
    if text and own:
        lines += ["", *own.splitlines()]
    told = parameters_of(kind)
    lines += ["", "parameters (--set policy.params.NAME=VALUE):" if told else "no parameters"]
    for parameter in told:
        value = f" = {parameter.default}" if parameter.default is not None else ", to be given"
        lines.append(f"  {parameter.name}: {parameter.type}{value}")
        lines += textwrap.wrap(parameter.meaning, 100, initial_indent="      ", subsequent_indent="      ")
    said = [f"  {word}: {means}" for word, means in SAYS.items() if getattr(kind, word, False) is True]
    if said:
        lines += ["", "it says of itself:", *said]
    return lines
