"""The scoreboard of README.md and docs/reference/scoreboard.md, written by running this module.

    python -m servetwin.experiments.validation.scoreboard

Each row is what ``servetwin score`` gives for the runs of one recording, and beside it what predictors give that
simulate nothing. To score them all takes some ten minutes on two idle cores, so what came out is kept in
``experiments/measured/scoreboard.json``, with a hash of the recording. The command scores what is not kept or whose
recording changed (all: ``--all``; some: their names), and writes the tables into both pages, between their markers.
The runs one by one (`points`) are kept in ``experiments/measured/points.csv``, and have a page of their own. Where
one of them is no longer within its limit its row is not kept and nothing is written, unless that is taken as it is
(``--accept-outside``). ``--check`` keeps and writes nothing: it simulates all runs, with one seed each, and tells
which have moved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servetwin.core import BadInput

from ..registry.catalog import MEASURED, unknown
from . import points
from .baselines import PREDICTORS, Baseline, baselines
from .comparison.compare_grids import decide, grids_of
from .points import Judged, Point
from .replay import chat as replay_chat
from .replay import external as replay_external
from .replay import llm as replay_llm
from .score import SEEDS, Scored, entries, gaps_of, score
from .scoreboard_rows import LIMIT, ROWS, WITHIN, Gap, Row

#: What is kept.
KEPT = MEASURED / "scoreboard.json"

#: Folder of the checkout.
ROOT = MEASURED.parents[1]


@dataclass(frozen=True)
class Result:
    """What came of a row. *runs* are real ones; a run of a language model has a score for each of its SLOs.
    *winners*, *pairs* and *curves* are (named alike, decided); *others* are the gaps of simpler predictors."""

    recording: str
    runs: int
    scores: int
    gap: Gap
    winners: tuple[int, int]
    pairs: tuple[int, int]
    curves: tuple[int, int]
    others: dict[str, Gap]


def digest(source: str) -> str:
    """A hash of the names and contents of the files of a recording."""
    path = MEASURED / source
    found = hashlib.sha256()
    for file in sorted(path.rglob("*.json.gz")) if path.is_dir() else [path]:
        found.update(f"{file.relative_to(MEASURED).as_posix()}\n".encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def scored_of(row: Row, *, seeds: int = SEEDS, jobs: int = -1) -> list[Scored]:
    """The runs of *row*, simulated."""
    return score(MEASURED / row.source, seeds=seeds, jobs=jobs, dates=row.dates)


def points_of(row: Row, scored: Sequence[Scored]) -> list[Point]:
    """The points of *row*, of what `scored_of` gave."""
    return points.points_of(row.name, row.was_blind, scored)


def of(row: Row, scored: Sequence[Scored], *, seeds: int = SEEDS) -> Result:
    """What *row* amounts to, of what `scored_of` gave."""
    path = MEASURED / row.source
    decided = decide(*grids_of(*entries(scored)))
    # The table itself is passed by: its other simulations are rows of their own.
    simpler = [b for b in baselines(Path(row.source).with_suffix(""), scored, seeds=seeds) if b.name in PREDICTORS]
    return Result(
        digest(row.source),
        _runs(path, scored),
        len(scored),
        _gap(scored),
        (decided.same, decided.decided),
        (decided.same_order, decided.pairs),
        (decided.within, decided.curves),
        {b.name: _gap(b.scored) for b in simpler if _says_all(b, scored)},
    )


def _says_all(other: Baseline, scored: Sequence[Scored]) -> bool:
    """Whether it predicts every run: the gaps of others are of other runs, and do not compare."""
    return len(other.scored) == len(scored) and not any("ttft_limit_s" in s.run.cells for s in scored)


def _gap(scored: Sequence[Scored]) -> Gap:
    found = gaps_of(list(scored))[-1].met
    assert found is not None
    return round(found[0], 2), round(found[1], 2)


def _runs(path: Path, scored: Sequence[Scored]) -> int:
    files = sorted(path.rglob("*.json.gz")) if path.is_dir() else [path]
    campaigns = [file for file in files if file.suffix == ".gz" and replay_llm.is_campaign(file)]
    if campaigns:
        return sum(len(replay_llm.read(file).runs) for file in campaigns)
    chats = [file for file in files if file.suffix == ".gz" and replay_chat.is_chat(file)]
    if chats:
        return sum(len(replay_chat.read(file)[1]) for file in chats)
    externals = [file for file in files if file.suffix == ".gz" and replay_external.is_external(file)]
    return len(externals) or len(scored)


# -- what is kept ---------------------------------------------------------------------------------------


def kept() -> dict[str, Result]:
    """What was scored before, by the names of rows."""

    def pair(values: Sequence[Any]) -> Any:
        return tuple(values)

    found: dict[str, Result] = {}
    for name, data in json.loads(KEPT.read_text()).items() if KEPT.exists() else ():
        for key in ("gap", "winners", "pairs", "curves"):
            data[key] = pair(data[key])
        data["others"] = {other: pair(gap) for other, gap in data["others"].items()}
        found[name] = Result(**data)
    return found


def stale(rows: Iterable[Row] = ROWS) -> list[Row]:
    """The rows of which nothing is kept, or of another recording."""
    known, each = kept(), points.kept()
    return [
        r for r in rows if r.name not in known or r.name not in each or known[r.name].recording != digest(r.source)
    ]


def keep(row: Row, result: Result, own: Sequence[Point] = ()) -> None:
    found = {**kept(), row.name: result}
    lines = [f"{json.dumps(r.name)}: {json.dumps(asdict(found[r.name]))}" for r in ROWS if r.name in found]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    each = {**points.kept(), row.name: own}
    points.KEPT.write_text(points.text([each[r.name] for r in ROWS if r.name in each]), encoding="utf-8")


def lost(found: dict[str, Result]) -> list[str]:
    """Those of `WITHIN` that are no longer within `LIMIT`, a line each."""
    gaps = {name: found[name].gap for name in WITHIN if name in found}
    return [
        f"{name} was within {_text(LIMIT)} points, and is {_text(gap)} off"
        for name, gap in gaps.items()
        if gap[0] > LIMIT[0] or gap[1] > LIMIT[1]
    ]


# -- tables ---------------------------------------------------------------------------------------------

MARKERS = ("<!-- scoreboard: python -m servetwin.experiments.validation.scoreboard -->", "<!-- end of scoreboard -->")


@dataclass(frozen=True)
class Kept:
    """Everything that is kept, by the names of rows."""

    results: dict[str, Result]
    points: dict[str, list[Point]]

    def share_within(self, row: Row) -> str:
        """How many of its points are within their limit."""
        own = self.points[row.name]
        return f"{sum(point.within_limit for point in own)}/{len(own)}"


def everything() -> Kept:
    return Kept(kept(), points.kept())


def short_table(found: Kept) -> str:
    """The table of README.md, whose links are from the root of the checkout."""
    lines = [
        f"| measured runs | runs | predicted blind: mean / max | now: mean / max | within {points.LIMIT:g} |"
        " best without simulating | winners, pairs, curves |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if not row.readme:
            continue
        one = found.results[row.name]
        best = min(one.others.values(), default=None)
        cells = [
            f"[{row.what}](docs/{row.report})",
            str(one.runs),
            _text(row.predicted) if row.predicted else "",
            _text(one.gap),
            found.share_within(row),
            _text(best) if best else "",
            _decisions(one),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def full_table(found: Kept) -> str:
    """The tables of docs/reference/scoreboard.md."""
    lines = [
        "| `servetwin score experiments/measured/...` | what was measured | runs | scores | blind? | predicted |"
        f" now | within {points.LIMIT:g} | winners | pairs | curves |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        one = found.results[row.name]
        source = f"`{row.source}`" if row.dates else f"`{row.source} --baselines`, its line *without run dates*"
        shares = [f"{a}/{b}" if b else "" for a, b in (one.winners, one.pairs, one.curves)]
        said = _text(row.predicted) if row.predicted else ""
        what = f"[{row.what}](../{row.report})"
        numbers = (said, _text(one.gap), found.share_within(row))
        cells = [source, what, str(one.runs), str(one.scores), row.blind, *numbers, *shares]
        lines.append(f"| {' | '.join(cells)} |")
    names = " | ".join(PREDICTORS)
    lines += ["", f"| measured runs | this simulation | {names} |", "|---|---|" + "---|" * len(PREDICTORS)]
    for row in ROWS:
        one = found.results[row.name]
        if row.dates and one.others:
            others = [_text(one.others[name]) if name in one.others else "" for name in PREDICTORS]
            lines.append(f"| {row.what} | {_text(one.gap)} | {' | '.join(others)} |")
    return "\n".join([*lines, "", *_speed()])


def _speed() -> list[str]:
    """The ratios of speed that tests hold."""
    from ..bench.simulators import OVER_BARE, RECORDED

    said = "Speed beside two models of the same system ([performance](../explanation/performance.md)), held by tests:"
    head = ["| | naive SimPy / ServeTwin | ServeTwin / bare loop |", "|---|---|---|"]
    return [said, "", *head, *(f"| {name} | {ratio:g} | {OVER_BARE[name]:g} |" for name, ratio in RECORDED.items())]


def table_of_points(found: Kept) -> str:
    """The tables of docs/reference/scoreboard-points.md."""
    every = [point for row in ROWS for point in found.points[row.name]]
    within = sum(point.within_limit for point in every)
    told = f"{len(every)} points, {within} of them inside, {len(every) - within} outside."
    return "\n\n".join([told, *(points.table(row.what, row.blind, found.points[row.name]) for row in ROWS)])


def _text(gap: Gap) -> str:
    return f"{gap[0]:.2f} / {gap[1]:.2f}"


def _decisions(one: Result) -> str:
    return ", ".join(f"{a}/{b}" for a, b in (one.winners, one.pairs, one.curves)) if one.curves[1] else ""


PAGES: dict[str, Callable[[Kept], str]] = {
    "README.md": short_table,
    "docs/reference/scoreboard.md": full_table,
    "docs/reference/scoreboard-points.md": table_of_points,
}


def with_table(text: str, table: str) -> str:
    """A page's *text* with *table* between the markers."""
    before, first, rest = text.partition(MARKERS[0])
    _, last, after = rest.partition(MARKERS[1])
    if not first or not last:
        raise BadInput("has no place for the scoreboard", right=" ... ".join(MARKERS))
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def write(found: Kept) -> None:
    for name, table in PAGES.items():
        page = ROOT / name
        page.write_text(with_table(page.read_text(), table(found)))


