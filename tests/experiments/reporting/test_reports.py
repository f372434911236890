"""Reports: what they say is what the results say, in a page that stands alone and in Markdown."""

from __future__ import annotations

import csv
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servetwin.experiments.cli.output.score_output import best_by_quality, best_of
from servetwin.experiments.exploring.pages import goodput
from servetwin.experiments.plotting.latency_plot import draw
from servetwin.experiments.reporting import figures, report, run_sections, sweep_sections
from servetwin.experiments.reporting.document import Document, Note, Plots, Styles, Table, number, percent, seconds
from servetwin.experiments.reporting.sweep_sections import Grid
from servetwin.experiments.sweeps.sweep import SweepFile, sweep

from servetwin import run

KINDS = {"a run": ["chat"], "two runs": ["images", "chat"], "a sweep": ["sweep.csv"], "a score": ["score.csv"]}


def made(results: Path, *names: str, **options) -> Document:
    return report.document([results / name for name in names], **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def parts(document: Document, kind: type) -> list:
    return [part for section in document.sections for part in section.content if isinstance(part, kind)]


def table(document: Document, caption: str) -> Table:
    (found,) = [t for t in parts(document, Table) if t.caption.startswith(caption)]
    return found


def text_of(document: Document) -> str:
    return " ".join([document.question, document.answer, *(n.text for n in parts(document, Note))])


class Page(HTMLParser):
    """What a page loads, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.shown: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self._in: tuple[str, str | None] = ("", None)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.loads += [own[key] for key in ("src", "href") if key in own and not own[key].startswith(("#", "data:"))]
        self._in = (tag, own.get("id"))

    def handle_endtag(self, tag):
        self._in = ("", None)

    def handle_data(self, data):
        if self._in[0] == "script":
            self.scripts[self._in[1]] = data
        elif self._in[0] != "style":
            self.shown.append(data)


# -- a run ----------------------------------------------------------------------------------------------


def test_a_run_is_asked_about_and_answered_in_a_sentence_each(results: Path):
    document = made(results, "chat")
    summary = json.loads((results / "chat" / "summary.json").read_text())
    assert document.question == (
        "How many requests of opt-13b-h100-async meet their SLO under vllm-v1 on h100-knees/opt-13b-tp1 (simulated),"
        " with 25 requests/s, cv 1, token SLOs of 3 (prefill) and 1.5 (decode), ttft within 60 ms?"
    )
    assert document.answer.startswith(f"{summary['met']} of 60 requests ({percent(summary['attainment'])})")
    assert f"{summary['late']} late, {summary['dropped']} dropped" in document.answer
    assert 0 < summary["met"] < 60


def test_latencies_of_tokens_are_those_of_the_summary_and_have_p90(results: Path):
    """TTFT and TPOT from the records of requests are of the same requests as the summary's: their medians agree, and
    so p90, which the summary has not, belongs beside them."""
    (run,) = run_sections.read([results / "chat"])
    values = run_sections._token_latencies(run)
    summary = run.summary["llm"]["llm"]
    for metric in ("TTFT", "TPOT"):
        ordered = sorted(values[metric, "llm"])
        assert len(ordered) == summary["completed"]
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        assert middle == pytest.approx(summary[f"median_{metric.lower()}_ms"])
    rows = {row[0]: row[1:] for row in table(made(results, "chat"), "Latencies").rows}
    assert rows["TTFT"][1] == seconds(summary["median_ttft_ms"] / 1e3)
    mean, median, p90, p99 = (float(re.sub("[^0-9.]", "", cell)) for cell in rows["TPOT"])
    assert median <= p90 <= p99
    assert mean > 0


def test_tokens_are_waited_for_since_the_request_was_sent(tmp_path: Path):
    """An engine that stamps requests when it sees them (`stamp: seen`) has another arrival than the client."""
    settings = {"policy": "vllm-v1", "workload.requests": 60, "rate": 2.0}
    result = run("opt-13b-a6000", settings=settings, folder=tmp_path / "run")
    (shown,) = run_sections.read([tmp_path / "run"])
    values = run_sections._token_latencies(shown)["TTFT", "llm"]
    assert sorted(values) == pytest.approx(sorted(1e3 * t for t in result.requests["ttft"]))
    assert float(np.median(values)) == pytest.approx(result.summary["median_ttft_ms"])
    assert float(np.median(values)) > 1.05 * np.median(
        [1e3 * (s["first_token"] - s["arrival"]) for r in shown.requests for s in r["stages"]]
    )
    (ttft,) = [p for part in parts(made(tmp_path, "run"), Plots) for p in part.plots if p.title.startswith("TTFT")]
    assert f"{number(result.summary['median_ttft_ms'])} in the median" in ttft.says
    _, files = draw([tmp_path / "run"], tmp_path / "a.svg", y="ttft")
    drawn = [float(row["x"]) for row in rows_of(files[-1])]
    assert drawn == pytest.approx(sorted(values))


def test_what_happened_over_time_has_a_figure_each(results: Path):
    document = made(results, "chat")
    titles = [plot.title for plots in parts(document, Plots) for plot in plots.plots]
    for title in ("How requests ended", "Requests waiting: llm", "Batch size: llm", "KV cache use: llm"):
        assert title in titles
    assert "Device busy: gpu0" in titles
    assert any(title.startswith(("Latency end to end", "TTFT of llm")) for title in titles)


def test_lines_of_one_figure_are_told_apart_in_the_legend_and_a_single_one_by_the_title(results: Path):
    document = made(results, "images")
    (over,) = [s for s in document.sections if s.title == "Over time"]
    (waiting, _, busy), legend = over.content[0].plots, [name for name, _ in over.content[0].lines]
    assert legend == ["dit", "vae"] == [trace["name"] for trace in waiting.figure["data"]]
    assert busy.title == "Device busy: gpu0"
    colours = [document.styles.of(name).colour for name in (*legend, "gpu0")]
    assert len(set(colours)) == 3
    assert busy.figure["data"][0]["line"]["dash"] == "solid"
    # On the page of `servetwin explore` goodput stands beside them.
    (run,) = run_sections.read([results / "images"])
    rates = goodput([run], document.styles)
    assert [name for name, _ in rates.lines] == ["requests that arrive", "requests in time"]
    assert document.styles.of("requests in time").colour not in colours


def test_of_how_many_requests_latencies_are_is_said(results: Path):
    document = made(results, "images")
    summary = json.loads((results / "images" / "summary.json").read_text())
    finished = summary["met"] + summary["late"]
    assert summary["dropped"] > 0
    assert finished < 60
    assert dict(document.facts)["finished, of 60"] == str(finished)
    assert f"{finished} of 60 requests finished; {summary['dropped']} dropped ones have no latency" in text_of(
        document
    )
    assert "have no latency" not in text_of(made(results, "chat"))


def test_what_is_seldom_has_a_mark():
    """A bin or two with a batch, and none beside them, are too short for a line to be seen."""
    gap = float("nan")
    values = {"often": [2.0] * 8 + [gap] * 2, "seldom": [gap, 5.0, gap, gap, 6.0, 6.0, gap, gap, gap, 1.0]}
    often, seldom = figures.over_time(values, np.arange(11.0), Styles(), y="requests")["data"]
    assert often["mode"] == "lines"
    assert seldom["mode"] == "lines+markers"
    seen = [x for x, size in zip(seldom["x"], seldom["marker"]["size"], strict=True) if size]
    assert seen == [1, 4, 5, 9]


def test_it_is_said_where_records_do_not_tell_when_a_request_was_dropped(results: Path, tmp_path: Path):
    import shutil

    shutil.copytree(results / "images", tmp_path / "older")
    path = tmp_path / "older" / "requests.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(record["outcome"] == "dropped" for record in records)
    words = "it is not recorded when a request was dropped"
    assert words not in text_of(report.document([tmp_path / "older"]))
    for record in records:
        record.pop("ended", None)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert words in text_of(report.document([tmp_path / "older"]))


def test_two_runs_are_laid_side_by_side(results: Path, tmp_path: Path):
    import shutil

    shutil.copytree(results / "images", tmp_path / "real")
    meta = json.loads((tmp_path / "real" / "meta.json").read_text())
    (tmp_path / "real" / "meta.json").write_text(json.dumps({**meta, "kind": "real"}))
    document = report.document([tmp_path / "real", results / "images"])
    assert document.question.startswith(
        "How close are the simulated and the measured run, real (measured) and images"
    )
    assert document.answer.startswith("By +0.0 points of attainment")
    assert "100.00 % of the requests ended the same way in both." in text_of(document)
    (charts,) = [s for s in document.sections if s.title == "A closer look"]
    real, simulated = charts.content[0].plots
    assert real.figure == simulated.figure  # the same window, the same colours


def test_a_window_that_was_asked_for(results: Path):
    document = made(results, "images", window="1:0.5")
    (charts,) = [s for s in document.sections if s.title == "A closer look"]
    (plot,) = charts.content[0].plots
    assert plot.figure["layout"]["xaxis"]["range"] == [1.0, 1.5]
    for trace in plot.figure["data"]:
        if trace["type"] == "bar":
            assert all(a >= 1.0 and a + b <= 1.5 + 1e-6 for a, b in zip(trace["base"], trace["x"], strict=True))


# -- a sweep --------------------------------------------------------------------------------------------


def grid(*points: tuple[str, float, float], **more) -> Grid:
    points = [("a", 1, 0.9, 0.05), ("b", 1, 0.8, 0.1), ("a", 2, 0.9, 0.05), ("b", 2, 0.5, 0.1)]
    rows = [
        {"workload": "w", "policy": policy, "rate": rate, "met": 1, "attainment": share}
        | {"attainment_low": share - wide, "attainment_high": share + wide}
        for policy, rate, share, wide in points
    ]
    a, _ = sweep_sections.standings(Grid(rows, "t"))
    assert (a.best, a.surely) == (2, 1)


def test_nobody_is_named_best_of_equals():
    rows = [
        {"workload": "w", "policy": policy, "rate": rate, "met": 1, "attainment": share}
        for policy, share in (("a", 0.9), ("b", 0.9), ("c", 0.5))
        for rate in (1, 2)
    ]
    said = sweep_sections.answer(Grid(rows, "t"), 90)
    assert said.startswith("a and b meet alike on average, 90.0 % of the requests (c, the next, 50.0 %). ")
    told = "a and b meet alike, 90.0 % of the requests on average over 2 settings"
    assert best_of(rows) == [f"{told}; next is c with 50.0 %"]
    assert best_of(rows[:4]) == [told]
    rows[0]["attainment"] = 0.95
    assert best_of(rows)[0].startswith("a meets most, 92.5 % of the requests on average over 2 settings; next is b")


def test_quality_in_time_is_said_beside_attainment_where_all_have_it():
    rows = [
        {"workload": "w", "policy": policy, "rate": rate, "met": 1, "attainment": share, "quality_goodput": worth}
        for policy, share, worth in (("a", 0.9, 0.5), ("b", 0.7, 0.6))
        for rate in (1, 2)
    ]
    assert best_by_quality(rows) == ["quality in time is highest with b, 0.600/s; next is a with 0.500/s"]
    assert "Quality in time is highest with b, 0.600/s" in sweep_sections.answer(Grid(rows, "t"), 90)
    (table,) = sweep_sections.ranking_table(Grid(rows, "t"))
    assert table.columns[-1] == "quality in time"
    assert [row[-1] for row in table.rows] == ["0.500/s", "0.600/s"]
    rows[0]["quality_goodput"] = rows[2]["quality_goodput"] = None
    assert best_by_quality(rows) == []
    assert "uality" not in sweep_sections.answer(Grid(rows, "t"), 90)


def test_all_who_hold_the_target_alike_are_named():
    by_rate = {"a": (0.95, 0.93, 0.5), "b": (0.91, 0.9, 0.2), "c": (0.99, 0.92, 0.1), "d": (0.9, 0.1, 0.1)}
    rows = [
        {"workload": "w", "policy": name, "rate": rate, "met": 1, "attainment": share}
        for name, shares in {**by_rate, "e": (0.1, 0.1, 0.1)}.items()
        for rate, share in zip((1.0, 2.0, 3.0), shares, strict=True)
    ]
    held = "by a, b and c on 1 (up to 2 requests/s), by d on 1 (up to 1 requests/s) of 1 curve over the rate."
    assert sweep_sections.answer(Grid(rows, "t"), 90.0).endswith(f". 90 % is held {held}")
    nobody = ". 99.9 % is held by nobody, on none of 1 curve over the rate."
    assert sweep_sections.answer(Grid(rows, "t"), 99.9).endswith(nobody)


def test_differences_seed_by_seed_tell_more_than_intervals():
    """As with ``--versus b``: the intervals overlap at all rates, the differences do not reach 0 at two."""
    points = [("a", 1, 0.9, 0.02, 0.08), ("a", 2, 0.9, -0.02, 0.12), ("a", 3, 0.7, -0.18, -0.02)]
    rows = []
    for policy, rate, share, low, high in points:
        common = {"workload": "w", "rate": rate, "met": 1}
        ends = {"attainment_low": share - 0.1, "attainment_high": share + 0.1}
        versus = {
            "attainment_minus_b": (low + high) / 2,
            "attainment_minus_b_low": low,
            "attainment_minus_b_high": high,
        }
        rows.append(common | {"policy": policy, "attainment": share} | ends | versus)
        other = share - (low + high) / 2
        ends = {"attainment_low": other - 0.1, "attainment_high": other + 0.1}
        rows.append(common | {"policy": "b", "attainment": other} | ends | dict.fromkeys(versus, ""))
    found = {s.line: (s.best, s.surely) for s in sweep_sections.standings(Grid(rows, "t"))}
    assert found == {"a": (2, 1), "b": (1, 1)}


def test_curves_are_the_rows_of_the_table(results: Path):
    document = made(results, "sweep.csv")
    rows = rows_of(results / "sweep.csv")
    (over,) = [s for s in document.sections if s.title == "Over the rate"]
    first = over.content[0].plots[0]
    assert first.title == "Attainment: SLO 1.5"
    line = next(t for t in first.figure["data"] if t["name"] == "edf" and t["mode"] == "lines+markers")
    expected = {
        float(r["rate"]): float(r["attainment"]) for r in rows if r["policy"] == "edf" and r["slo_factor"] == "1.5"
    }
    assert dict(zip(line["x"], line["y"], strict=True)) == pytest.approx(expected, rel=1e-4)
    band = next(t for t in first.figure["data"] if t["name"] == "edf" and t.get("fill"))
    assert len(band["x"]) == 2 * len(line["x"])
    styles = {
        (t["line"]["dash"], t["marker"]["symbol"]) for t in first.figure["data"] if t["mode"] == "lines+markers"
    }
    assert len(styles) == 2  # told apart without colours


def test_intervals_of_many_lines_are_bars_and_not_one_grey():
    def shown(number: int) -> list[dict[str, Any]]:
        names = [f"p{i}" for i in range(number)]
        series = [figures.Series(name, [1.0, 2.0], [0.5, None], [0.4, 0.0], [0.8, 0.0]) for name in names]
        return list(figures.lines(series, Styles(), x="rate", y="met", share=True)["data"])

    assert [bool(t.get("fill")) for t in shown(4)] == [True] * 4 + [False] * 4
    many = shown(5)
    assert not any("fill" in t for t in many)
    assert many[0]["error_y"]["array"] == [0.3, None]
    assert many[0]["error_y"]["arrayminus"] == [0.1, None]


def test_points_that_were_measured_are_laid_over(results: Path):
    document = made(results, "sweep.csv", "score.csv")
    (over,) = [s for s in document.sections if s.title == "Over the rate"]
    measured = [
        trace
        for part in over.content
        for plot in part.plots
        for trace in plot.figure["data"]
        if trace["mode"] == "markers"
    ]
    rows = [r for r in rows_of(results / "measured.csv") if r["policy"] == "neustream"]
    inside = {float(r["rate"]): int(r["met"]) / int(r["requests"]) for r in rows if 2 <= float(r["rate"]) <= 8}
    assert inside
    assert measured == [] or dict(zip(measured[0]["x"], measured[0]["y"], strict=True)) == pytest.approx(inside)
    # The workload's cv is the measured one.
    assert [t["name"] for t in measured] == ["neustream"]


def test_what_was_asked_runs_again(results: Path, tmp_path: Path):
    from servetwin.experiments.reporting.document import Listing
    from servetwin.experiments.sweeps.sweep import points, read

    document = made(results, "sweep.csv")
    (asked,) = [part for part in parts(document, Listing) if part.text.startswith("name:")]
    (tmp_path / "sweep.yaml").write_text(asked.text)
    assert len(points(read(tmp_path / "sweep.yaml"), tmp_path / "sweep.yaml")[0]) == 12
    # One of its points leaves records, by a command whose options are those of its row.
    (over,) = [s for s in document.sections if s.title == "Over time"]
    line = "servetwin run dit-s2-256-rtx4090 --requests 60 --policy edf --rate 8.0 --slo 3.0"
    line += " --set workload.draws=seeded --out point"
    assert over.content[0].text.splitlines() == [line, "servetwin report point --out point.html"]
    assert over.content[0].summary.endswith("For one of the points, with the first of its 2 seeds:")


@pytest.mark.parametrize("seeds", [None, 1, 2])
def test_the_command_for_one_of_the_points_gives_that_point(tmp_path: Path, servetwin, seeds):
    """Published draws and those of a seed are different requests; a sweep with seeds has the latter."""
    block = {"extends": "dit-s2-256-rtx4090", "set": {"requests": 60, "seed": 3}, "grid": {"rate": [2.0, 6.0]}}
    sweep(SweepFile.model_validate({"sweeps": [block]}), tmp_path / "sweep.csv", jobs=1, seeds=seeds)
    row = rows_of(tmp_path / "sweep.csv")[-1]
    document = report.document([tmp_path / "sweep.csv"])
    (over,) = [s for s in document.sections if s.title == "Over time"]
    _, *words = shlex.split(over.content[0].text.splitlines()[0])
    assert words[-2:] == ["--out", "point"]
    found = []
    for seed in (3, 4)[:seeds]:
        words[words.index("--seed") + 1] = str(seed)
        code, out, err = servetwin(*words[:-2], "--json")
        assert (code, err) == (0, "")
        found.append(json.loads(out)["attainment"])
    assert 0 < found[0] < 1
    assert sum(found[: seeds or 1]) / (seeds or 1) == pytest.approx(float(row["attainment"]), abs=1e-6)


# -- a score --------------------------------------------------------------------------------------------


def test_gaps_are_those_of_the_table(results: Path):
    rows = rows_of(results / "score.csv")
    gaps = [abs(float(r["gap_met_pp"])) for r in rows]
    document = made(results, "score.csv")
    assert document.answer.startswith(f"By {sum(gaps) / len(gaps):.2f} points on average")
    assert f"by {max(gaps):.2f} at most" in document.answer
    all_of_them = table(document, "Gaps in percentage points").rows[-1]
    assert [all_of_them[0], *all_of_them[2:5]] == [
        "all",
        str(len(rows)),
        f"{sum(gaps) / len(gaps):.2f}",
        f"{max(gaps):.2f}",
    ]
    worst = table(document, "The 10 furthest off").rows[0]
    assert abs(float(worst[-1])) == pytest.approx(max(gaps), abs=0.005)


def test_cells_of_a_comparison(results: Path, servetwin, tmp_path: Path):
    assert servetwin("compare", results / "sweep.csv", results / "sweep.csv", "--out", tmp_path / "cells.csv")[0] == 0
    document = report.document([tmp_path / "cells.csv"])
    assert document.answer.startswith("By 0.00 points on average (+0.00 with the sign), by 0.00 at most")


# -- what it stands on ----------------------------------------------------------------------------------


def test_what_was_not_measured_is_said(tmp_path: Path):
    from servetwin.experiments.assembly import build
    from servetwin.experiments.spec.loading import load

    devices = ("deployment.devices", {"gpu0": "rtx4090/llama-3.1-8b-tp1-imported"})
    keys = [devices, ("requests", 10), ("policy", "vllm-v1"), ("slo", {"limits": {"ttft_ms": 500}})]
    build.run(load("opt-13b-h100-async", keys), tmp_path / "a")
    document = report.document([tmp_path / "a"])
    (trust,) = [s for s in document.sections if s.title == "How far to trust this"]
    (row,) = trust.content[0].rows
    assert row[0] == "rtx4090/llama-3.1-8b-tp1-imported"
    assert row[1].startswith("imported: ")
    assert "known error" in row[1]


def test_settings_inside_and_outside_of_the_measured_runs(results: Path):
    """The artifact's runs of DiT-S/2 are at rates of 0.5 to 4."""
    rows = {row[1]: row[2:] for row in table(made(results, "sweep.csv"), "Whether these settings lie").rows}
    assert rows["rate, requests/s"] == ["2 to 8", "0.5 to 4", "outside in 4 points of 12"]
    assert rows["SLO factor"][-1] == "inside"
    assert "No measured run of dit-s2-256-rtx4090 was under edf." in text_of(made(results, "sweep.csv"))


# -- the page and the text ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_what_plotly_takes_and_axes_say_what_they_are(results: Path, kind):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    document = made(results, *KINDS[kind])
    figures = [plot.figure for plots in parts(document, Plots) for plot in plots.plots]
    assert figures
    for figure in figures:
        graph_objects.Figure(figure)  # raises where a key or a value is none of Plotly's
        assert figure["layout"]["xaxis"]["title"]["text"]
        assert figure["layout"]["yaxis"].get("title") or figure["layout"].get("barmode") == "stack"
    assert all(plot.says for plots in parts(document, Plots) for plot in plots.plots)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_stands_alone(results: Path, servetwin, tmp_path: Path, kind):
    pytest.importorskip("plotly")
    code, out, err = servetwin("report", *(results / n for n in KINDS[kind]), "--out", tmp_path / "report.html")
    assert (code, err) == (0, "")
    assert "open it in a browser" in out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert len(text.encode()) < 6_000_000
    document = made(results, *KINDS[kind])
    shown = "".join(page.shown)
    assert document.question in shown
    assert document.answer in shown
    assert json.loads(page.scripts["figures"])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_nothing_in_a_result_is_markup_in_the_page(results: Path, tmp_path: Path):
    pytest.importorskip("plotly")
    name = "<img src=x onerror=alert(1)>&</script>"
    text = (results / "sweep.csv").read_text().replace(",edf,", f",{name},")
    (tmp_path / "sweep.csv").write_text(text)
    report.write([tmp_path / "sweep.csv"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == 3
    assert name in json.dumps(json.loads(Page(page).scripts["figures"]))


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_has_the_sentences_and_whole_tables(results: Path, servetwin, kind):
    code, out, err = servetwin("report", *(results / name for name in KINDS[kind]), "--markdown")
    assert (code, err) == (0, "")
    document = made(results, *KINDS[kind])
    assert out.replace("\\", "").count(document.answer) == 1
    for note in parts(document, Note):
        assert (note.text in out.replace("\\", "")) != note.of_plots  # what is about figures is with them alone
    lines = [line for line in out.splitlines() if line.startswith("|")]
    rows = sum(2 + len(t.rows) for t in parts(document, Table)) + 3  # and the figures at the top
    assert len(lines) == rows
    for before, line in pairwise(lines):
        if set(line) <= set("|- "):
            assert before.count("|") == line.count("|")


def test_bad_input_ends_in_a_line(results: Path, servetwin, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "none.csv").write_text("")
    page = tmp_path / "report.html"
    for given, said in (
        ([tmp_path / "missing"], "there is no such file or folder"),
        ([tmp_path / "empty"], "there is no run in it that came to its end"),
        ([tmp_path / "other.csv"], "this is no table that a report can be made of"),
        ([tmp_path / "none.csv"], "this is no table that a report can be made of"),
        ([results / "chat" / "meta.json"], "this is no result"),
        ([results / "chat", "--window", "a:b"], "'a:b' is no window"),
        ([results / "chat", "--window", "-1:2"], "'-1:2' is no window"),
        ([results / "chat", "--window", "nan:2"], "'nan:2' is no window"),
        ([results / "sweep.csv", "--window", "1:2"], "there is no run to look at closely"),
        ([results / "sweep.csv", "--target", "0"], "0 is no attainment to hold"),
        ([results / "sweep.csv", "--markdown"], "Markdown is printed, not written"),
    ):
        code, out, err = servetwin("report", *given, "--out", page)
        assert (code, out, err.count("\n")) == (2, "", 1), given
        assert said in err
        assert not page.exists()
    assert servetwin("report", results / "sweep.csv")[0] == 2
    assert "no kind of page" in servetwin("report", results / "sweep.csv", "--out", tmp_path / "report.pdf")[2]


def test_a_run_that_was_cut_off_is_refused(results: Path, servetwin, tmp_path: Path):
    import shutil

    shutil.copytree(results / "images", tmp_path / "a")
    (tmp_path / "a" / "summary.json").unlink()
    code, _, err = servetwin("report", tmp_path / "a", "--out", tmp_path / "report.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "did not come to its end" in err


DIGITS = [(0, "0"), (1234567.0, "1 234 567"), (12.345, "12.3"), (0.012345, "0.0123"), (1e-9, "0"), (None, "–")]


@pytest.mark.parametrize(("value", "text"), [*DIGITS, (-2.5, "-2.50")])
def test_numbers_have_the_digits_that_say_something(value, text):
    assert number(value) == text


def test_requests_of_several_classes_are_told_apart(results: Path, tmp_path: Path):
    import shutil

    shutil.copytree(results / "chat", tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "requests.jsonl").read_text().splitlines()]
    for line in lines[::3]:
        line["tenant"] = "b|c"
    (tmp_path / "a" / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "a" / "summary.json"
    group = {"requests": 20, "attainment": 0.5, "request_goodput": 1.25, "mean_e2el_ms": 250.0, "p99_e2el_ms": 1500.0}
    fair = {"fairness": {"jain_attainment": 0.75, "jain_service": 0.5}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "tenants": {"b|c": group}, **fair}))
    document = report.document([tmp_path / "a"])
    (ends,) = [p for plots in parts(document, Plots) for p in plots.plots if p.title == "How requests ended"]
    assert ends.figure["data"][0]["y"] == ["all", "tenant b|c", "no tenant"]
    for name, shift in (("tenant b|c", 0), ("no tenant", None)):
        mine = [line for i, line in enumerate(lines) if (i % 3 == 0) == (shift == 0)]
        shown = {
            trace["name"]: trace["customdata"][ends.figure["data"][0]["y"].index(name)]
            for trace in ends.figure["data"]
        }
        assert shown["met"] == sum(line["outcome"] == "met" for line in mine)
    assert table(document, "By class and tenant").rows == [["tenant b|c", "20", "50.0 %", "1.25", "250 ms", "1.50 s"]]
    assert "Jain's index over tenants: 0.750 of attainments, 0.500 of service by weight" in text_of(document)
    assert "tenant b\\|c" in report.as_markdown([tmp_path / "a"])


def test_many_runs_of_a_folder_are_a_grid_and_real_ones_are_laid_over(tmp_path: Path):
    from servetwin.experiments.assembly import build
    from servetwin.experiments.spec.loading import load

    for policy in ("edf", "fcfs"):
        for rate in (2.0, 4.0, 8.0):
            keys = [("policy", policy), ("rate", rate), ("requests", 10)]
            build.run(load("dit-s2-256-rtx4090", keys), tmp_path / "grid" / f"{policy}-{rate:g}")
    only_simulated = report.document([tmp_path / "grid"])
    assert dict(only_simulated.facts)["points"] == "6"
    meta = tmp_path / "grid" / "edf-4" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "kind": "real"}))
    document = report.document([tmp_path / "grid"])
    (over,) = [s for s in document.sections if s.title == "Over the rate"]
    (plots,) = over.content  # one figure for each quantity, under one legend
    assert plots.plots[0].title == "Attainment"
    assert ("measured", "measured") in plots.lines
    (points,) = [t for t in plots.plots[0].figure["data"] if t["mode"] == "markers"]
    assert (points["name"], points["x"]) == ("edf", [4.0])
    assert dict(document.facts)["measured points"] == "1"


def test_a_run_in_which_nothing_was_served(tmp_path: Path):
    from servetwin.experiments.assembly import build
    from servetwin.experiments.spec.loading import load

    keys = [("policy", "clockwork"), ("slo", 0.5), ("requests", 10)]
    build.run(load("dit-s2-256-rtx4090", keys), tmp_path / "none")
    document = report.document([tmp_path / "none"])
    assert document.answer == "0 of 10 requests (0.0 %), a goodput of 0 requests/s; 0 late, 10 dropped, 0 failed."
    assert dict(document.facts)["latency p99"] == "–"
    assert all(t.rows for t in parts(document, Table))
