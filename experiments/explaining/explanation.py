"""Requests of a run, each with where its time went and the decision at which it was lost: ``servetwin explain``."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..spec.loading import load
from ..validation.comparison.run_files import read_json, request_lines
from . import run_window, whole_records
from .alone import NOT_TOLD, Alone, StageAlone, TokensAlone
from .batch_time import batch_time, in_turn, pool_time
from .causes import SERVED, Cause, Part
from .engine_time import Progress, engine_time
from .handed_time import handed_time
from .run_window import RunWindow, Taken, cards_of, split
from .slack import Lost, Slack, TokenSlack, judged, lost_at, of_deadline
from .visits import Visit, end_of, way_of
from .whole_records import Outcomes

Record = Mapping[str, Any]


@dataclass(frozen=True)
class StageTime:
    """What a request's time at a stage, and on the way there, went into: *seconds* by cause.

    *instead* are the requests that ran while it waited there, with for how many seconds, *batches* the numbers of the
    batches that these were. *own* is in how many batches (iterations, steps) it was, of *mean_size* requests. Where
    it was at several workers, *of_worker* has the batches by worker.
    """

    stage: str
    worker: str
    seconds: dict[Cause, float]
    instead: dict[int, float]
    batches: list[int]
    own: int
    mean_size: float | None
    of_worker: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Why a request ended as it did. Times in seconds since the run began; *latency* from arrival to end.

    *slack* is what was left when it ended, negative if it was too late; None where the records or profiles do not
    tell it. *lost* is where it was lost (`servetwin.experiments.explaining.slack`), None if it never was. *notes* say
    what is not known.
    """

    id: int
    outcome: str
    reason: str | None
    arrival: float
    ended: float
    deadline: float | None
    stages: list[StageTime]
    spans: list[Part]
    slack: Slack | None
    lost: Lost | None
    notes: list[str] = field(default_factory=list)

    @property
    def latency(self) -> float:
        return self.ended - self.arrival

    @property
    def seconds(self) -> dict[Cause, float]:
        """By cause, of all stages; they add up to `latency`."""
        found: dict[Cause, list[float]] = {}
        for part in self.spans:
            for cause, seconds in part.shares().items():
                found.setdefault(cause, []).append(seconds)
        return {cause: fsum(found[cause]) for cause in Cause if cause in found}


def explain(folder: Path, *, requests: Sequence[int] = (), worst: int | None = None) -> list[Explanation]:
    """Explain the *requests* of the run in *folder* with these ids; or the *worst* that were not met, so many at
    most: the latest first, then those that were dropped or failed before they were late, of which that first which
    had been there for longest.

    Raises `BadInput` if it is no run folder, if its engines had options that an explanation cannot tell of
    (`NOT_TOLD`), if its records are not what they must be, not all that its summary counts, or hold no such request.
    """
    meta = read_json(folder / "meta.json", "not a run folder: it has no meta.json")
    _refuse_options(folder, meta)
    summary = whole_records.summary_of(folder)
    alone, notes = _alone_of(meta)
    if summary is None:
        notes = [*notes, whole_records.CUT_OFF]
    if requests:
        chosen = _named(folder, requests)
    else:
        missed = [r for r in request_lines(folder) if r["outcome"] in ("late", "dropped", "failed")]
        dated = [r for r in missed if r["finished"] is not None or "ended" in r]
        if len(dated) < len(missed):
            some = f"{len(missed) - len(dated)} requests were dropped or failed, and their records do not say when"
            notes = [*notes, f"{some}: they are left out"]
        chosen = heapq.nlargest(worst if worst is not None else 10, dated or missed, key=_badness)
    inputs = alone.inputs if alone is not None else {}
    visited = [way_of(record, inputs) for record in chosen]
    outcomes = Outcomes()
    cards, visits = cards_of(folder, meta), [visit for way in visited for visit in way]
    window = run_window.read(folder, visits, outcomes.of(request_lines(folder)), cards.beside)
    taken = {visit.worker: cards.taken(visit.worker, window) for visit in visits}
    if summary is not None:
        whole_records.check(folder, summary, outcomes, window.counted)
    simulated = meta.get("kind") == "simulated"
    found = [
        _explained(record, way, window, taken, alone, simulated, notes)
        for record, way in zip(chosen, visited, strict=True)
    ]
    for one in found:
        whole_records.check_times(folder, one.id, one.latency, fsum(part.seconds for part in one.spans))
    return found


