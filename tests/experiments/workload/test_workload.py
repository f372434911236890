"""The requests of an experiment: lazily made, with the work, the SLO and the send times that were asked for."""

from __future__ import annotations

import csv
import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import make_slo
from servetwin.experiments.spec.loading import load, load_profiles
from servetwin.experiments.workload.requests import read_trace, requests


def sent(experiment, count=None):
    return list(islice(requests(experiment, lambda work: 1.0, read_trace(experiment)), count))


def test_requests_carry_their_work_and_their_deadline(toy: Path):
    experiment = load(toy)
    slo = make_slo(experiment, load_profiles(experiment))
    made = list(requests(experiment, slo.seconds))
    assert [r.id for r in made] == list(range(60))
    for request in made:
        assert 20 <= request.work["denoise"] <= 30
        # three times: 10 ms to encode, 10 ms for each step
        assert request.slo == pytest.approx(3.0 * (0.010 + 0.010 * request.work["denoise"]))


def test_a_million_requests_are_made_as_they_are_asked_for(toy: Path):
    experiment = load(toy, [("requests", 1_000_000)])
    assert len(sent(experiment, 5)) == 5


def test_a_client_falls_behind_by_what_was_measured(toy: Path):
    plain = sent(load(toy))
    late = sent(load(toy, [("system.client_delay", 0.001), ("system.client_stretch", 0.01)]))
    for a, b in zip(plain, late, strict=True):
        assert b.arrival == pytest.approx(a.arrival * 1.01 + a.id * 0.001)


def test_published_requests_do_not_depend_on_the_seed_and_seeded_ones_do():
    def first(draws, seed):
        experiment = load("palette-256-rtx4090", [("workload.draws", draws), ("seed", seed)])
        return [(r.arrival, r.work["unet"]) for r in sent(experiment, 20)]

    assert first("published", 0) == first("published", 1)
    assert first("seeded", 0) != first("seeded", 1)


def test_steps_can_be_chosen_by_weight(toy: Path):
    text = toy.read_text().replace("uniform, low: 20, high: 30", "choice, values: [20, 50], weights: [3, 1]")
    toy.write_text(text)
    steps = np.array([r.work["denoise"] for r in sent(load(toy, [("requests", 4000)]))])
    assert set(steps) == {20, 50}
    assert (steps == 20).mean() == pytest.approx(0.75, abs=0.03)


# -- traces ---------------------------------------------------------------------------------------------


def with_trace(toy: Path, name: str, content: str, **more) -> Path:
    (toy.parent / name).write_text(content)
    text = f"extends: toy.yaml\nworkload:\n  requests: null\n  arrivals: {{process: trace, file: {name}}}\n"
    text += "  steps: {denoise: {draw: trace}}\n"
    child = toy.parent / "child.yaml"
    child.write_text(text)
    return child


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trace.csv", "arrival,steps,who\n0.5,30,a\n0.75,20,b\n2.0,25,c\n"),
        ("trace.csv", "arrival, denoise\n0.5, 30\n\n0.75, 20\n2.0, 25\n"),
        ("trace.json", '{"arrival": [0.5, 0.75, 2.0], "steps": [30, 20, 25], "note": "mine"}'),
    ],
)
def test_a_trace_is_replayed(toy: Path, name, content):
    made = sent(load(with_trace(toy, name, content)))
    assert [(r.arrival, r.work["denoise"]) for r in made] == [(0.0, 30), (0.25, 20), (1.5, 25)]


def test_a_trace_is_stretched_to_a_rate_and_cut_to_a_number(toy: Path):
    child = with_trace(toy, "trace.csv", "arrival,steps\n0.5,30\n0.75,20\n2.0,25\n")
    made = sent(load(child, [("rate", 3.0), ("requests", 2)]))
    assert [r.arrival for r in made] == [0.0, pytest.approx(1 / 3)]
    made = sent(load(child, [("rate", 4.0)]))
    assert [r.arrival for r in made] == pytest.approx([0.0, 0.5 * 0.25 / 1.5, 0.5])


WRONG_TRACES = {
    "no column": ("t.csv", "arival,steps\n1,2\n", ["t.csv:1", "names no column 'arrival'", "arival"]),
    "no number": ("t.csv", "arrival,steps\n1,20\nx,20\n", ["t.csv:3: arrival", "'x' is no time"]),
    "not a number of steps": ("t.csv", "arrival,steps\n1,2.5\n", ["t.csv:2: steps", "'2.5'", "a whole number"]),
    "no steps": ("t.csv", "arrival,steps\n1,0\n", ["t.csv:2: steps", "'0'"]),
    "backwards": ("t.csv", "arrival,steps\n2,20\n1,20\n", ["t.csv:3: arrival", "1 comes after 2"]),
    "negative": ("t.csv", "arrival,steps\n-2,20\n", ["t.csv:2: arrival", "'-2'"]),
    "a value too many": ("t.csv", "arrival,steps\n1,20\n2,20,7\n", ["t.csv:3", "does not fit the header"]),
    "a value too few": ("t.csv", "arrival,steps\n1\n", ["t.csv:2", "does not fit the header"]),
    "empty": ("t.csv", "", ["t.csv:1", "no column 'arrival'", "arrival,steps"]),
    "no request": ("t.csv", "arrival,steps\n", ["t.csv", "no request"]),
    "no work": (
        "t.csv",
        "arrival\n1\n",
        ["t.csv", "how many iterations of denoise", "a column 'denoise' or 'steps'"],
    ),
    "no JSON": ("t.json", '{"arrival": [1,\n}', ["t.json:2", "no valid JSON"]),
    "a value of a list": ("t.json", '{"arrival": [0, -1], "steps": [3, 3]}', ["t.json:2: arrival", "-1"]),
    "no list": ("t.json", '{"arrivals": [1]}', ["t.json", "no list 'arrival'"]),
    "lists of two lengths": ("t.json", '{"arrival": [1, 2], "steps": [3]}', ["steps has 1", "arrival has 2"]),
}


