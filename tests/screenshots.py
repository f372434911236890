"""Pictures of pages for the documents, on a desktop and on a phone: ``python tests/screenshots.py`` makes all anew.

Reports (a sweep of a language model, the score of the diffusion runs of the NeuStream artifact, one run of a language
model), the page of ``servetwin explore``, and the documentation site. ``report``, ``explore`` or ``site`` behind the
command makes those alone. Needs the extras ``[report]``, ``[docs]`` and ``[browser]``, and a Chromium.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
from PIL import Image
from servetwin.experiments.assembly import build
from servetwin.experiments.exploring.lanes import Lanes
from servetwin.experiments.exploring.pages import Pages
from servetwin.experiments.exploring.server import Server
from servetwin.experiments.reporting import report
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.sweep import SweepFile, sweep
from servetwin.experiments.validation.comparison import run_table
from servetwin.experiments.validation.score import score

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "img"
#: Colours of a picture, and the kB that it may have.
COLOURS, MOST = 256, 150

SWEEP = {
    "name": "opt-13b-h100",
    "about": "Four policies for OPT-13B on an H100",
    "sweeps": [
        {
            "extends": "opt-13b-h100-async",
            "set": {"requests": 300},
            "grid": {
                "policy": ["neustream-llm", "vllm-v1", "sarathi", "edf-llm"],
                "rate": [10, 15, 20, 25, 30],
                "cv": [1, 2],
            },
        }
    ],
}


def results(folder: Path) -> dict[str, list[Path]]:
    """What the reports are about, made in *folder*; by the names of the pictures."""
    sweep(SweepFile.model_validate(SWEEP), folder / "sweep.csv", seeds=3)
    score(run_table.NEUSTREAM, folder / "score.csv", seeds=1)
    chosen = [("policy", "sarathi"), ("rate", 30.0), ("requests", 600), ("slo.limits", {"ttft_ms": 100})]
    build.run(load("opt-13b-h100-async", chosen), folder / "run")
    names = {"sweep": "sweep.csv", "score": "score.csv", "run": "run"}
    return {f"report-{name}": [folder / file] for name, file in names.items()}


def shoot(page: Any, name: str) -> None:
    """Keep what *page* shows as a picture of few colours, which has a few ten kB."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot = shot.quantize(COLOURS, dither=Image.Dither.NONE)
    shot.save(IMAGES / f"{name}.png", optimize=True)
    kilobytes = (IMAGES / f"{name}.png").stat().st_size / 1000
    print(f"{IMAGES / name}.png: {kilobytes:.0f} kB")
    assert kilobytes < MOST


@contextmanager
def pages(chromium: Any, name: str, heights: tuple[int, int]) -> Iterator[Any]:
    """(page, name of its picture) on a desktop and on a phone."""
    with (
        browser.page((browser.DESKTOP[0], heights[0]), chromium) as desktop,
        browser.page((browser.PHONE[0], heights[1]), chromium) as phone,
    ):
        yield (desktop, name), (phone, f"{name}-phone")


def of_reports(chromium: Any, made: Path) -> None:
    for name, given in results(made).items():
        file = made / f"{name}.html"
        report.write(given, file)
        with pages(chromium, name, (2100, 1700)) as both:
            for page, picture in both:
                page.goto(file.as_uri())
                page.wait_for_selector("html[data-ready=yes]", state="attached")
                page.wait_for_timeout(1500)
                shoot(page, picture)


def of_explore(chromium: Any, made: Path) -> None:
    """Two policies for OPT-13B on an H100, by a link, which is what the page's controls would have made."""
    lanes = Lanes(2)
    server = Server(Pages("opt-13b-h100-async", [], [], lanes), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    changed = {"workload.arrivals.rate": 26, "policy.name": '"edf-llm"', "with.policy.name": '"sarathi"'}
    link = "#of=opt-13b-h100-async&" + "&".join(f"{key}={value}" for key, value in changed.items())
    try:
        with pages(chromium, "explore", (1500, 1700)) as both:
            for page, picture in both:
                page.goto(server.invitation)
                page.wait_for_selector("html[data-ready=yes][data-busy=no]", state="attached")
                page.evaluate("(link) => { location.hash = link; }", link)
                page.wait_for_selector("#results :text('sarathi') >> nth=0")
                page.wait_for_selector("html[data-busy=no][data-whole=yes]", state="attached")
                if picture.endswith("-phone"):
                    page.evaluate("document.querySelector('label[for=seed]').scrollIntoView()")
                page.wait_for_timeout(1500)
                shoot(page, picture)
    finally:
        server.shutdown()
        server.server_close()
        lanes.close()


def of_site(chromium: Any, made: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(made / "site")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    with browser.served(made / "site", {}) as address, pages(chromium, "site", (1300, 1300)) as both:
        for page, picture in both:
            page.goto(f"{address}/index.html", wait_until="networkidle")
            shoot(page, picture)


KINDS = {"report": of_reports, "explore": of_explore, "site": of_site}


def main(kinds: list[str]) -> None:
    with browser.launched() as chromium:
        for kind in kinds:
            with tempfile.TemporaryDirectory() as made:
                KINDS[kind](chromium, Path(made))


if __name__ == "__main__":
    main(sys.argv[1:] or list(KINDS))