# -- the command ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Score the measured runs, and write the scoreboard into the documents."
    )
    parser.add_argument("names", nargs="*", help="rows to score anew, by their recording")
    parser.add_argument("--all", action="store_true", help="score every row anew")
    parser.add_argument("--jobs", "-j", type=int, default=-1, help="processes; -1: one per core")
    parser.add_argument(
        "--accept-outside", action="store_true", help="keep also what has left its limit of a run, and tell it"
    )
    parser.add_argument(
        "--check", action="store_true", help="keep nothing: tell which runs have moved since, by one seed of each"
    )
    given = parser.parse_args()
    known = [row.source for row in ROWS]
    for name in given.names:
        if name not in known:
            raise SystemExit(f"servetwin: {unknown('recording', name, known)}")
    named = [row for row in ROWS if row.source in given.names]
    if given.check:
        _end(check(named or ROWS, jobs=given.jobs))
        return
    for row in ROWS if given.all else named or stale(ROWS):
        scored = scored_of(row, jobs=given.jobs)
        result, own = of(row, scored), points_of(row, scored)
        judged = points.judge_all(points.kept().get(row.name, ()), own)
        if judged.left and not given.accept_outside:
            _end(judged)
        keep(row, result, own)
        sys.stdout.write(f"{row.name}: {_text(result.gap)}\n{_told(judged)}")
        sys.stdout.flush()
    missing = stale(ROWS)
    if missing:
        raise SystemExit(f"servetwin: not scored yet: {', '.join(row.name for row in missing)}")
    write(everything())
    worse = lost(kept())
    if worse:
        raise SystemExit("\n".join(f"servetwin: {line}" for line in worse))


def check(rows: Iterable[Row] = ROWS, *, seeds: int = 1, jobs: int = -1) -> Judged:
    """What is to be said of the points of *rows*, simulated again with their first *seeds* seeds."""
    known, found = points.kept(), Judged()
    for row in rows:
        now = points_of(row, scored_of(row, seeds=seeds, jobs=jobs))
        found += points.judge(known[row.name], {point.name: point.simulated for point in now}, seeds)
    return found


def _told(judged: Judged) -> str:
    """What moved, a line each."""
    kinds = (("has left its limit", judged.left), ("has come inside", judged.came), ("has moved", judged.moved))
    return "".join(f"  {what}: {line}\n" for what, lines in kinds for line in lines)


def _end(judged: Judged) -> None:
    """Tell what moved; raises `SystemExit` if a point has left its limit."""
    sys.stdout.write(_told(judged) or "no point has moved\n")
    sys.stdout.flush()
    if judged.left:
        raise SystemExit(f"servetwin: {len(judged.left)} points that were inside their limit are outside")


if __name__ == "__main__":
    main()
