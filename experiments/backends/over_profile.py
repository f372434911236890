"""How much longer iterations of a real run took than the profile says: where it is much longer, the host is slower
than that of the profile, or busy, and a simulation of the run is of another host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servetwin.core import Shape, Worker
    from servetwin.profiles import Profile

#: From here on it is told: times of a shared CPU scatter by less.
MUCH = 1.5


def over_profile(
    workers: Iterable[Worker],
    iteration_ms: Mapping[str, Mapping[str, Mapping[str, float]]],
    profiles: Mapping[str, Profile],
    shapes: Iterable[Shape] = (),
) -> dict[str, float]:
    """All time that iterations took over that by *profiles* (by device), by profile.

    *iteration_ms* is that of ``real.json``, its batches of *shapes*. What no profile tells is left out.
    """
    by_text = {str(shape): shape for shape in shapes}
    took: dict[str, list[float]] = {}
    for worker in workers:
        if worker.stage.loop is None or worker.name not in iteration_ms or worker.device not in profiles:
            continue
        profile = profiles[worker.device]
        for label, spread in iteration_ms[worker.name].items():
            size, _, shape = label.partition(" of ")
            at = profile.at(by_text[shape]) if shape else profile
            said = at.table(worker.stage.loop, "measured", "scheduler")(int(size)) * 1e3
            sums = took.setdefault(profile.name, [0.0, 0.0])
            sums[0] += spread["mean"] * spread["samples"]
            sums[1] += said * spread["samples"]
    return {name: real / said for name, (real, said) in took.items() if said > 0}


def line(profile: str, ratio: float) -> str | None:
    """What is to be said of iterations that took *ratio* times what *profile* says; None where they did not take much
    longer."""
    if ratio < MUCH:
        return None
    return (
        f"iterations took {ratio:.1f} times as long as {profile} says, on average: this host is slower, or busy; a "
        "simulation with a profile measured here (`servetwin profile`) is closer"
    )


def lines(real: Mapping[str, Any]) -> list[str]:
    """`line` for each profile of a ``real.json``."""
    found = (line(name, ratio) for name, ratio in real.get("over_profile", {}).items())
    return [text for text in found if text is not None]
