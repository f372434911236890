"""The command line as a page: ``python -m servetwin.experiments.cli.cli_page > docs/reference/command-line.md``.

All of it is what ``servetwin COMMAND --help`` says: commands, arguments and options are read from `app.app`.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from .app import app

INTRODUCTION = """\
# Command line

What `servetwin COMMAND --help` says, on one page. It is made from the program
(`python -m servetwin.experiments.cli.cli_page`), and a test holds it to that. Words are explained in the
[glossary](../glossary.md).

Results go to standard output, progress and errors to standard error. An error is one line that begins with
`servetwin:`.

Colours and progress are shown on a terminal alone; `NO_COLOR` takes the colours off. Lines are folded at a terminal's
width, and nowhere else. `--json` prints results as [JSON](json-output.md).

| exit code | means |
|---|---|
| 0 | done |
| 1 | something else failed: a full disk, a worker process that was killed, an [invariant](invariants.md) that broke |
| 2 | wrong input: the line says what is wrong, where, and what would be right; nothing was written |
| 2 | a policy failed or did what it may not, in a run: the line names its file; records are whole up to there |
| 130, 143 | ended by Ctrl-C, or by SIGTERM; the records of a real run are whole up to there |
| 141 | what reads the output stopped reading (`servetwin ... \\| head`), without a word; later files are missing |

`SERVETWIN_CACHE` names the folder of the cache of `sweep` and `search`; left out, it is the user's cache folder.
`SERVETWIN_POLICY_SECONDS` says how many seconds one call of a policy of yours may take (60; 0: no limit).
"""

#: A parameter of a command, its type, and what typer is told of it.
Described = tuple[inspect.Parameter, Any, ArgumentInfo | OptionInfo]

#: How the value of an option is written.
_VALUES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _callbacks() -> list[tuple[str, Callable[..., Any]]]:
    registered = [(c.name, c.callback) for c in app.registered_commands if c.callback is not None]
    return [(name or callback.__name__.replace("_", "-"), callback) for name, callback in registered]


def commands() -> dict[str, list[str]]:
    """The commands, and what their options may be called."""
    found: dict[str, list[str]] = {}
    for name, callback in _callbacks():
        described = [(p, *_annotation(callback, p.name)) for p in inspect.signature(callback).parameters.values()]
        flags = [flag for d in described if isinstance(d[2], OptionInfo) for flag in _flag(*d)]
        found[name] = [single for flag in flags for single in flag.split("/")]
    return found


def as_markdown() -> str:
    """The page."""
    lines = [INTRODUCTION]
    lines += [
        f"- [`servetwin {name}`](#servetwin-{name}): {_first_line(callback)}" for name, callback in _callbacks()
    ]
    for name, callback in _callbacks():
        lines += ["", *_command(name, callback)]
    return "\n".join(lines) + "\n"


def _first_line(callback: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(callback) or "").split("\n\n")[0].split())


def _command(name: str, callback: Callable[..., Any]) -> Iterator[str]:
    arguments: list[Described] = []
    options: list[Described] = []
    for parameter in inspect.signature(callback).parameters.values():
        kind, info = _annotation(callback, parameter.name)
        described = (parameter, kind, info)
        (arguments if isinstance(info, ArgumentInfo) else options).append(described)
    required = [f"{_flag(p, k, i)[0]} {_value(k, i)}" for p, k, i in options if p.default is inspect.Parameter.empty]
    usage = " ".join(
        [f"servetwin {name}", *(_argument(*a) for a in arguments), *required, "[OPTIONS]" if options else ""]
    )
    yield f"## servetwin {name}"
    yield ""
    yield "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(callback) or "").split("\n\n"))
    yield ""
    yield f"`{usage.strip()}`"
    rows = [(f"`{_argument(p, k, i)}`", i.help, _default(p)) for p, k, i in arguments]
    rows += [(_cell(p, k, i), i.help, _default(p)) for p, k, i in options]
    if rows:
        yield ""
        yield "| | | default |"
        yield "|---|---|---|"
        for left, text, default in rows:
            yield f"| {left} | {(text or '').replace('|', chr(92) + '|')} | {default} |"


def _annotation(callback: Callable[..., Any], name: str) -> tuple[Any, ArgumentInfo | OptionInfo]:
    """(type, what typer is told) of a parameter."""
    annotated = get_type_hints(callback, include_extras=True)[name]
    if hasattr(annotated, "__metadata__"):
        return annotated.__origin__, annotated.__metadata__[0]
    raise TypeError(f"{callback.__name__}: {name} is not annotated for typer")


def _plain(kind: Any) -> Any:
    """*kind* without None and without the list of a repeatable option."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    return get_args(kind)[0] if get_origin(kind) is list else kind


def _argument(parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    several = "..." if get_origin(kind) is list else ""
    name = f"{(info.metavar or parameter.name).upper()}{several}"
    return name if parameter.default is inspect.Parameter.empty else f"[{name}]"


def _flag(parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo) -> list[str]:
    # typer keeps the first name that an annotation gives where other styles have the default.
    declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
    if declared:
        return declared
    name = f"--{parameter.name.replace('_', '-')}"
    return [f"{name}/--no-{name[2:]}"] if _plain(kind) is bool else [name]


def _value(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    kind = _plain(kind)
    if kind is bool:
        return ""
    if info.metavar:
        return info.metavar
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return _VALUES[kind]


def _cell(parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    flags, value = _flag(parameter, kind, info), _value(kind, info).replace("|", "\\|")
    return ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in flags)


def _default(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False:
        return ""
    return "on" if default is True else f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
