"""The invariants on the records of a run: `check_records` reads a run folder, simulated or measured."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput, broken
from ..request import Outcome
from ..slo import latest

FINISHED = (Outcome.MET, Outcome.LATE)


def check_records(folder: Path, inputs: Mapping[str, Sequence[str]] | None = None) -> None:
    """Hold the records of a finished run in *folder* to invariants 1, 2, 3, 4, 7 and 10; raises `InvariantBroken`.

    The records do not say which stage feeds which. With *inputs* (stage -> the stages that feed it) that order is
    checked too. Raises `BadInput` if it is no folder of a finished run.
    """
    if not (folder / "summary.json").exists():
        raise BadInput("no summary.json", where=str(folder), right="the folder of a finished run")
    summary = json.loads((folder / "summary.json").read_text())
    runs = _check_batch_records(folder, summary)
    outcomes: Counter[str] = Counter()
    ended: set[int] = set()
    for record in _lines(folder / "requests.jsonl"):
        if record["id"] in ended:
            raise broken(1, f"request {record['id']} ends twice")
        ended.add(record["id"])
        if record["outcome"] not in [o.value for o in Outcome]:
            raise broken(1, f"request {record['id']} ends as {record['outcome']}")
        outcomes[record["outcome"]] += 1
        _check_request_record(record, runs, inputs or {})
    counted = {o.value: outcomes[o] for o in Outcome}
    if summary["requests"] != len(ended):
        raise broken(1, f"{summary['requests']} requests arrived, {len(ended)} ended")
    if counted != {o.value: summary[o.value] for o in Outcome}:
        raise broken(10, f"the summary does not count {counted}")
    if ended and summary["attainment"] != counted["met"] / len(ended):
        raise broken(10, f"attainment is {summary['attainment']!r}, but {counted['met']} of {len(ended)} were met")


#: Of a batch: start, end, iterations each, how often on end, and whether the last prediction was taken again.
Row = tuple[float, float, int, int, bool]
#: (worker, request) -> its batches there, in order.
Runs = dict[tuple[str, int], list[Row]]


def _check_batch_records(folder: Path, summary: dict[str, Any]) -> Runs:
    runs: Runs = {}
    last: dict[tuple[str, int], float] = {}
    sizes: dict[str, Counter[int]] = {}
    down = _down(folder)
    for record in _lines(folder / "batches.jsonl"):
        name = f"batch {record['id']} of {record['worker']}"
        worker, start, end, ids = record["worker"], record["start"], record["end"], record["requests"]
        count = len(record["ends"]) if "ends" in record else 0 if record.get("lost") else 1
        for number in record.get("devices", (record.get("thread", -1),)):
            place = (worker, number)
            if start < last.get(place, start):
                raise broken(3, f"{name} started at {start!r}, before the last one ended at {last[place]!r}")
            last[place] = end
        check_ends(start, end, record.get("ends"), count, name)
        size = len(record["prefill"]) + record["decode"] if "prefill" in record else len(ids)
        if not size or len(set(ids)) < len(ids):
            raise broken(4, f"{name} holds a request twice, or none: {ids}")
        if count:
            sizes.setdefault(worker, Counter())[size] += count
        elif not record.get("lost"):
            raise broken(7, f"{name} ran no iteration, and no fault cut it off")
        for begin, until in down.get(worker, ()):
            if start < until and end > begin:
                raise broken(15, f"{name} ran from {start!r} to {end!r}, and was down from {begin!r} to {until!r}")
        if "prefill" in record:
            continue
        reused = record.get("reused", ())
        if not set(reused) <= set(ids):
            raise broken(7, f"{name} reuses predictions of {reused}, and holds {ids}")
        for request in ids:
            before = runs.get((worker, request))
            if before and start < before[-1][1]:
                raise broken(
                    4, f"{name} started at {start!r} with request {request}, which ran until {before[-1][1]!r}"
                )
            row = (start, end, record["iterations"], count, request in reused)
            runs.setdefault((worker, request), []).append(row)
    told = {w: {int(n): k for n, k in s["batch_sizes"].items()} for w, s in summary["workers"].items()}
    if told != {w: dict(c) for w, c in sizes.items()}:
        raise broken(4, "the summary's batch sizes are not those of the batches")
    return runs


def _down(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """When each worker was down, in a run with faults."""
    found: dict[str, list[tuple[float, float]]] = {}
    path = folder / "faults.jsonl"
    for line in _lines(path) if path.exists() else ():
        if "lost_requests" in line:
            until = float("inf") if line["until"] is None else line["until"]
            found.setdefault(line["worker"], []).append((line["at"], until))
    return found


def _check_request_record(record: dict[str, Any], runs: Runs, inputs: Mapping[str, Sequence[str]]) -> None:
    finished, deadline, outcome = record["finished"], record["deadline"], record["outcome"]
    name = f"request {record['id']}"
    done = outcome in [o.value for o in FINISHED]
    in_time = finished is not None and (deadline is None or finished <= latest(deadline))
    if outcome == Outcome.LATE and any("generated" in stay for stay in record["stages"]):
        in_time = False  # single tokens may have been late
    if done != (finished is not None) or (done and (outcome == Outcome.MET) != in_time):
        raise broken(10, f"{name} ended {outcome}, finished {finished!r}, deadline {deadline!r}")
    if done and "ended" in record:
        raise broken(10, f"{name} finished at {finished!r}, and was given up at {record['ended']!r}")
    stays: dict[str, int] = {}
    finishes: dict[str, list[float]] = {}
    for stay in record["stages"]:
        stays[stay["worker"]] = stays.get(stay["worker"], 0) + 1
        if stay["finished"] is not None:
            finishes.setdefault(stay["stage"], []).append(stay["finished"])
    for stay in record["stages"]:
        where = f"{name} at {stay['stage']}"
        marks = [(m, stay[m]) for m in ("queued", "admitted", "started", "finished") if stay[m] is not None]
        check_order([("arrival", record["arrival"]), *marks], where)
        for stage in inputs.get(stay["stage"], ()):
            if not any(at <= stay["queued"] for at in finishes.get(stage, ())):
                raise broken(2, f"{where} is queued at {stay['queued']!r}, before {stage} is finished")
        if "generated" in stay:
            _check_tokens(stay, done, where)
            continue
        own = runs.get((stay["worker"], record["id"]), [])
        if stays[stay["worker"]] > 1 or "attempts" in record:
            first, last = stay["started"], stay["finished"]
            own = [r for r in own if first is not None and r[0] >= first and (last is None or r[1] <= last)]
        _check_stay(stay, record, own, where)
    for attempt in record.get("attempts", ()):
        marks = [(m, attempt[m]) for m in ("queued", "started", "lost", "again") if attempt.get(m) is not None]
        check_order([("arrival", record["arrival"]), *marks], f"{name}, lost at {attempt['worker']}")
    ends = [end for stage in finishes.values() for end in stage]
    if done and finished != max(ends, default=None):
        raise broken(2, f"{name} finished at {finished!r}, its stages at {ends}")


def _check_stay(stay: dict[str, Any], record: dict[str, Any], runs: list[Row], where: str) -> None:
    counted = stay["iterations"]
    if record["outcome"] in [o.value for o in FINISHED]:
        work, modules = record["work"], stay["stage"].split("+")
        asked = next((work[m] for m in modules if m in work), 1)
        if "steps_asked" in stay:
            _check_steps(stay, asked, sum(count for _, _, _, count, reused in runs if reused), where)
        elif counted != asked:
            raise broken(7, f"{where} ran {counted} of {asked} iterations")
    ran = sum(iterations * count for _, _, iterations, count, _ in runs)
    single = all(iterations == 1 for _, _, iterations, _, _ in runs)
    if counted > ran or (single and stay["finished"] is not None and counted != ran):
        raise broken(7, f"{where} counts {counted} iterations, its batches {ran}")
    if runs and stay["started"] != runs[0][0]:
        raise broken(2, f"{where} is started at {stay['started']!r}, its first batch at {runs[0][0]!r}")
    if stay["finished"] is not None and stay["finished"] != runs[-1][1]:
        raise broken(2, f"{where} is finished at {stay['finished']!r}, its last batch at {runs[-1][1]!r}")


def _check_steps(stay: dict[str, Any], asked: int, reused: int, where: str) -> None:
    """A finished visit whose policy could leave steps out: those that were run and those that were left out are all
    that were asked for."""
    run, skipped = stay["steps_run"], stay["steps_skipped"]
    if stay["steps_asked"] != asked or run + skipped != asked or not 0 < run <= stay["iterations"]:
        raise broken(7, f"{where} ran {run} and skipped {skipped} of {asked} steps")
    if stay["iterations"] - run != reused:
        raise broken(7, f"{where} counts {stay['iterations'] - run} steps reused, its batches {reused}")


def _check_tokens(stay: dict[str, Any], done: bool, where: str) -> None:
    """The visit to an LLM stage."""
    generated, tokens = stay["generated"], stay.get("tokens")
    if not 0 <= generated <= stay["limit"] or (done and not generated):
        raise broken(7, f"{where} generated {generated} tokens, of {stay['limit']} at most")
    marks = [(m, stay[m]) for m in ("started", "first_token", "last_token") if stay[m] is not None]
    check_order(marks, where)
    if done and tokens is not None:
        if len(tokens) != generated or tokens[0] != stay["first_token"] or tokens[-1] != stay["last_token"]:
            raise broken(7, f"{where} generated {generated} tokens, at {tokens}")
        check_order([(f"token {i + 1}", at) for i, at in enumerate(tokens)], where)


def check_order(way: list[tuple[str, float]], where: str) -> None:
    for (name, at), (after, later) in itertools.pairwise(way):
        if later < at:
            raise broken(2, f"{where}: {after} at {later!r}, before {name} at {at!r}")


def check_ends(start: float, end: float, ends: list[float] | None, count: int, where: str) -> None:
    if end < start:
        raise broken(2, f"{where} ends at {end!r}, before its start at {start!r}")
    if not ends:
        return
    if len(ends) != count or any(b < a for a, b in itertools.pairwise([start, *ends, end])):
        raise broken(2, f"{where} from {start!r} to {end!r} does not take {count} iterations that end at {ends}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
