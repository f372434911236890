"""What several cores would save where a router looks every so many seconds: CPU seconds of each process.

python -m servetwin.experiments.bench.epochs REQUESTS [--rounds N] [--routers NAME ...] [--stale S ...]

64 replicas as `servetwin.experiments.bench.fleet` has them. All are served in this process first, which notes what
the router sees at each look; then by halves and by quarters, as so many processes would serve them, one after the
other, which are told what was noted. A run on as many cores that nobody else uses takes what the slowest of them
takes, and for each look what it takes to tell and to be told, which is measured too. The least of the rounds, in
turns.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Sequence

from servetwin.core import Recorder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.splitting.apart import some_side_by_side
from servetwin.experiments.sweeps.pieces import pieces_of
from servetwin.sim.fleets.epochs import Sight

from .fleet import fleet_of

REPLICAS = 64
Sights = Sequence[Sight]


def serve(experiment: Experiment, mine: range, noted: list[Sights]) -> float:
    """CPU seconds to serve the replicas *mine*; what is seen at each look has been *noted*, or is."""
    told = iter(list(noted))

    def exchange(found: list[Sight]) -> Sights:
        if len(mine) == REPLICAS:
            noted.append(found)
            return found
        return next(told)

    run = build(experiment, Recorder())
    began = time.process_time()
    if some_side_by_side(run, run.recorder.summary, mine, exchange) is None:
        raise SystemExit("replicas do not go as numbers (right would be: fewer requests a second)")
    return time.process_time() - began


def measure(router: str, stale: float, requests: int) -> dict[int, float]:
    """CPU seconds of the slowest of so many processes; 0: of what is told in all looks, packed and unpacked."""
    experiment, noted = fleet_of(REPLICAS, {"name": router, "stale": stale}, requests), list[Sights]()
    found = {1: serve(experiment, range(REPLICAS), noted)}
    for many in (2, 4):
        found[many] = max(serve(experiment, mine, noted) for mine in pieces_of(REPLICAS, many))
    began = time.process_time()
    for sights in noted:
        pickle.loads(pickle.dumps([tuple(sight) for sight in sights]))
    return found | {0: time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--routers", nargs="+", default=["jsq", "power_of_two", "least_loaded"])
    parser.add_argument("--stale", nargs="+", type=float, default=[0.1, 1.0, 10.0])
    asked = parser.parse_args()
    cases = [(router, stale) for router in asked.routers for stale in asked.stale]
    rounds = [{case: measure(*case, asked.requests) for case in cases} for _ in range(asked.rounds)]
    print(f"{REPLICAS} replicas, {asked.requests} requests; CPU us a request of the slowest process, least of rounds")
    for router, stale in cases:
        least = {many: min(each[router, stale][many] for each in rounds) for many in (1, 2, 4, 0)}
        one, two, four, told = (1e6 * seconds / asked.requests for seconds in least.values())
        print(f"{router}, stale {stale:g} s: one {one:.1f}, two {two:.1f} ({one / two:.2f} times), four {four:.1f}"
              f" ({one / four:.2f} times); telling {told:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
