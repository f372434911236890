"""What prompts begin with, request by request (``workload.lengths.MODULE.prefix``).

Of which group a request is has a random stream of its own: it changes neither arrivals nor lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from servetwin.core.llm import PromptContent
from servetwin.core.random_streams import stream

from ..spec.experiment import Experiment, Workload
from ..spec.llm import Lengths, SharedPrefix, TracePrefix
from .draws import BLOCK

if TYPE_CHECKING:
    from .trace_reader import TraceFile


#: What the prompts of requests begin with, one by one; None if no two begin alike.
Contents = Iterator[PromptContent] | None


def contents(lengths: Lengths, name: str, *, seed: int, trace: TraceFile | None = None) -> Contents:
    """What the prompts of *lengths*, whose draws have that *name*, begin with. Raises `BadInput` where the trace does
    not tell, when it comes to that."""
    said = lengths.prefix
    if said is None:
        return None
    if isinstance(said, TracePrefix):
        assert trace is not None  # checked with the file
        return trace.contents()
    return _drawn(said, name, seed)


def _drawn(said: SharedPrefix, name: str, seed: int) -> Iterator[PromptContent]:
    known: dict[int, PromptContent] = {}
    source = stream(seed, f"prefixes of {name}")
    while True:
        for group in source.integers(said.groups, size=BLOCK).tolist():
            content = known.get(group)
            if content is None:
                content = known[group] = PromptContent(((name, group),), said.tokens)
            yield content


def next_of(drawn: Mapping[str, Contents]) -> dict[str, PromptContent] | None:
    """What the prompts of the next request begin with, by module; None if nobody says."""
    said = {module: next(these) for module, these in drawn.items() if these is not None}
    return said or None


def check(load: Workload, trace: TraceFile | None) -> None:
    """Raise `BadInput` if the contents that *trace* is to give of prompts are not there, or contradict their
    lengths."""
    if trace is not None and any(isinstance(lengths.prefix, TracePrefix) for lengths in load.lengths.values()):
        deque(trace.contents(), maxlen=0)


def not_cached(experiment: Experiment) -> str | None:
    """That it is said for nothing what prompts begin with, where none of a module's engines has a prefix cache; None
    where it is not."""
    caching = {
        module
        for worker in experiment.deployment.workers
        if worker.engine is not None and worker.engine.enable_prefix_caching
        for module in worker.modules
    }
    load = experiment.workload
    every = [load.lengths, *(own.lengths for own in load.classes.values())]
    told = dict.fromkeys(m for these in every for m, lengths in these.items() if lengths.prefix is not None)
    missing = [module for module in told if module not in caching]
    if not missing:
        return None
    of = f" of {' or '.join(missing)}" if len(experiment.pipeline.llms) > 1 else ""
    return f"no engine{of} caches prefixes (engine: {{enable_prefix_caching: true}})"
