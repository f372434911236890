"""From a model and a device to the content of a profile file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servetwin.core import Policy

from ...server import Server
from .profile_writer import as_profile
from .profiler import Profiler, Progress

# -- the file ---------------------------------------------------------------------------------------------


def take_profile(
    server: Server,
    name: str,
    *,
    limit: int | None = None,
    device: str = "gpu0",
    policies: Mapping[str, Callable[[], Policy]] | None = None,
    command: str = "servetwin profile",
    seconds: float = 0.4,
    whole_steps: Sequence[int] = (20,),
    once: int | None = None,
    brief: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure *server* and give the content of a profile file called *name*.

    *policies* are made anew for each measurement of the time that they take between two iterations. *seconds* is
    about how long each point is measured, *whole_steps* are the step counts of whole batches, *once* is the largest
    batch where a module has no loop; with *brief* what happens after idle periods is left out. *progress* hears what
    is measured next, how many terms are done, and of how many.
    """
    profiler = Profiler(
        server, limit=limit, device=device, policies=policies, seconds=seconds, whole_steps=whole_steps, once=once
    )
    return as_profile(profiler, profiler.take(brief=brief, progress=progress), name, command)
