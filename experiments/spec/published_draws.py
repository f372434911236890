"""Draws that come with published experiments: seeds of arrivals, lists of lengths."""

from __future__ import annotations

from functools import lru_cache

from ..provenance.file_digests import stamp
from ..registry.catalog import LISTS, list_names, unknown
from . import yaml_io

#: The seeds of the artifact's LLM experiments, by the cv of the gaps.
LLM_SEEDS = {1.0: 4, 1.5: 0, 2.0: 3, 2.5: 1, 3.0: 6, 3.5: 5, 4.0: 1, 4.5: 0}
#: And of its multi-agent experiments.
AGENT_SEEDS = {1.0: 4, 2.0: 6, 3.0: 8, 4.0: 6}
#: Which experiments of the artifact a workload's draws are those of -> the seeds.
PUBLISHED: dict[str, dict[float, int]] = {"published_llm": LLM_SEEDS, "published_agents": AGENT_SEEDS}


def listed(name: str) -> tuple[int, ...]:
    """The lengths in a list that comes with ServeTwin. Raises `BadInput` listing the known ones."""
    return _listed(name, stamp(LISTS / f"{name}.yaml"))


@lru_cache(maxsize=64)
def _listed(name: str, _: object) -> tuple[int, ...]:
    """The list, read once for each version of its file."""
    if name not in list_names():
        raise unknown("list", name, list_names())
    content, _ = yaml_io.read(LISTS / f"{name}.yaml")
    return tuple(content["values"])