def _named(folder: Path, requests: Sequence[int]) -> list[Record]:
    wanted = set(requests)
    found = {r["id"]: r for r in request_lines(folder) if r["id"] in wanted}
    for number in requests:
        if number not in found:
            ids = [r["id"] for r in request_lines(folder)]
            right = f"an id from {min(ids)} to {max(ids)}" if ids else "a run with requests"
            raise BadInput(f"there is no request {number}", where=str(folder / "requests.jsonl"), right=right)
    return [found[number] for number in requests]


def _badness(record: Record) -> tuple[float, float]:
    """By how many seconds a request was late, and for how many it had been there. One that was dropped or failed is
    late from when it was due on: before that it is not early, as it never came."""
    end = record["finished"] if record["finished"] is not None else record.get("ended", record["arrival"])
    return max(overrun(record), 0.0), float(end - record["arrival"])


def overrun(record: Record) -> float:
    """By how many seconds a request ended after what it was promised, as far as its own record tells; negative if it
    was dropped before."""
    end = record["finished"] if record["finished"] is not None else record.get("ended", record["arrival"])
    if record["deadline"] is not None:
        return float(end - record["deadline"])
    found = [_token_overrun(stay, end) for stay in record["stages"] if judged_stay(stay)]
    return max(found, default=float(end - record["arrival"]))


def judged_stay(stay: Record) -> bool:
    """Whether the tokens of this visit are promised anything."""
    return "due" in stay or "limits" in stay


def _token_overrun(stay: Record, end: float) -> float:
    first, last = stay["first_token"], stay["last_token"]
    first, last = (t if t is not None else end for t in (first, last))
    steps = max(stay["generated"] - 1, 0)
    if "due" in stay:
        due, each, more = stay["due"]
        return float(max(first - due, last - due - steps * each - steps * (steps + 1) / 2.0 * more))
    limits, sent = stay["limits"], stay["sent"]
    over = [float(first - sent - limits.get("ttft", float("inf"))), last - sent - limits.get("e2el", float("inf"))]
    over.append(last - first - steps * limits.get("tpot", float("inf")) if steps else -float("inf"))
    return max(over)


def _refuse_options(folder: Path, meta: Record) -> None:
    """Raise `BadInput` if an engine had an option of `NOT_TOLD`. By the file itself: what it holds may be of another
    version, or of a policy that is not here, and would not load."""
    for worker in meta.get("experiment", {}).get("deployment", {}).get("workers", ()):
        for key in NOT_TOLD:
            if (worker.get("engine") or {}).get(key):
                where = f"{folder / 'meta.json'}: deployment.workers: engine.{key}"
                raise BadInput(f"an explanation knows nothing of {key}", where=where, right="a run without it")


def _alone_of(meta: Record) -> tuple[Alone | None, list[str]]:
    """The speeds of a run's modules; None, and a note, where they are not here."""
    try:
        alone = Alone(load(meta.get("experiment", {})))
    except BadInput as error:
        what = "what requests take alone is not known here, nor the decision at which they were lost"
        return None, [f"{what}: {error}"]
    was = meta.get("profiles", {})
    changed = [p.name for p in alone.profiles.values() if was.get(p.name, p.digest) != p.digest]
    named = ", ".join(dict.fromkeys(changed))
    return alone, [
        f"{named} is not what it was when the run was made: served alone means by today's"
    ] if named else []


# -- one request ------------------------------------------------------------------------------------------------


