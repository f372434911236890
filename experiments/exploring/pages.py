"""What the page is answered: what can be changed, and what came of a change, as HTML and figures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from ..reporting import figures, gantt, page, run_sections
from ..reporting.document import Note, Part, Plot, Plots, Section, Style, Styles, number, percent, plural
from ..spec.overrides import Override
from .controls import MOST_REQUESTS, Offer, offer_of
from .lanes import Call, Lanes
from .simulation import Simulated, read_measured, simulate, trusted, warm_up
from .state import OPTIONS, PARAMS, check, command, overrides, state_of

#: Parts of a run over which goodput is averaged.
BINS = 40
#: The line of what came, whatever served it.
ARRIVED = "requests that arrive"


class Pages:
    """What is answered about the experiment *source* with the overrides *base*; *policies* are offered besides those
    that are known by name."""

    def __init__(self, source: str, base: Sequence[Override], policies: Sequence[str], lanes: Lanes) -> None:
        self.source = source
        self._base = list(base)
        self._lanes = lanes
        # Begun at once: by the time that a browser asks, it is there, and each process has simulated before.
        warm: list[Call] = [(warm_up, (source, self._base))] * (lanes.count - 1)
        self._begun = lanes.begin("", 1, [(offer_of, (source, self._base, list(policies))), *warm])
        threading.Thread(target=read_measured, args=(source, self._base), daemon=True).start()

    @property
    def _offer(self) -> Offer:
        offer: Offer = self._begun[0].result()
        return offer

    def start(self) -> dict[str, Any]:
        """What the page offers. Raises `ServeTwinError`."""
        offer = self._offer
        requests = next((c.value for c in offer.controls if c.key == "workload.requests"), None)
        many = requests is not None and requests > MOST_REQUESTS
        return {
            **asdict(offer),
            "source": self.source,
            "changed": {"workload.requests": MOST_REQUESTS} if many else {},
            "options": OPTIONS,
        }

    def answer(self, tab: str, number: int, content: Any) -> dict[str, Any]:
        """What comes of the state *content*. Raises `ServeTwinError`, and `Stale` if there is a newer question."""
        state = state_of(content)
        check(state, self._offer)
        chosen = [overrides(self._base, state)]
        if state.other is not None:
            chosen.append(overrides(self._base, state, other=True))
        names = _names(chosen, self._offer.policy)
        calls: list[Call] = [(simulate, (self.source, own, name)) for own, name in zip(chosen, names, strict=True)]
        found: list[Simulated] = self._lanes.ask(tab, number, calls)
        html, drawn = shown(found, state.look)
        return {
            "html": html,
            "figures": drawn,
            "title": " beside ".join(names),
            "commands": [command(self.source, own) for own in chosen],
            "files": [one.file for one in found],
            "seconds": max(one.seconds for one in found),
        }


def _names(chosen: Sequence[dict[str, Any]], usual: str) -> list[str]:
    """What the runs are called: by policy, and by its parameters if the policy is the same."""
    names = [str(own.get("policy.name", usual)) for own in chosen]
    names = [name.rpartition("/")[2] for name in names]
    if len(names) < 2 or names[0] != names[1]:
        return names
    params = [{k.removeprefix(PARAMS): v for k, v in own.items() if k.startswith(PARAMS)} for own in chosen]
    said = []
    for own, theirs in zip(params, reversed(params), strict=True):
        differing = [f"{key} {own[key]}" for key in own if own[key] != theirs.get(key)]
        said.append(", ".join(differing) or "otherwise alike")
    if said[0] == said[1]:
        said = ["first", "second"]
    return [f"{name} ({what})" for name, what in zip(names, said, strict=True)]


def shown(found: Sequence[Simulated], look: float) -> tuple[str, list[dict[str, Any]]]:
    """What came out, as HTML whose figures are to be drawn, and these."""
    runs = [one.run for one in found]
    styles = Styles()
    run_sections.style(runs, styles)
    writer = page.Writer(styles)
    body = [_head(runs, styles)]
    for section in _sections(found, look, styles):
        parts = "".join(writer.part(part) for part in section.content)
        body.append(f"<section><h2>{escape(section.title)}</h2>{parts}</section>")
    return "".join(body), writer.figures


def _head(runs: Sequence[run_sections.Run], styles: Styles) -> str:
    """The question, the answer, and the figures that sum it up, side by side."""
    asked, answered = run_sections.question(runs[0]), run_sections.answer(runs[0])
    if len(runs) == 2:
        asked, answered = _between(*runs)
    marks = [page.swatch(styles.of(run.name), line=False, filled=True) for run in runs] if len(runs) > 1 else [""]
    by_label: dict[str, list[str]] = {}
    for i, run in enumerate(runs):
        for label, value in run_sections.facts(run):
            by_label.setdefault(label, ["–"] * len(runs))[i] = value
    tiles = ""
    for label, values in by_label.items():
        told = "".join(f"<dd>{key}{escape(value)}</dd>" for key, value in zip(marks, values, strict=True))
        tiles += f"<div><dt>{escape(label)}</dt>{told}</div>"
    legend = ""
    if len(runs) > 1:
        lines = [page.swatch(styles.of(run.name), line=True, filled=True) for run in runs]
        both = zip(lines, runs, strict=True)
        legend = '<ul class="keys">' + "".join(f"<li>{key} {escape(run.name)}</li>" for key, run in both) + "</ul>"
    return (
        f'<p class="question">{escape(asked)}</p><p class="answer">{escape(answered)}</p>'
        f'{legend}<dl class="facts">{tiles}</dl>'
    )


def _between(first: run_sections.Run, second: run_sections.Run) -> tuple[str, str]:
    """The question that two policies under the same requests answer, and the answer."""
    asked = f"Who meets more SLOs, {first.name} or {second.name}, with {run_sections.load_of(first.experiment)}?"
    a, b = sorted((first, second), key=lambda run: -run.summary["met"])
    if not a.summary["requests"]:
        return asked, "Nobody: no request was sent."
    if a.summary["met"] == b.summary["met"]:
        return asked, f"Both alike: {percent(a.summary['attainment'])} of {plural(a.summary['requests'], 'request')}."
    met = f"{percent(a.summary['attainment'])} of {plural(a.summary['requests'], 'request')}"
    rates = (number(run.summary["request_goodput"]) for run in (a, b))
    return asked, (
        f"{a.name}: {met} in time, against {percent(b.summary['attainment'])} under {b.name};"
        f" goodput {' against '.join(rates)} requests/s."
    )


def _sections(found: Sequence[Simulated], look: float, styles: Styles) -> list[Section]:
    runs = [one.run for one in found]
    levels = run_sections.over_time(runs, styles)
    plots, notes = levels[0], levels[1:]
    assert isinstance(plots, Plots)
    rates = goodput(runs, styles)
    lines = [*plots.lines, *((name, kind) for name, kind in rates.lines if (name, kind) not in plots.lines)]
    over: list[Part] = [Plots([*rates.plots, *plots.plots], lines, shown=9, more="more workers"), *notes]
    sections = [Section("Over time", over)]
    if latencies := run_sections.latency_plots(runs, styles):
        sections.append(Section("Latencies", [*latencies, *run_sections.unfinished(runs)]))
    ends: list[Part] = [run_sections.outcome_plots(runs), *run_sections.tables(runs), *run_sections.groups(runs)]
    sections.append(Section("Outcomes", ends))
    window = gantt.following(runs[0].timeline, runs[0].requests, min(look, runs[0].timeline.end))
    if (charts := run_sections.gantts(runs, window)) is not None:
        title = "The first seconds" if look == 0 else f"From {number(look)} s on"
        sections.append(Section(title, [charts, Note(run_sections.GANTT)]))
    sections.append(trusted([one.experiment for one in found], run_sections.held(runs)))
    return sections


def goodput(runs: Sequence[run_sections.Run], styles: Styles) -> Plots:
    """Requests that arrive, and those that meet their SLO, per second, as means over `BINS` parts of the runs."""
    end = max(run.timeline.end for run in runs)
    edges = np.linspace(0.0, max(end, 1e-9), BINS + 1)
    width = edges[1] - edges[0]
    styles.give(ARRIVED, Style("#9ca3af", "dot", "circle"))
    lines = {ARRIVED: np.histogram([r["arrival"] for r in runs[0].requests], edges)[0] / width}
    for run in runs:
        met = [r["finished"] for r in run.requests if r["outcome"] == "met"]
        name = "requests in time" if len(runs) == 1 else run.name
        rate = np.histogram(met, edges)[0] / width
        lines[name] = np.where(edges[:-1] <= run.timeline.end, rate, np.nan)
    says = ", ".join(f"{name}: {number(float(np.nanmean(v)))} in the mean" for name, v in lines.items())
    drawn = figures.over_time({n: [*map(float, v)] for n, v in lines.items()}, edges, styles, y="requests/s")
    return Plots([Plot("Goodput and arrivals", drawn, says)], [(name, "line") for name in lines])
