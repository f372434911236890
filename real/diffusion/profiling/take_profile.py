"""From a model and a device to the content of a profile file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servetwin.core import Policy, Shape

from ...server import Server
from .measured import Progress
from .profile_writer import as_profile
from .profiler import Profiler
from .reused_steps import measured_ratios, with_reuse
from .shapes import check, memory_of, with_shapes

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
    shapes: Sequence[Shape] = (),
    reuse: bool = False,
) -> dict[str, Any]:
    """Measure *server* and give the content of a profile file called *name*.

    *policies* are made anew for each measurement of the time that they take between two iterations. *seconds* is
    about how long each point is measured, *whole_steps* are the step counts of whole batches, *once* is the largest
    batch where a module has no loop; with *brief* what happens after idle periods is left out. *progress* hears what
    is measured next, how many terms are done, and of how many. Of *shapes* the tables are measured too, and on a GPU
    the memory of all. With *reuse* steps are measured too that use the last prediction again, which the server must
    keep.

    Raises `BadInput` for a shape that the model cannot serve, or that stands twice.
    """
    check(server.kind, shapes)
    own = Profiler(
        server, limit=limit, device=device, policies=policies, seconds=seconds, whole_steps=whole_steps, once=once
    )
    others = [Profiler(server, limit=limit, device=device, seconds=seconds, once=once, shape=s) for s in shapes]
    totals = [sum(each.counts(brief=brief).values()) for each in (own, *others)]

    def heard(i: int) -> Progress | None:
        def hear(term: str, done: int, _: int) -> None:
            assert progress is not None
            progress(f"{shapes[i - 1]}: {term}" if i else term, sum(totals[:i]) + done, sum(totals))

        return hear if progress is not None else None

    content = as_profile(own, own.take(brief=brief, progress=heard(0)), name, command)
    if reuse:
        content = with_reuse(content, server.kind.loop, measured_ratios(server, own.limit, device))
    if not shapes:
        return content
    memory: dict[Shape | None, Any] = {None: memory_of(own)}
    for i, each in enumerate(others):
        each.take(brief=brief, progress=heard(i + 1))
        memory[each.shape] = memory_of(each)
    return with_shapes(content, own, others, {} if memory[None] is None else memory)