def _explained(
    record: Record,
    way: Sequence[Visit],
    window: RunWindow,
    taken: Mapping[str, Sequence[Taken]],
    alone: Alone | None,
    simulated: bool,
    notes: Sequence[str],
) -> Explanation:
    end, told = end_of(record), list(notes)
    parts: list[Part] = []
    for part in _time_of(record, way, window, alone, simulated, end):
        there = taken.get(way[part.visit].worker, ()) if way else ()
        parts += split([part], there) if there else [part]
    for index, visit in enumerate(way):
        if visit.lost_last < visit.until:  # it was never sent again
            parts = [p if p.visit != index else replace(p, end=min(p.end, visit.lost_last)) for p in parts]
            parts = [p for p in parts if p.visit != index or p.end > p.start]
            parts.append(Part(index, Cause.FAILURE, max(visit.came, visit.lost_last), visit.until))
    for index, visit in enumerate(way):
        if whole_records.CUT_OFF in notes:
            own = whole_records.without_end(parts, window.last.get(visit.worker, end))
            parts = [new if old.visit == index else old for old, new in zip(parts, own, strict=True)]
        if lack := _lack(visit, index, parts, window, alone, record):
            told.append(lack)
            parts = [p for p in parts if p.visit != index or p.end <= visit.came or p.start >= visit.until]
            parts.append(Part(index, Cause.UNTOLD, visit.came, visit.until))
    parts.sort(key=lambda part: (part.start, part.end))
    for visit in way:
        if visit.worker in window.silent:
            told.append(f"the records hold no batches of {visit.worker}: what it ran is not known")
        if visit.worker in window.unsure:
            some, steps = window.unsure[visit.worker]
            told.append(f"in {some} of {steps} steps of {visit.worker} the records do not say for sure who decoded")
    slack, lost = None, None
    if alone is not None and not any(part.cause is Cause.UNTOLD for part in parts):
        slack, lost = _lost(record, way, parts, alone, told)
    return Explanation(
        id=record["id"],
        outcome=record["outcome"] or "failed",
        reason=record["reason"],
        arrival=record["arrival"],
        ended=end,
        deadline=record["deadline"],
        stages=[_stage_time(visit, [p for p in parts if p.visit == i]) for i, visit in enumerate(way)],
        spans=parts,
        slack=slack,
        lost=lost,
        notes=list(dict.fromkeys(told)),
    )


def _lack(
    visit: Visit, index: int, parts: Sequence[Part], window: RunWindow, alone: Alone | None, record: Record
) -> str | None:
    """What is missing of the batches of a *visit* that came to its end, or was lost with its engine; None if all are
    there, or nobody knows."""
    if visit.unknown is not None:
        return visit.unknown
    if not (visit.finished or visit.lost) or visit.worker in window.silent or visit.worker in window.pools:
        return None
    own = [p for p in parts if p.visit == index and p.cause in SERVED]
    if not visit.is_llm:
        wanted = visit.stay.get("iterations", 0)
        if alone is not None:
            wanted = min(wanted, alone.at(visit.stage, visit.worker, record["work"]).iterations)
        done, what = (own[-1].done if own else 0), "iterations"
    elif visit.worker not in window.unsure:
        wanted, what = visit.stay.get("generated", 0), "tokens"
        done = own[-1].tokens[0] if own and own[-1].tokens else visit.had
    else:
        return None
    if done >= wanted:
        return None
    return f"the records of {visit.worker} hold {done} of its {wanted} {what}: where its time went there is not known"


