"""Pictures of reports for the documents: ``python tests/screenshots.py`` makes them anew in docs/img.

Needs the extras ``[report]`` and ``[browser]``, and a Chromium. Three reports, each as on a desktop and on a phone: a
sweep of a language model, the score of the diffusion runs of the NeuStream artifact, and one run of a language model.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import browser
from servetwin.experiments.assembly import build
from servetwin.experiments.reporting import report
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.sweep import SweepFile, sweep
from servetwin.experiments.validation import run_table
from servetwin.experiments.validation.score import score

IMAGES = Path(__file__).parents[1] / "docs" / "img"

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


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as made, browser.launched() as chromium:
        for name, given in results(Path(made)).items():
            page_file = Path(made) / f"{name}.html"
            report.write(given, page_file)
            for size, ending, height in ((browser.DESKTOP, "", 2100), (browser.PHONE, "-phone", 1700)):
                with browser.page((size[0], height), chromium) as page:
                    page.goto(page_file.as_uri())
                    page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
                    page.wait_for_timeout(1500)
                    page.screenshot(path=out / f"{name}{ending}.png")
                    print(out / f"{name}{ending}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
