"""Reports in a real browser: nothing goes wrong and nothing is clipped, on a desktop, on a phone, and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import pytest
from servetwin.experiments.reporting import report
from servetwin.experiments.sweeps import tables

KINDS = {"a run": ["chat"], "two runs": ["images", "chat"], "a sweep": ["sweep.csv"], "a score": ["score.csv"]}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched() as found:
        yield found


@contextmanager
def opened(chromium: Any, path: Path, size: tuple[int, int] = browser.DESKTOP) -> Iterator[tuple[Any, list[str]]]:
    """A page that shows the report at *path*, and what its console says or what it asks of the network."""
    with browser.page(size, chromium) as page:
        heard: list[str] = []
        page.on("console", lambda m: heard.append(m.text))
        page.on("pageerror", lambda e: heard.append(str(e)))
        page.on(
            "request", lambda r: heard.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
        )
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        yield page, heard


def draw_all(page: Any) -> None:
    """Unfold all, and bring each figure into view until it is drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate("""async () => {
        for (const c of document.querySelectorAll('.canvas')) {
            c.scrollIntoView();
            while (!c.querySelector('.main-svg')) await new Promise((done) => setTimeout(done, 20));
        }
    }""")


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_opens_and_nothing_is_clipped(chromium, results: Path, tmp_path: Path, kind, size):
    pytest.importorskip("plotly")
    report.write([results / name for name in KINDS[kind]], tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html", size) as (page, heard):
        draw_all(page)
        assert page.evaluate(browser.CLIPPED) == []
        assert page.evaluate(browser.OVERLAPPING) == []
        assert heard == []


def test_a_line_is_hidden_by_its_key_and_shown_again(chromium, results: Path, tmp_path: Path):
    pytest.importorskip("plotly")
    report.write([results / "sweep.csv"], tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as (page, heard):
        draw_all(page)
        lines = "document.querySelectorAll('#s1 .canvas:first-of-type .scatterlayer .trace').length"
        first = page.evaluate(lines)
        key = page.locator("#s1 button[data-line='edf']").first
        key.click()
        assert page.evaluate(lines) < first
        assert key.get_attribute("aria-pressed") == "false"
        key.click()
        assert page.evaluate(lines) == first
        assert heard == []


def test_on_paper_all_figures_are_there_in_the_width_of_the_sheet(chromium, results: Path, tmp_path: Path):
    pytest.importorskip("plotly")
    report.write([results / "chat"], tmp_path / "report.html")
    with opened(chromium, tmp_path / "report.html") as (page, heard):
        page.set_viewport_size({"width": 690, "height": 980})  # of an A4 sheet less its margins
        page.emulate_media(media="print")
        page.wait_for_function(
            "[...document.querySelectorAll('.canvas')].every((c) => c.querySelector('.main-svg')"
            " && Math.abs(c.querySelector('.main-svg').clientWidth - c.clientWidth) < 2)"
        )
        assert page.evaluate(browser.CLIPPED) == []
        # What is folded away is named at least: no section is a title alone.
        assert page.evaluate("document.querySelectorAll('summary').length") > 0
        assert page.evaluate("[...document.querySelectorAll('summary')].every((s) => s.offsetParent !== null)")
        assert page.pdf(format="A4").startswith(b"%PDF")
        assert heard == []


def test_a_thousand_points_open_soon_in_a_file_that_can_be_mailed(chromium, tmp_path: Path):
    pytest.importorskip("plotly")
    rows = []
    for policy in range(5):
        for rate in range(1, 11):
            for cv in (1, 2, 3, 4, 5):
                for slo in (1.5, 2.0, 3.0, 5.0):
                    share = 1 / (1 + math.exp(rate - 6 + policy + 0.5 * cv - slo))
                    ends = {"attainment_low": max(share - 0.03, 0), "attainment_high": min(share + 0.03, 1)}
                    where = {"workload": "w", "policy": f"policy-{policy}", "rate": rate, "cv": cv, "slo_factor": slo}
                    counts = {"requests": 500, "met": round(500 * share), "attainment": share, **ends}
                    rows.append({**where, **counts, "request_goodput": rate * share, "p99_e2el_ms": 900 + 100 * rate})
    tables.write(tmp_path / "sweep.csv", rows)
    report.write([tmp_path / "sweep.csv"], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 6_000_000
    with browser.page(browser=chromium) as page:
        # What the page's own thread computes until the figures in view are drawn, however busy the machine is.
        metrics = page.context.new_cdp_session(page)
        metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        page.evaluate("document.querySelector('.canvas').scrollIntoView()")
        page.wait_for_function("document.querySelector('.canvas .main-svg')")
        found = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
        assert 0 < found["TaskDuration"] < 2.0