def _time_of(
    record: Record, way: Sequence[Visit], window: RunWindow, alone: Alone | None, simulated: bool, end: float
) -> Iterator[Part]:
    now = record["arrival"]
    before: Visit | None = None
    at: Progress | None = None  # how far it has come at a language model
    for index, visit in enumerate(way):
        if before is not None and before.goes_on:  # it was lost with its engine, and sent again
            again = min(visit.lost_first, visit.came)
            if again > now:
                yield Part(index - 1, Cause.FAILURE, now, again, tokens=(visit.had, 0))
                now = again
            if at is not None:
                at.start_again(visit.had)
        else:
            at = Progress(visit.stay["prompt"]) if visit.is_llm and visit.unknown is None else None
        before = visit
        if visit.came > now:
            sent = min(max(now, visit.lost_first), visit.came)
            if sent > now:
                yield Part(index, Cause.TRANSFER, now, sent)
            if visit.came > sent:
                yield Part(index, Cause.FAILURE, sent, visit.came, tokens=(visit.had, 0) if visit.is_llm else None)
        ran = window.ran.get(visit.worker, ())
        if visit.worker in window.silent or visit.unknown is not None:
            if visit.until > visit.came:
                yield Part(index, Cause.UNTOLD, visit.came, visit.until)
        elif visit.is_handed:
            yield from handed_time(visit, index, window.ran, alone)
        elif visit.is_llm:
            memory = alone.memory(visit.worker) if alone is not None else None
            speed: Any = alone.tokens(visit) if alone is not None else None
            yield from engine_time(visit, index, ran, memory=memory, alone=speed, at=at)
        else:
            speed = alone.at(visit.stage, visit.worker, record["work"]) if alone is not None else None
            if visit.worker in window.pools:
                yield from pool_time(visit, index, ran, speed)
            else:
                if visit.worker in window.groups:
                    ran = in_turn(visit, ran)
                intake: Any = alone.intake(visit.worker) if alone is not None else "before"
                yield from batch_time(visit, index, ran, intake=intake, simulated=simulated, alone=speed)
        now = max(now, visit.until)
    if end > now and before is not None and before.lost:
        yield Part(len(way) - 1, Cause.FAILURE, now, end, tokens=(before.stay["generated"], 0))
    elif end > now:
        yield Part(max(len(way) - 1, 0), Cause.TRANSFER, now, end)


def _stage_time(visit: Visit, parts: Sequence[Part]) -> StageTime:
    seconds: dict[Cause, list[float]] = {}
    instead: dict[int, float] = {}
    batches: dict[int, None] = {}
    of_worker: dict[str, dict[int, None]] = {}
    sizes: list[int] = []
    for part in parts:
        for cause, share in part.shares().items():
            seconds.setdefault(cause, []).append(share)
        if part.ran is None or part.cause is Cause.FAILURE:
            continue
        if part.cause in SERVED:
            sizes.append(len(part.ran.requests))
            continue
        batches[part.ran.batch] = None
        of_worker.setdefault(part.worker or visit.worker, {})[part.ran.batch] = None
        for number in part.ran.requests:
            if number != visit.request:
                instead[number] = instead.get(number, 0.0) + part.seconds
    several = visit.is_handed or any(worker != visit.worker for worker in of_worker)
    return StageTime(
        visit.stage,
        f"{visit.stay['handover']['from']} and {visit.worker}" if visit.is_handed else visit.worker,
        {cause: fsum(seconds[cause]) for cause in Cause if cause in seconds},
        dict(sorted(instead.items(), key=lambda pair: -pair[1])),
        list(batches),
        len(sizes),
        sum(sizes) / len(sizes) if sizes else None,
        {worker: list(numbers) for worker, numbers in of_worker.items()} if several else {},
    )


# -- where it was lost ------------------------------------------------------------------------------------------


def _lost(
    record: Record, way: Sequence[Visit], parts: Sequence[Part], alone: Alone, notes: list[str]
) -> tuple[Slack | None, Lost | None]:
    """The slack at the end of a request, and where it was lost."""
    if record["deadline"] is not None:
        left = _Left(record, way, alone)
        start, after = of_deadline(record["deadline"], record["arrival"], parts, left)
        if left.unknown:
            names = ", ".join(left.unknown)
            notes.append(f"what it would have taken at {names} is not known, and counts as nothing")
        return (after[-1] if after else start), lost_at(start, parts, after)
    promised = [(i, visit) for i, visit in enumerate(way) if visit.is_llm and not visit.goes_on and judged(visit)]
    if not promised and any(visit.lost for visit in way):
        notes.append(
            "it was given up before it was sent again: its record does not say what its tokens were promised"
        )
    elif not promised and any(visit.is_llm for visit in way):
        notes.append("its record does not say what its tokens were promised: a run recorded anew says it")
    slack, lost = None, None
    for index, visit in promised:
        first = index
        while first and way[first - 1].goes_on:
            first -= 1
        own = [p for p in parts if first <= p.visit <= index]
        track = TokenSlack(visit, alone.tokens(visit))
        start = track.start(own[0].start if own else way[first].came)
        after = [track.after(part) for part in own]
        slack, lost = (after[-1] if after else start), lost_at(start, own, after)
        if slack.lost:
            break
    return slack, lost


