"""What a user does with a server: predicted, served with our scheduler, measured by vLLM's own client, scored."""

import csv
import json
from importlib.util import find_spec

import bench_campaign
import pytest
from servetwin.experiments.workload.traces.bench_file import read

pytestmark = pytest.mark.skipif(find_spec("fastapi") is None, reason="vLLM's server needs fastapi")


def test_predicted_measured_and_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    campaign = bench_campaign.main([str(tmp_path), "--model", "tiny", "--seconds", "500"])
    log = (tmp_path / "log.txt").read_text()
    assert "FAILED" not in log, log
    (name,) = (path.stem for path in (tmp_path / "experiments").iterdir())
    measured = read(tmp_path / "measured" / f"{name}.json")
    assert (len(measured.requests), measured.failed) == (campaign.what["requests"], ())
    mean, output, ratio = campaign.what["lengths"]
    for r in measured.requests:
        assert mean * (1 - ratio) - 1 <= r.prompt <= mean * (1 + ratio) + 1
        assert output * (1 - ratio) - 1 <= r.output == len(r.times) <= output * (1 + ratio) + 1
    with (tmp_path / "scores" / f"{name}.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["requests"]) == int(row["finished"]) == campaign.what["requests"]
    assert float(row["gap_finished_pp"]) == 0.0
    for metric in ("ttft", "tpot", "itl", "e2el"):
        assert float(row[f"mean_{metric}_ms"]) > 0.0
        assert float(row[f"sim_mean_{metric}_ms"]) > 0.0
    # The measured side is the client's own arithmetic.
    told = json.loads((tmp_path / "measured" / f"{name}.json").read_text())
    assert float(row["mean_ttft_ms"]) == pytest.approx(told["mean_ttft_ms"], rel=1e-3)
    assert float(row["mean_tpot_ms"]) == pytest.approx(told["mean_tpot_ms"], rel=1e-3)
    predicted = json.loads((tmp_path / "predicted" / name / "summary.json").read_text())
    assert predicted["finished"] == campaign.what["requests"]
    # With what the idle server took before its engine, first tokens come later in simulation, and so measured.
    with (tmp_path / "scores" / f"{name}-served.csv").open(newline="") as file:
        (served,) = csv.DictReader(file)
    assert float(served["sim_mean_ttft_ms"]) > float(row["sim_mean_ttft_ms"])
    told = campaign.call("compare", tmp_path / "predicted" / name, tmp_path / "measured" / f"{name}.json")
    assert "mean ttft, ms of llm" in told
