"""The scoreboard of README.md and docs/reference/scoreboard.md, written by running this module.

    python -m servetwin.experiments.validation.scoreboard

Each row is what ``servetwin score`` gives for the runs of one recording, and beside it what predictors give that
simulate nothing. To score them all takes some ten minutes on two idle cores, so what came out is kept in
``experiments/measured/scoreboard.json``, with a hash of the recording. The command scores what is not kept or whose
recording changed (all: ``--all``; some: their names), and writes the tables into both pages, between their markers.
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
from .baselines import PREDICTORS, Baseline, baselines
from .comparison.compare_grids import decide, grids_of
from .replay import chat as replay_chat
from .replay import external as replay_external
from .replay import llm as replay_llm
from .score import SEEDS, Scored, entries, gaps_of, score

#: What is kept.
KEPT = MEASURED / "scoreboard.json"

#: Folder of the checkout.
ROOT = MEASURED.parents[1]

#: (mean, largest) of the absolute gaps, in percentage points of the requests.
Gap = tuple[float, float]

#: How far off the simulation may be at most.
LIMIT: Gap = (1.0, 3.0)

#: Rows that are within `LIMIT`, and stay so: a program that loses one of them is not merged.
WITHIN = (
    "h100-quiet/diffusion",
    "h200-policies/diffusion",
    "h200-compiled/diffusion",
    "h200-compiled-whole/diffusion",
    "h200-pair",
    "h200-long/llm-opt-13b.json.gz",
    "h100-long/llm-opt-13b.json.gz",
)


@dataclass(frozen=True)
class Row:
    """Runs that are scored together: what they are, and what was said of them before they were seen.

    *source* is below ``experiments/measured``. *blind* says in words whether the simulation was fixed before the runs
    were seen, and *predicted* is its gap as it was then, from *report*, where that was written down. Without *dates*
    nobody tells the simulation when the runs were made, nor what is known of that day.
    """

    source: str
    what: str
    report: str
    blind: str
    predicted: Gap | None = None
    dates: bool = True

    @property
    def name(self) -> str:
        return self.source if self.dates else f"{self.source}, dates unknown"


ROWS = (
    Row(
        "neustream_ae.csv",
        "5 image models, RTX 4090, NeuStream's own runs",
        "reports/2026-11-neustream-artifact.md",
        "no: the speed of the host on each date is fitted to them",
    ),
    Row(
        "neustream_ae.csv",
        "the same, host speeds not known",
        "reports/2026-11-neustream-artifact.md",
        "no: costs were measured from their logs",
        dates=False,
    ),
    Row(
        "h100-quiet/diffusion",
        "5 image models, H100",
        "reports/2026-11-h100-diffusion.md",
        "profiles before runs, nothing fitted",
    ),
    Row(
        "h200/diffusion",
        "5 image models, H200",
        "reports/2026-11-h200-diffusion.md",
        "profiles before runs, nothing fitted",
    ),
    Row(
        "h200-policies/diffusion",
        "DiT-S/2 and Stable Diffusion 256, H200, our own policy beside NeuStream and EDF",
        "reports/2026-11-h200-policies.md",
        "predicted blind, nothing changed since",
        (0.29, 1.00),
    ),
    Row(
        "h200-compiled/diffusion",
        "DiT-XL/2, compiled, and Stable Diffusion 512, not compiled, H200, three policies at and above the knee",
        "reports/2026-11-h200-compiled.md",
        "predicted blind; the program has changed since",
        (0.27, 0.75),
    ),
    Row(
        "h200-compiled-whole/diffusion",
        "Stable Diffusion 512, compiled, H200, three policies at and above the knee",
        "reports/2026-11-h200-compiled.md",
        "predicted blind; the program has changed since",
        (0.68, 1.40),
    ),
    Row(
        "h200-pair",
        "DiT-XL/2 and Stable Diffusion 512 on two H200s, behind routers and with stages apart",
        "reports/2026-11-h200-pair.md",
        "predicted blind, nothing changed since",
        (0.52, 2.79),
    ),
    Row(
        "h200-shapes",
        "Stable Diffusion XL and FLUX.1 dev, requests of three sizes, H200, three policies and a new one",
        "reports/2026-11-h200-shapes.md",
        "predicted blind, nothing changed since",
        (0.42, 2.33),
    ),
    Row(
        "h200-long/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, four H200s",
        "reports/2026-11-h200-llm.md",
        "predicted blind; the program has changed since",
        (0.96, 4.17),
    ),
    Row(
        "h200-lengths/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, two H200s, five policies, two kinds of lengths",
        "reports/2026-11-h200-lengths.md",
        "predicted blind, nothing changed since",
        (2.11, 12.73),
    ),
    Row(
        "h200-lengths/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, five policies, two kinds of lengths",
        "reports/2026-11-h200-lengths.md",
        "predicted blind, nothing changed since",
        (3.07, 7.80),
    ),
    Row(
        "h200-policies/runs-opt-13b.json.gz",
        "OPT-13B in vLLM, H200, our own policy beside NeuStream's and vLLM's, at and past their knees",
        "reports/2026-11-h200-policies.md",
        "predicted blind, nothing changed since",
        (3.71, 13.12),
    ),
    Row(
        "h200-prefix/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM with its prefix cache, H200, shared prompts and histories, our policy beside vLLM's",
        "reports/2026-11-h200-prefix.md",
        "predicted blind, nothing changed since",
        (4.84, 17.18),
    ),
    Row(
        "h200-cached/runs-llama-3.1-8b.json.gz",
        "the same again, another H200, the profile mended before",
        "reports/2026-11-h200-cached.md",
        "predicted blind, nothing changed since",
        (3.84, 9.97),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, five policies, the profile made of requests too",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (1.42, 5.50),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b-caching.json.gz",
        "the same with vLLM's prefix cache, shared prompts and histories, our policy beside vLLM's",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (2.41, 5.43),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b-elsewhere.json.gz",
        "six of these runs on another machine, by the profile of the first: its host is slower",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (5.85, 20.83),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, eight policies, two kinds of lengths, one profile",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (5.30, 63.94),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b-caching.json.gz",
        "the same with vLLM's prefix cache, on the machine's other GPU",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (4.52, 10.01),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b-caching-gpu1.json.gz",
        "these and four more on the first GPU ten minutes later, by the profile of the other",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (12.90, 36.41),
    ),
    Row(
        "h200-full/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, six policies, four kinds of loads, one profile",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (2.33, 7.34),
    ),
    Row(
        "h200-servers/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in two of vLLM's own servers behind our router, two H200s, five routers",
        "reports/2026-11-h200-servers.md",
        "predicted blind, nothing changed since",
        (2.00, 4.70),
    ),
    Row(
        "h200-chat/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, four policies",
        "reports/2026-11-h200-chat.md",
        "predicted blind; the program has changed since",
        (23.0, 65.6),
    ),
    Row(
        "h200-chat/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, heavy-tailed lengths",
        "reports/2026-11-h200-chat.md",
        "predicted blind; the program has changed since",
        (1.47, 4.4),
    ),
    Row(
        "h100-long/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, four H100s",
        "reports/2026-11-h100-llm.md",
        "predicted blind; the program has changed since",
        (0.87, 3.28),
    ),
    Row(
        "h200-long/llm-opt-30b.json.gz",
        "OPT-30B in vLLM, H200, short runs",
        "reports/2026-11-h200-llm.md",
        "no",
    ),
    Row(
        "rtx4090",
        "Llama-3.1-8B in vLLM, measured and its kernels timed by others, under 25 limits",
        "explanation/validation.md#a-run-that-others-measured",
        "no, and nothing fitted",
    ),
    Row(
        "h100/llm-opt-13b-eager.json.gz",
        "OPT-13B in vLLM without CUDA graphs, H100: runs that do not repeat themselves",
        "reports/2026-11-h100-llm.md",
        "no",
    ),
)


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


def of(row: Row, *, seeds: int = SEEDS, jobs: int = -1) -> Result:
    """Score the runs of *row*."""
    path = MEASURED / row.source
    scored = score(path, seeds=seeds, jobs=jobs, dates=row.dates)
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
    known = kept()
    return [r for r in rows if r.name not in known or known[r.name].recording != digest(r.source)]


def keep(row: Row, result: Result) -> None:
    found = {**kept(), row.name: result}
    lines = [f"{json.dumps(r.name)}: {json.dumps(asdict(found[r.name]))}" for r in ROWS if r.name in found]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


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


def short_table(found: dict[str, Result]) -> str:
    """The table of README.md, whose links are from the root of the checkout."""
    lines = [
        "| measured runs | runs | predicted blind: mean / max | now: mean / max | best without simulating |"
        " winners, pairs, curves |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        one = found[row.name]
        best = min(one.others.values(), default=None)
        cells = [
            f"[{row.what}](docs/{row.report})",
            str(one.runs),
            _text(row.predicted) if row.predicted else "",
            _text(one.gap),
            _text(best) if best else "",
            _decisions(one),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def full_table(found: dict[str, Result]) -> str:
    """The tables of docs/reference/scoreboard.md."""
    lines = [
        "| `servetwin score experiments/measured/...` | what was measured | runs | scores | blind? | predicted |"
        " now | winners | pairs | curves |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        one = found[row.name]
        source = f"`{row.source}`" if row.dates else f"`{row.source} --baselines`, its line *without run dates*"
        shares = [f"{a}/{b}" if b else "" for a, b in (one.winners, one.pairs, one.curves)]
        said = _text(row.predicted) if row.predicted else ""
        what = f"[{row.what}](../{row.report})"
        cells = [source, what, str(one.runs), str(one.scores), row.blind, said, _text(one.gap), *shares]
        lines.append(f"| {' | '.join(cells)} |")
    names = " | ".join(PREDICTORS)
    lines += ["", f"| measured runs | this simulation | {names} |", "|---|---|" + "---|" * len(PREDICTORS)]
    for row in ROWS:
        one = found[row.name]
        if row.dates and one.others:
            others = [_text(one.others[name]) if name in one.others else "" for name in PREDICTORS]
            lines.append(f"| {row.what} | {_text(one.gap)} | {' | '.join(others)} |")
    return "\n".join(lines)


def _text(gap: Gap) -> str:
    return f"{gap[0]:.2f} / {gap[1]:.2f}"


def _decisions(one: Result) -> str:
    return ", ".join(f"{a}/{b}" for a, b in (one.winners, one.pairs, one.curves)) if one.curves[1] else ""


PAGES: dict[str, Callable[[dict[str, Result]], str]] = {
    "README.md": short_table,
    "docs/reference/scoreboard.md": full_table,
}


def with_table(text: str, table: str) -> str:
    """A page's *text* with *table* between the markers."""
    before, first, rest = text.partition(MARKERS[0])
    _, last, after = rest.partition(MARKERS[1])
    if not first or not last:
        raise BadInput("has no place for the scoreboard", right=" ... ".join(MARKERS))
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def write(found: dict[str, Result]) -> None:
    for name, table in PAGES.items():
        page = ROOT / name
        page.write_text(with_table(page.read_text(), table(found)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Score the measured runs, and write the scoreboard into the documents."
    )
    parser.add_argument("names", nargs="*", help="rows to score anew, by their recording")
    parser.add_argument("--all", action="store_true", help="score every row anew")
    parser.add_argument("--jobs", "-j", type=int, default=-1, help="processes; -1: one per core")
    given = parser.parse_args()
    known = [row.source for row in ROWS]
    for name in given.names:
        if name not in known:
            raise SystemExit(f"servetwin: {unknown('recording', name, known)}")
    chosen = [row for row in ROWS if row.source in given.names] if given.names else stale()
    for row in ROWS if given.all else chosen:
        result = of(row, jobs=given.jobs)
        keep(row, result)
        sys.stdout.write(f"{row.name}: {_text(result.gap)}\n")
        sys.stdout.flush()
    missing = stale()
    if missing:
        raise SystemExit(f"servetwin: not scored yet: {', '.join(row.name for row in missing)}")
    write(kept())
    worse = lost(kept())
    if worse:
        raise SystemExit("\n".join(f"servetwin: {line}" for line in worse))


if __name__ == "__main__":
    main()
