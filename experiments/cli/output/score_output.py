"""What ``servetwin score``, ``compare`` and ``search`` print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from servetwin.core.arithmetic import float_sum

from .terminal import print_table, say, table

if TYPE_CHECKING:
    from ...capacity.search import Answer
    from ...validation.baselines import Baseline
    from ...validation.comparison.compare_grids import Decisions
    from ...validation.envelope.standing import Standing
    from ...validation.replay.external import Means
    from ...validation.score import Scored


def show_gaps(scored: list[Scored]) -> None:
    """How far off the simulation is, in one sentence and by workload and policy."""
    from ...validation.score import gaps_of

    found = gaps_of(scored)
    every = found[-1]
    whole = "run" if every.runs == 1 else "runs"
    for what, gap in (("met", every.met), ("finished", every.finished)):
        if gap is not None:
            off = f"{gap[0]:.2f} percentage points off on average, {gap[1]:.2f} at most"
            say(f"{every.runs} {whole} simulated: requests {what} are {off}")
            break
    with_batch = any(p.batch for p in found)
    columns = [("workload", "left"), ("policy", "left"), ("runs", "right")]
    columns += [(f"{what}\n{how}", "right") for what in ("met", "finished") for how in ("mean", "max")]
    columns += [("mean batch\nmean, %", "right")] if with_batch else []
    say("|simulated - measured|, in percentage points of the requests sent")
    lines = table(*columns)
    for p in found:
        gaps = [f"{g[k]:.2f}" if g else "" for g in (p.met, p.finished) for k in (0, 1)]
        batch = [f"{p.batch[0]:.2f}" if p.batch else ""] if with_batch else []
        lines.add_row(p.workload, p.policy, str(p.runs), *gaps, *batch, style="bold" if p.workload == "all" else None)
    print_table(lines)


def show_means(found: list[tuple[str, str | None, list[Means]]]) -> None:
    """Of runs that somebody else measured: latencies in seconds, measured and simulated, and what they stand on."""
    for name, basis, means in found:
        say(f"{name}, in seconds")
        known = any(m.authors_error is not None for m in means)
        columns = [("", "left"), *((head, "right") for head in ("measured", "simulated", "off, %"))]
        lines = table(*columns, *([("authors' own, %", "right")] if known else []))
        for m in means:
            was, off, own = m.measured, m.off, m.authors_error
            lines.add_row(
                m.what,
                "" if was is None else f"{was:.4f}",
                f"{m.simulated:.4f}",
                "" if off is None else f"{off:+.2f}",
                *(["" if own is None else f"{own:+.1f}"] if known else []),
            )
        print_table(lines)
        if basis is not None:
            say(basis)


def show_latencies(scored: Sequence[Scored]) -> None:
    """Of runs of language models: their latencies, one run as `show_means` has it, of many how far off they are."""
    told = [s for s in scored if s.latencies]
    if len(told) == 1:
        show_means([(told[0].run.cells.get("folder", told[0].run.workload), None, list(told[0].latencies))])
    elif told:
        say(f"latencies of {len(told)} runs, |simulated / measured - 1| in percent")
        lines = table(("", "left"), ("mean", "right"), ("max", "right"))
        for what in dict.fromkeys(m.what for s in told for m in s.latencies):
            off = [abs(m.off) for s in told for m in s.latencies if m.what == what and m.off is not None]
            if off:
                lines.add_row(what, f"{float_sum(off) / len(off):.1f}", f"{max(off):.1f}")
        print_table(lines)
    for note in dict.fromkeys(note for s in scored for note in s.notes):
        say(note)


def show_baselines(found: list[Baseline], target: float, floor: float | None) -> None:
    """A line for each way of predicting the runs: its gaps, and what one would decide by it."""
    from ...validation.baselines import favourite
    from ...validation.comparison.compare_grids import decide, grids_of
    from ...validation.score import entries, gaps_of

    say("beside it, what is simpler; each run left out of what predicts it")
    columns: list[tuple[str, Any]] = [("predicted by", "left"), ("runs", "right")]
    columns += [(f"{what}\n{how}", "right") for what in ("met", "finished") for how in ("mean", "max")]
    lines = table(*columns, ("winners", "right"), ("pairs", "right"), ("curves", "right"))
    for one in found:
        part = gaps_of(one.scored)[-1]
        decided = decide(*grids_of(*entries(one.scored)), target=target, floor=floor)
        gaps = [f"{g[k]:.2f}" if g else "" for g in (part.met, part.finished) for k in (0, 1)]
        shares = (
            (decided.same, decided.decided),
            (decided.same_order, decided.pairs),
            (decided.within, decided.curves),
        )
        lines.add_row(one.name, str(part.runs), *gaps, *(f"{a}/{b}" if b else "" for a, b in shares))
    print_table(lines)
    best = favourite(found[0].scored, floor)
    if best is not None:
        say(
            f"'{best.policy} always wins' names {best.decided} of {best.settings_decided} winners beyond the noise, "
            f"and {best.won} of {best.settings} in all ({best.tied} tied)"
        )


def changed_since(scored: list[Scored]) -> list[str]:
    """A line for each thing that is not what it was when the runs were made."""
    return [
        f"{n} is not what it was when the runs were made" for n in dict.fromkeys(p for s in scored for p in s.changed)
    ]


def show_decisions(found: Decisions, title: str = "") -> None:
    """What follows from two grids, one line each, and below it where they disagree; nothing if nothing does. *title*
    says which the two are."""
    if not found.settings and not found.curves:
        return
    if title:
        say(title)
    noise = found.noise
    known = sorted(noise.deviations.values())
    size = " to ".join(f"{x:.2f}" for x in dict.fromkeys(known[:1] + known[-1:]))
    spread = f"deviation {size} points by workload, " if size else ""
    say(f"noise: {f'{noise.fixed:g} points, ' if noise.fixed is not None else spread}{noise.source}")
    undecided = found.settings - found.decided
    say(f"same winner in {found.same} of {found.decided} settings; {undecided} more are within the noise")
    tau = "" if found.tau is None else f"; Kendall's tau {found.tau:.2f} on average"
    say(f"same order of {found.same_order} of {found.pairs} pairs of policies{tau}")
    if any(found.tied):
        one, other, both = found.tied
        say(f"tied pairs, which agree with nothing: {one} in the first, {other} in the second, {both} in both")
    say(f"largest rate at {found.target:g} % within one step on {found.within} of {found.curves} curves")
    for what, where in (
        ("deployments differ", found.unlike),
        ("winner", found.others),
        ("order", [*found.swaps, *found.ties]),
        ("rate", found.off),
    ):
        for line in where:
            say(f"  {what}: {line}")


def show_answers(find: str, answers: Sequence[Answer]) -> None:
    """The answers of ``servetwin search`` and, in a line each, what they stand on."""
    columns = [
        ("workload", "left"),
        ("policy", "left"),
        ("deployment", "left"),
        ("target", "right"),
        (find, "right"),
    ]
    lines = table(*columns, ("95 % interval", "right"), ("backlog", "left"))
    for a in answers:
        known = a.found.low is not None and a.found.high is not None
        span = f"{a.found.low:.4g} to {a.found.high:.4g}" if known else "none"
        name = a.found.target.name
        lines.add_row(a.workload, a.policy, a.deployment, name, f"{a.found.value:.4g}", span, a.stable.backlog)
    print_table(lines)
    from ...capacity.root_search import QUANTITIES

    for a in answers:
        twice = "; longer runs agree" if a.twice else ""
        settled = f"after {a.settled}" if a.settled is not None else "not within half a run"
        length = f"runs of {a.requests} requests, the first {a.warm_up} not counted (latencies steady {settled})"
        say(f"{a.workload}, {a.policy}, {a.found.target.name}: {length}{twice}")
        if not math.isnan(a.found.fails):
            places = f"met at {a.found.value:.4g}, not met at {a.found.fails:.4g}"
            say(f"  {a.found.target.name} {places} {QUANTITIES[find].unit}")
        for note in a.found.notes:
            say(f"  {note}")
    for a in answers:
        if a.beside is not None:
            say(_beside(a, QUANTITIES[find].unit))


def _beside(answer: Answer, unit: str) -> str:
    """How much more an answer is than that of another policy, in a line."""
    gap = answer.beside
    assert gap is not None
    told = f"{answer.workload}, {answer.found.target.name}: {answer.policy} beside {gap.versus}"
    if gap.mean is None:
        return f"{told}: {gap.why}"
    span = f" ({gap.low:+.3g} to {gap.high:+.3g})" if gap.low is not None and gap.high is not None else ""
    why = f"; {gap.why}" if gap.why else ""
    return f"{told}: {gap.mean:+.3g}{span} {unit}, seed by seed in runs of {gap.requests} requests{why}"


def best_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who of a sweep's *rows* serves most, in a sentence; none where there is nothing to tell apart."""
    from ...reporting.sweep_sections import Grid, alike, listed, standings

    ranked = standings(Grid(list(rows), "the sweep")) if rows else []
    if len(ranked) < 2:
        return []
    first = ranked[0]
    names = alike(ranked)
    who = f"{first.line} meets most" if len(names) == 1 else f"{listed(names)} meet alike"
    settings = "1 setting" if first.settings == 1 else f"{first.settings} settings"
    told = f"{who}, {100 * first.attainment:.1f} % of the requests on average over {settings}"
    for second in ranked[len(names) : len(names) + 1]:
        told += f"; next is {second.line} with {100 * second.attainment:.1f} %"
    return [told]


