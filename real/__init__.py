"""Real execution: the same serving loop and policies, on real modules and in real time.

Models need the extra ``[diffusion]`` (torch, diffusers, transformers): without it what is named here cannot be had
(`require` raises one `BadInput`). Tools (`servetwin.real.tools`) need nothing. Begin with `executor`, then `server`.

==================  =======================================================================
`executor`          the event loop on one thread: lanes, processes and engines report to it
`server`            a diffusion model on its devices, warmed up, and the runs that it serves
`answer`            what an engine in another process says
`client`            the open loop that sends requests, in a process of its own
`cpu_affinity`      a core of its own for the thread that serves
`diffusion`         models on devices: networks, CUDA graphs, lanes, profiler
`omni`              vllm-omni's diffusion engine under our policies
`policy_files`      policies by name, for the schedulers of other servers
`vllm`              language models by vLLM under our policies, and their profiler
`tools`             scripts in a sandbox
==================  =======================================================================

`KINDS` are the models that can be served, by name (``tiny-*`` for a CPU), `DiffusionModel` is the base of your own,
`Options` says how one is served, `Server` serves runs and gives a `Report`, `take_profile` measures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from servetwin.core import BadInput
from servetwin.core.installed import not_installed


def require() -> None:
    """Raise `BadInput` unless what models need is installed."""
    missing = not_installed("torch", "diffusers", "transformers")
    if missing:
        raise BadInput(
            f"real execution needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            right="pip install 'servetwin[diffusion]'",
        )


if TYPE_CHECKING:
    from .diffusion.diffusion_model import DiffusionModel
    from .diffusion.kind import Kind, Sampling
    from .diffusion.model_registry import KINDS
    from .diffusion.options import Options
    from .diffusion.profiling.take_profile import take_profile
    from .server import Report, Server

#: Where names come from; read when they are first asked for, since what needs no model wants none of torch.
_HOME = {
    "DiffusionModel": "diffusion.diffusion_model",
    "KINDS": "diffusion.model_registry",
    "Kind": "diffusion.kind",
    "Options": "diffusion.options",
    "Report": "server",
    "Sampling": "diffusion.kind",
    "Server": "server",
    "take_profile": "diffusion.profiling.take_profile",
}

__all__ = ["KINDS", "DiffusionModel", "Kind", "Options", "Report", "Sampling", "Server", "take_profile"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require()
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
