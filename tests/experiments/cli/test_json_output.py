"""What commands print with ``--json`` is what docs/reference/json-output.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from servetwin.experiments.cli import cli_page, json_page
from servetwin.experiments.cli.output.json_output import COMMANDS, Use, Validity
from servetwin.experiments.reporting import timeline

#: Commands that print no results: `explore` serves a page.
NO_RESULTS = {"explore"}
#: Its report is of another kind, which its own tests hold.
ELSEWHERE = {"explain"}


def test_every_command_that_prints_results_prints_them_as_json():
    commands = cli_page.commands()
    assert set(commands) - NO_RESULTS - ELSEWHERE == set(COMMANDS)
    assert [name for name in COMMANDS if "--json" not in commands[name]] == []


@pytest.mark.checkout
def test_the_page_is_made_from_the_types():
    page = Path(__file__).parents[3] / "docs/reference/json-output.md"
    assert page.read_text() == json_page.as_markdown()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    (folder / "s.yaml").write_text(
        "extends: dit-s2-256-rtx4090\nset: {requests: 20}\ngrid: {policy: [edf, fcfs], rate: [2, 4]}\n"
    )
    (folder / "m.csv").write_text(
        "workload,policy,rate,cv,slo_factor,requests,met,finished\n"
        "palette-256-rtx4090,neustream,0.4,2,3,20,18,19\npalette-256-rtx4090,clockwork,0.4,2,3,20,15,19\n"
    )
    return folder


def printed(servetwin, command: str, *arguments: Any) -> Any:
    """What a command prints, which fits its type."""
    code, out, err = servetwin(command, *arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    TypeAdapter(COMMANDS[command]).validate_python(found)
    return found


def test_run_and_what_is_made_of_runs(servetwin, small: Path):
    a, b = small / "a", small / "b"
    found = printed(servetwin, "run", "opt-13b-h100", "--policy", "sarathi", "--requests", 30, "--out", a)
    TypeAdapter(Use).validate_python(found["use"])
    line = timeline.read(a)
    assert found["use"]["devices"]["gpu0"] == pytest.approx(line.mean(line.busy["gpu0"]))
    assert found["use"]["kv_cache"]["llm"]["max"] == pytest.approx(line.kv["llm"].peak / line.capacity["llm"])
    summary = json.loads((a / "summary.json").read_text())
    assert {k: v for k, v in found.items() if k not in ("use", "validity")} == summary
    TypeAdapter(Validity).validate_python(found["validity"])
    assert summary["median_itl_ms"] <= summary["p90_itl_ms"] <= summary["p99_itl_ms"]
    found = printed(servetwin, "run", "opt-13b-h100", "--policy", "vllm", "--requests", 30)
    assert "use" not in found
    servetwin("run", "opt-13b-h100", "--policy", "vllm", "--requests", 30, "--out", b)
    assert printed(servetwin, "compare", a, b)["requests"] == [30, 30]
    assert printed(servetwin, "trace", a, b, "--out", small / "t.json")["events"] > 30
    assert printed(servetwin, "plot", a, b, "--out", small / "p.png")["panels"] == 3


def test_sweep_and_what_is_made_of_sweeps(servetwin, small: Path):
    out = small / "s.csv"
    found = printed(servetwin, "sweep", small / "s.yaml", "--out", out, "--jobs", 1)
    assert [(p["policy"], p["rate"]) for p in found["points"]] == [("edf", 2), ("edf", 4), ("fcfs", 2), ("fcfs", 4)]
    assert found["files"] == [str(out)]
    assert printed(servetwin, "sweep", small / "s.yaml", "--jobs", 1) == {**found, "files": []}
    assert printed(servetwin, "plot", out, "--out", small / "s.pdf") == {
        "panels": 1,
        "files": [str(small / "s.pdf"), str(small / "s.data.csv")],
    }
    assert printed(servetwin, "compare", out, out)["mean_gap_points"] == 0.0


def test_score_with_baselines(servetwin, small: Path):
    found = printed(servetwin, "score", small / "m.csv", "--seeds", 1, "--baselines", "--jobs", 1)
    assert found["files"] == []
    assert [gap["policy"] for gap in found["gaps"]] == ["neustream", "clockwork", ""]
    assert {run["met"] for run in found["runs"]} == {18, 15}
    assert found["baselines"]


@pytest.mark.parametrize("command", ["sweep", "score"])
def test_results_go_to_a_table_or_to_the_output(servetwin, small: Path, command: str):
    code, _, err = servetwin(command, small / ("s.yaml" if command == "sweep" else "m.csv"))
    assert code == 2
    assert err == (
        "servetwin: --out: nothing says where results go "
        "(right would be: --out with a file; or --json, to print the table)\n"
    )


def test_search(servetwin, toy: Path):
    arguments = ("--seeds", 2, "--requests", 60, "--longest", 120, "--jobs", 1, "--no-cache")
    (answer,) = printed(servetwin, "search", toy, *arguments)["answers"]
    assert answer["value"] > 0
    assert answer["not_met_at"] is None or answer["not_met_at"] > answer["value"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("bound", ("dit-s2-256-rtx4090", "--requests", 4, "--no-policies")),
        (
            "league",
            (
                "dit-s2-256-rtx4090",
                *["--policy", "edf", "--requests", "5", "--seeds", "2", "--no-bound", "--jobs", "1"],
            ),
        ),
        ("check", ("fcfs",)),
        ("policies", ()),
        ("policies", ("slack-batch",)),
        ("workloads", ()),
        ("profiles", ()),
        ("profiles", ("h100/opt-13b-tp1",)),
    ],
)
def test_others(servetwin, command, arguments):
    assert printed(servetwin, command, *arguments)


def test_import(servetwin, tmp_path: Path):
    out = tmp_path / "p.yaml"
    found = printed(servetwin, "import", "roofline", "opt-13b", "--device", "h100", "--out", out)
    assert found["files"] == [str(out)]
    assert found["basis"]


def test_convert(servetwin, tmp_path: Path):
    (tmp_path / "talks.json").write_text(
        '[{"id": 1, "messages": [{"role": "assistant", "content": "b"}]}, {"messages": '
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]'
    )
    arguments = ("--form", "sharegpt", "--characters-per-token", 4, "--leave-out", "--out", tmp_path / "t.csv")
    found = printed(servetwin, "convert", tmp_path / "talks.json", *arguments)
    assert (found["sessions"], found["turns"], found["timed"]) == (1, 1, False)
    assert found["left_out"] == {"a conversation answers before it asks": 1}
