"""The reference is complete: the page of the command line is the program's, and that of records names every field."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pages
import pytest
from servetwin.experiments.cli import cli_page, entry
from servetwin.experiments.spec import spec_page
from servetwin.experiments.spec.loading import load

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]

REFERENCE = pages.ROOT / "docs" / "reference"


def test_the_command_line_is_as_the_program_has_it() -> None:
    page = (REFERENCE / "command-line.md").read_text()
    assert page == cli_page.as_markdown(), (
        "python -m servetwin.experiments.cli.cli_page > docs/reference/command-line.md"
    )


def test_experiment_files_are_as_the_program_reads_them() -> None:
    page = (REFERENCE / "experiment-files.md").read_text()
    assert page == spec_page.as_markdown(), (
        "python -m servetwin.experiments.spec.spec_page > docs/reference/experiment-files.md"
    )


@pytest.mark.parametrize("name", ["sd15-512-rtx4090", "opt-13b-a6000", "matplotagent-rtx4090"])
def test_every_key_of_an_experiment_is_told(name: str) -> None:
    """The page is made from the classes; what an experiment really holds must be among its keys."""
    told = set(re.findall(r"^\| `(\w+)` \|", (REFERENCE / "experiment-files.md").read_text(), re.MULTILINE))
    # Names of modules, devices and parameters are the experiment's own.
    free = ("modules", "steps", "lengths", "devices", "routers", "params", "seconds")
    assert fields(load(name).as_dict(), free) <= told


@pytest.mark.parametrize("name", cli_page.commands())
def test_help_has_the_same_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made from the functions; what the program really offers is what its help says."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["servetwin", *name.split(), "--help"])
    assert entry._run() == 0
    shown = capsys.readouterr().out
    offered = set(re.findall(r"^│ \*? +(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
    told = cli_page.commands()[name]
    assert offered <= set(told)
    assert [flag for flag in told if flag not in shown] == []


def fields(value: Any, free: tuple[str, ...] = ()) -> set[str]:
    """The keys of a record, but for those that are names of the user's own."""
    if isinstance(value, list):
        return set().union(*(fields(v, free) for v in value))
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for key, inner in value.items():
        if key in free:
            inner = list(inner.values()) if isinstance(inner, dict) else []
        found |= fields(inner, free)
    return found


@pytest.mark.parametrize(
    "run",
    [
        "dit-s2-256-rtx4090 --requests 20 --set system.stop_after=0",
        "opt-13b-a6000 --requests 10 --policy sarathi --set records.tokens=true --set 'slo.limits={ttft_ms: 500}'",
        "matplotagent-rtx4090 --requests 10",
    ],
)
def test_every_field_of_the_records_is_told(run: str, tmp_path: Path) -> None:
    code, shown = pages.shell(f"servetwin run {run} --out run", tmp_path)
    assert code == 0, shown
    told = set(re.findall(r"`([\w.]+)`", (REFERENCE / "records.md").read_text()))
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} <= told
    meta = json.loads((folder / "meta.json").read_text())
    seen = set(meta)
    for name in ("requests", "batches"):
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            seen |= fields(json.loads(line) | {"work": None})
    summary = json.loads((folder / "summary.json").read_text())
    workers = summary.pop("workers")
    stages = summary.pop("llm", {})
    window = summary.pop("window", {})
    seen |= set(summary) | {"workers"} | set().union(*map(set, workers.values())) | {"llm"} | {"window"}
    seen |= set().union(*map(set, stages.values())) if stages else set()
    assert window == {} or set(window) == {"skip", "seconds", "stages"}
    assert seen - told == set()
