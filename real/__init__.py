"""Real execution: the same serving loop and policies, on real modules and in real time.

Models need the extra ``[diffusion]`` (torch, diffusers, transformers): without it what is named here cannot be had
(`require` raises one `BadInput`). Tools (`servetwin.real.sandbox`) need nothing.

==================  ====================================================================================
`KINDS`             the models that can be served, by name; ``tiny-*`` are for a CPU
`Options`           device, precision, weights, scheduler, graphs or eager
`Server`            a model on its devices, warmed up; `Server.serve` plays one run
`Report`            what a run says beside its records: lateness of the client, gaps between iterations
`take_profile`      measures a model on a device and gives the content of a profile file
==================  ====================================================================================
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput


def require() -> None:
    """Raise `BadInput` unless what models need is installed."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"real execution needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            right="pip install 'servetwin[diffusion]'",
        )


if TYPE_CHECKING:
    from .kinds import KINDS, Kind
    from .options import Options
    from .profiler import take_profile
    from .server import Report, Server

#: Where names come from; read when they are first asked for, since what needs no model wants none of torch.
_HOME = {
    "KINDS": "kinds",
    "Kind": "kinds",
    "Options": "options",
    "Report": "server",
    "Server": "server",
    "take_profile": "profiler",
}

__all__ = ["KINDS", "Kind", "Options", "Report", "Server", "take_profile"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require()
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
