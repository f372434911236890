"""`servetwin plot` draws the latencies of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import run
from servetwin.experiments.plotting.latency_plot import draw
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_grids import read_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for policy in ("sarathi", "vllm"):
        run(load("opt-13b-h100", [("policy", policy), ("requests", 60)]), folder / policy)
    return [folder / "sarathi", folder / "vllm"]


def values_of(folder: Path) -> dict[str, list[float]]:
    """Latencies by hand, from the records."""
    found: dict[str, list[float]] = {"end to end": [], "TTFT, llm": [], "TPOT, llm": []}
    for line in (folder / "requests.jsonl").read_text().splitlines():
        record = json.loads(line)
        (stay,) = record["stages"]
        found["end to end"].append(record["finished"] - record["arrival"])
        found["TTFT, llm"].append(1e3 * (stay["first_token"] - record["arrival"]))
        if stay["generated"] > 1:
            between = stay["last_token"] - stay["first_token"]
            found["TPOT, llm"].append(1e3 * between / (stay["generated"] - 1))
    return found


def test_lines_are_the_shares_of_requests_up_to_a_latency(runs, tmp_path):
    panels, files = draw(runs, tmp_path / "a.pdf")
    assert panels == 3
    data = read_rows(files[-1])
    for folder in runs:
        for panel, values in values_of(folder).items():
            own = [r for r in data if (r["panel"], r["line"]) == (panel, f"{folder.name}, simulated")]
            places, shares = ([float(r[what]) for r in own] for what in ("x", "y"))
            assert places == sorted(places)
            assert shares[-1] == 1.0
            for place, share in zip(places, shares, strict=True):
                assert share <= np.mean(np.asarray(values) <= place + 1e-9) + 1e-9
                assert share >= np.mean(np.asarray(values) < place - 1e-9)


def test_one_latency_alone(runs, tmp_path, servetwin):
    code, out, err = servetwin("plot", runs[0], "--out", tmp_path / "b.svg", "--y", "ttft", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"panels": 1, "files": [str(tmp_path / "b.svg"), str(tmp_path / "b.data.csv")]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"y": "tftt"}, "--y: 'tftt' is none of runs .right would be: ttft"),
        ({"y": "itl"}, "nothing is recorded of itl"),
        ({"by": "policy"}, "--by: 'policy' is none of runs"),
    ],
)
def test_what_runs_do_not_have(runs, tmp_path, options, told):
    with pytest.raises(BadInput, match=told):
        draw(runs, tmp_path / "a.png", **options)


def test_runs_and_tables_are_not_mixed(runs, tmp_path, servetwin):
    (tmp_path / "t.csv").write_text("a\n1\n")
    for given in ([runs[0], tmp_path / "t.csv"], [tmp_path / "t.csv", tmp_path / "t.csv"]):
        code, out, err = servetwin("plot", *given, "--out", tmp_path / "a.png")
        assert (code, out, err.count("\n")) == (2, "", 1)
    code, _, err = servetwin("plot", runs[0], "--out", tmp_path / "a.png", "--x", "rate")
    assert (code, "--x: this is for a sweep" in err) == (2, True)
