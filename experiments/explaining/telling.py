"""Explanations in words: lines and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core.arithmetic import float_sum

from .causes import SERVED, Cause
from .explanation import Explanation, StageTime
from .slack import Lost

#: Requests that are named of those that ran instead.
NAMED = 8


def headline(found: Explanation) -> str:
    """What became of a request, in a line."""
    why = f" ({found.reason})" if found.reason else ""
    text = f"request {found.id}: {found.outcome}{why}: arrived at {found.arrival:.3f} s, ended at {found.ended:.3f} s"
    return f"{text}, after {found.latency:.3f} s"


def verdict(found: Explanation) -> str:
    """Whether it was in time, and by how much."""
    slack = found.slack
    if found.outcome == "failed" and found.reason and (slack is None or not slack.lost):
        return f"it failed: {found.reason}"
    if slack is None:
        return "how much slack it had is not known"
    if slack.seconds == float("inf"):
        return "nothing was promised to it"
    if slack.lost:
        return f"{-slack.seconds:.3f} s too late for {slack.what}"
    if found.outcome == "met":
        return f"in time for {slack.what}, with {slack.seconds:.3f} s to spare"
    return (
        f"when it ended, {slack.seconds:.3f} s of slack were left: served alone from then on it would have been met"
    )


def rows(found: Explanation) -> list[tuple[str, list[float], float]]:
    """By cause: its seconds at each stage, and in all; what is shorter than half a millisecond is left out."""
    total = found.seconds
    shown = [cause for cause in total if total[cause] >= 0.0005]
    return [(cause.value, [s.seconds.get(cause, 0.0) for s in found.stages], total[cause]) for cause in shown]


def instead(stage: StageTime) -> str | None:
    """What ran while it waited at a stage; None if it did not wait for others."""
    if not stage.instead:
        return None
    waited = float_sum(s for cause, s in stage.seconds.items() if cause not in {*SERVED, Cause.FAILURE})
    named = [f"{number} ({seconds:.3f} s)" for number, seconds in list(stage.instead.items())[:NAMED]]
    more = len(stage.instead) - len(named)
    others = ", ".join(named) + (f" and {more} more" if more > 0 else "")
    several = {f"of {worker} ": numbers for worker, numbers in stage.of_worker.items()} or {"": stage.batches}
    which = "and ".join(f"{_span(numbers)}{of}" for of, numbers in several.items() if any(numbers))
    return f"at {stage.worker} it waited {waited:.3f} s; meanwhile {which}ran, with requests {others}"


def own(stage: StageTime) -> str | None:
    """In what it was served at a stage; None if it was not."""
    if stage.mean_size is None:
        return None
    if stage.own == 1:
        return f"at {stage.worker} it was in one batch, of {stage.mean_size:g}"
    return f"at {stage.worker} it was in {stage.own} batches, of {stage.mean_size:.1f} requests on average"


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"batch {numbers[0]} "
    if len(numbers) <= NAMED:
        return f"batches {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} "
    return f"{len(numbers)} batches, the first {min(numbers)} and the last {max(numbers)}, "


def of_lost(found: Explanation) -> str | None:
    """The decision at which it was lost; None if it was not, or that is not known."""
    lost = found.lost
    if lost is None:
        return None
    if lost.part is None:
        return (
            f"lost when it came: served alone from then on it would have been {-lost.before.seconds:.3f} s too late"
            f" for {lost.before.what}"
        )
    left = f"before it {lost.before.seconds:.3f} s of slack were left, after it {lost.after.seconds:.3f} s"
    return f"lost at {_decision(found, lost)}: {left} (for {lost.after.what})"


def _decision(found: Explanation, lost: Lost) -> str:
    part = lost.part
    assert part is not None
    worker = part.worker or (found.stages[part.visit].worker if found.stages else "")
    ran = part.ran
    if ran is None:
        return f"{worker}, from {part.start:.3f} s to {part.end:.3f} s ({part.cause.value})"
    batch = f"batch {ran.batch} of {worker}" if ran.batch else f"a batch of {worker}"
    when = f"from {ran.start:.3f} s to {ran.end:.3f} s"
    size = len(ran.requests)
    if part.own:
        alone = "" if part.alone is None else f", where it would have taken {part.alone:.3f} s alone"
        return f"{batch} ({size} requests, {when}), which it was in{alone}"
    others = ", ".join(map(str, ran.requests[:NAMED])) + (f" and {size - NAMED} more" if size > NAMED else "")
    return f"{batch} ({others}; {when}), which it was not in ({part.cause.value})"


def short_lost(found: Explanation) -> str:
    """Likewise, for a table."""
    lost = found.lost
    if lost is None:
        if found.outcome == "failed" and found.reason:
            return found.reason
        return "never" if found.slack is not None else "not known"
    if lost.part is None:
        return "on arrival"
    part = lost.part
    worker = part.worker or (found.stages[part.visit].worker if found.stages else "")
    batch = f", batch {part.ran.batch}" if part.ran is not None and part.ran.batch else ""
    how = "in it" if part.own else part.cause.value
    return f"{worker} at {part.start:.3f} s{batch} ({how})"


def most(found: Explanation, count: int = 3) -> str:
    """What most of its time went into."""
    largest = sorted(found.seconds.items(), key=lambda pair: -pair[1])[:count]
    whole = found.latency or 1.0
    shares = [(cause.value, 100.0 * seconds / whole) for cause, seconds in largest]
    return ", ".join(f"{cause} {share:.0f} %" for cause, share in shares if share >= 0.5)


#: What is said below each answer.
RULE = (
    "slack: the deadline, less the time, less what the request would still take served alone, at the speed of batches"
    " of one; lost: the last decision with slack before it and none after it"
)