def best_by_quality(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who of a sweep's *rows* has most quality in time, in a sentence; none where quality is not known of all."""
    from ...reporting.sweep_sections import Grid, by_quality, standings

    ranked = by_quality(standings(Grid(list(rows), "the sweep"))) if rows else []
    if len(ranked) < 2:
        return []
    (first, most), (second, less) = ranked[:2]
    return [f"quality in time is highest with {first.line}, {most}; next is {second.line} with {less}"]


def answer_dict(row: dict[str, Any], answer: Answer, stands: Standing) -> dict[str, Any]:
    """An answer of a search for ``--json``: its *row* in a table, with the notes one by one, where it fails, and
    where it *stands* against recorded runs."""
    fails = None if math.isnan(answer.found.fails) else answer.found.fails
    return {**row, "notes": [*answer.found.notes], "not_met_at": fails, "validity": stands.as_dict()}


def _number(column: str, cell: Any) -> Any:
    """A *cell* of a table as it is in JSON: a number where it holds one, None where nothing stands."""
    if not isinstance(cell, str) or column in ("workload", "policy", "folder"):
        return cell
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell or None


def score_dict(
    scored: list[Scored],
    means: list[tuple[str, str | None, list[Means]]],
    decided: Decisions,
    baselines: list[Baseline] | None,
) -> dict[str, Any]:
    """A score for ``--json``: gaps in percentage points as mean and largest, of workloads and policies and of all."""
    from ...validation.score import gaps_of

    own = [(s.run.cells.get("folder", s.run.workload), None, list(s.latencies)) for s in scored if s.latencies]
    changed = dict.fromkeys(name for s in scored for name in s.changed)
    content: dict[str, Any] = {
        "runs": [{key: _number(key, cell) for key, cell in s.line().items()} for s in scored],
        "gaps": [asdict(gaps) for gaps in gaps_of(scored)],
        "latencies": [
            {"run": name, "basis": basis, "seconds": [{**asdict(m), "off": m.off} for m in found]}
            for name, basis, found in [*means, *own]
        ],
        "decisions": decided.as_dict(),
        "changed": [*changed],
    }
    if baselines is not None:
        content["baselines"] = [
            {"predicted_by": one.name, **asdict(gaps_of(one.scored)[-1])} for one in baselines if one.scored
        ]
    return content