@pytest.mark.parametrize("case", WRONG_TRACES)
def test_a_wrong_trace_is_told_in_one_line(toy: Path, case):
    name, content, expected = WRONG_TRACES[case]
    experiment = load(with_trace(toy, name, content))
    with pytest.raises(BadInput) as caught:
        sent(experiment)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_more_requests_than_the_trace_holds(toy: Path):
    child = with_trace(toy, "trace.csv", "arrival,steps\n0.5,30\n")
    with pytest.raises(BadInput, match=r"2 requests are wanted, but the trace holds 1"):
        sent(load(child, [("requests", 2)]))


# -- against the logs -----------------------------------------------------------------------------------

NAMES = {
    "DiT_S_2": "dit-s2-256-rtx4090",
    "DiT_XL_2": "dit-xl2-256-rtx4090",
    "Palette": "palette-256-rtx4090",
    "SD15_RTX4090_256": "sd15-256-rtx4090",
    "SD15_RTX4090_512": "sd15-512-rtx4090",
}


@pytest.mark.reference
@pytest.mark.parametrize("logged", NAMES)
def test_slos_and_send_times_are_those_that_were_logged(reference: Path, logged):
    with (reference / "diffusion" / "logged_runs.csv").open(newline="") as file:
        runs = {row["run_id"]: row for row in csv.DictReader(file) if row["status"] == "primary"}
    name = reference / "diffusion" / "request_outcomes" / f"{logged}_neustream.csv.gz"
    with gzip.open(name, "rt", newline="") as file:
        outcomes = [row for row in csv.DictReader(file) if row["run_id"] in runs]
    made = {}
    for run_id in {row["run_id"] for row in outcomes}:
        run = runs[run_id]
        axes = [(axis, float(run[axis])) for axis in ("rate", "cv", "slo_factor")]
        experiment = load(NAMES[logged], axes)
        slo = make_slo(experiment, load_profiles(experiment))
        made[run_id] = list(requests(experiment, slo.seconds))
    slips = []
    for row in outcomes:
        request = made[row["run_id"]][int(row["request_id"])]
        assert float(row["slo_s"]) == pytest.approx(request.slo, abs=2e-4)
        slips.append(float(row["request_s"]) - request.arrival)
    assert abs(np.mean(slips)) < 0.1
    assert np.percentile(np.abs(slips), 95) < 0.3


PUBLISHED_TOY = ("--set", "workload.draws=published")


def test_a_seed_that_changes_no_published_draw_says_so(toy: Path, servetwin):
    code, out, _ = servetwin("run", toy, *PUBLISHED_TOY, "--seed", 7)
    assert code == 0
    kept = "arrivals and steps are those of the published runs: a seed changes nothing"
    assert f"seed 7: {kept}" in out
    for more in ((*PUBLISHED_TOY,), ("--seed", 7)):
        assert "published ones" not in servetwin("run", toy, *more)[1]
    _, out, _ = servetwin("run", "sd15-512-rtx4090", "--requests", 5, "--seed", 3)
    assert "seed 3: arrivals and steps are those of the published runs: a seed changes only the noise" in out


def test_an_axis_of_seeds_that_change_only_noise(toy: Path, servetwin, tmp_path: Path):
    sweep = tmp_path / "seeds.yaml"
    sweep.write_text("extends: sd15-512-rtx4090\nset: {requests: 5}\ngrid: {seed: [1, 2]}\n")
    code, out, err = servetwin("sweep", sweep, "--out", tmp_path / "o.csv", "-j", 1)
    assert code == 0
    assert "a seed changes only the noise" in out + err
    code, _, err = servetwin("sweep", sweep, "--out", tmp_path / "o.csv", "-j", 1, "--seeds", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "--seeds: the axis seed (1, 2) says the seeds of each point already" in err
    sweep.write_text(f"extends: {toy}\nset: {{workload.draws: published}}\ngrid: {{seed: [1, 2]}}\n")
    code, _, err = servetwin("sweep", sweep, "--out", tmp_path / "p.csv", "-j", 1)
    assert code == 2
    assert "2 seeds would be the same run 2 times" in err
    sweep.write_text(f"extends: {toy}\ngrid: {{seed: [1, 2]}}\n")
    _, out, err = servetwin("sweep", sweep, "--out", tmp_path / "q.csv", "-j", 1)
    assert "published" not in out + err