class _Left:
    """What a request would still take alone after a part, with the later visits as they were, as far as it came."""

    def __init__(self, record: Record, way: Sequence[Visit], alone: Alone) -> None:
        self.way = way
        self.here: list[StageAlone | TokensAlone] = [
            alone.tokens(v) if v.is_llm else alone.at(v.stage, v.worker, record["work"]) for v in way
        ]
        last = list(way)  # of each visit that which goes on with it in the end
        for i in range(len(way) - 2, -1, -1):
            last[i] = last[i + 1] if way[i].goes_on else way[i]
        self.decoded = [
            h.decoded(_tokens(v)) if isinstance(h, TokensAlone) else None
            for h, v in zip(self.here, last, strict=True)
        ]
        rest, self.unknown = (0.0, list[str]())
        if record["finished"] is None and way:
            rest, self.unknown = alone.after(way[-1].stage, record["work"])
        self.later = [rest]
        for i in range(len(way) - 1, 0, -1):
            again = way[i - 1].goes_on  # the same visit, of which less is left
            self.later.append(self.later[-1] + (0.0 if again else self._left(i, 0, (0, 0))))
        self.later.reverse()

    def __call__(self, part: Part | None) -> float:
        if not self.way:
            return 0.0
        if part is None:
            return self.later[0] + self._left(0, 0, (0, 0))
        return self.later[part.visit] + self._left(part.visit, part.done, part.tokens or (0, 0))

    def _left(self, index: int, done: int, tokens: tuple[int, int]) -> float:
        here, decoded = self.here[index], self.decoded[index]
        if isinstance(here, StageAlone):
            return here.left(done)
        assert decoded is not None
        generated, computed = tokens
        pending = here.prompt + generated - computed
        first = 0.0 if generated and pending <= 1 else here.prefill(pending)
        base = generated if generated and pending <= 1 else generated + 1
        last = len(decoded) - 1
        return first + max(float(decoded[last] - decoded[min(base, last)]), 0.0) if generated < last else 0.0


def _tokens(visit: Visit) -> int:
    """The tokens that it generated; or one more, if it was not at its end."""
    generated = int(visit.stay.get("generated", 0))
    return generated if visit.finished else generated + 1


def as_json(found: Explanation) -> dict[str, Any]:
    """The content of ``servetwin explain --json`` for one request."""
    lost: dict[str, Any] | None = None
    if found.lost is not None:
        lost = {"before": found.lost.before.seconds, "after": found.lost.after.seconds, "of": found.lost.after.what}
        part = found.lost.part
        if part is None:
            lost["cause"] = None
        else:
            stage = found.stages[part.visit] if found.stages else None
            lost |= {
                "cause": part.cause.value,
                "worker": part.worker or (stage.worker if stage else None),
                "own": part.own,
            }
            lost |= {"start": part.start, "end": part.end}
            if part.ran is not None:
                lost |= {"batch": part.ran.batch, "start": part.ran.start, "end": part.ran.end}
                lost["requests"] = list(part.ran.requests)
    return {
        "id": found.id,
        "outcome": found.outcome,
        "reason": found.reason,
        "arrival": found.arrival,
        "ended": found.ended,
        "latency": found.latency,
        "deadline": found.deadline,
        "slack": found.slack.seconds if found.slack is not None else None,
        "slack_of": found.slack.what if found.slack is not None else None,
        "seconds": {cause.value: seconds for cause, seconds in found.seconds.items()},
        "stages": [
            {
                "stage": s.stage,
                "worker": s.worker,
                "seconds": {cause.value: seconds for cause, seconds in s.seconds.items()},
                "batches": s.own,
                "mean_batch_size": s.mean_size,
                "instead": [{"id": number, "seconds": seconds} for number, seconds in s.instead.items()],
                "instead_batches": s.batches,
            }
            for s in found.stages
        ],
        "lost": lost,
        "notes": found.notes,
    }
