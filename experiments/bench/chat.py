"""A long run of chats in a process of its own: ``python -m servetwin.experiments.bench.chat REQUESTS [off]``
(*off*: without the prefix cache).

A closed loop of 32 clients, whose sessions of four short turns on average begin with one of eight system prompts, and
an engine with a prefix cache of so few blocks that they are taken again all the time. Prints CPU seconds, the
process's largest memory in MiB (which must not grow with the requests but for the latencies that summaries keep, a
few dozen bytes each) and the hit rate.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load

LENGTHS = {
    "prompt": {"draw": "uniform", "low": 8, "high": 40},
    "output": {"draw": "uniform", "low": 2, "high": 6},
    "prefix": {"draw": "shared", "groups": 8, "tokens": 64},
}
SETTINGS: tuple[tuple[str, Any], ...] = (
    ("workload.arrivals", {"process": "closed", "clients": 32, "think": {"draw": "exponential", "mean": 0.02}}),
    ("workload.sessions", {"turns": {"draw": "uniform", "low": 1, "high": 7}}),
    ("workload.lengths", {"llm": LENGTHS}),
    ("deployment.workers.0.engine.blocks", 1000),
)


def main() -> None:
    requests, cached = int(sys.argv[1]), "off" not in sys.argv[2:]
    began = time.process_time()
    caching = ("deployment.workers.0.engine.enable_prefix_caching", cached)
    summary = build(load("tiny-opt-cpu", [*SETTINGS, caching, ("requests", requests)])).play().as_dict()
    took = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    hits = summary["llm"]["llm"].get("prefix_cache_hit_rate")
    print(json.dumps({"requests": summary["requests"], "cpu": took, "memory": memory, "hit_rate": hits}))


if __name__ == "__main__":
    main()
