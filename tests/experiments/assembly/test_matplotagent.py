"""MatPlotAgent, the multi-agent experiment of the NeuStream artifact, from its file."""

from __future__ import annotations

import csv
import gzip
import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly import build
from servetwin.experiments.plotting.paper_figures_agents import agents_figure, first_and_last_figure
from servetwin.experiments.spec.experiment import Gamma
from servetwin.experiments.spec.loading import load
from servetwin.experiments.spec.published_draws import AGENT_SEEDS, listed
from servetwin.experiments.sweeps import sweep
from servetwin.experiments.sweeps.point import results_of, settings_of
from servetwin.experiments.workload.draws import arrival_times

AGENTS = "matplotagent-rtx4090"
COLUMNS = {
    "matplotagent-codellama1-prompts": "codellama1_prompt_tokens",
    "matplotagent-codellama1-outputs": "codellama1_output_tokens",
    "matplotagent-llava-prompts": "llava_prompt_tokens_without_code",
    "matplotagent-llava-outputs": "llava_output_tokens",
}


@pytest.mark.reference
@pytest.mark.parametrize("name", COLUMNS)
def test_the_lists_are_what_was_recorded(reference: Path, name: str) -> None:
    with (reference / "multi-agent/requests.csv").open() as file:
        recorded = [int(row[COLUMNS[name]] or 1000) for row in csv.DictReader(file)]
    assert list(listed(name)) == recorded


@pytest.mark.reference
@pytest.mark.parametrize("rate", [0.6, 1.0])
def test_the_arrivals_are_the_artifacts(reference: Path, rate: float) -> None:
    published = json.loads(gzip.decompress((reference / "multi-agent/arrivals.json.gz").read_bytes()))
    assert {float(cv): p["seed"] for cv, p in published.items()} == AGENT_SEEDS
    for cv, p in published.items():
        spec = Gamma(process="gamma", rate=rate, cv=float(cv))
        ours = list(islice(arrival_times(spec, seed=9, published=True, seeds=AGENT_SEEDS), 300))
        now, theirs = 0.0, []
        for gap in p["gaps_at_rate_1"]:
            now += gap / rate
            theirs.append(now)
        assert ours == pytest.approx(theirs, rel=1e-9)


#: The sweeps over it, and how many points each has.
POINTS = {"figure17": 22, "figure19": 2, "matplotagent-assumptions": 26, "matplotagent-forwarding": 30}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """MatPlotAgent under NeuStream's policy with fewer requests, under the invariants; its requests and records."""
    folder = tmp_path_factory.mktemp("agents") / "run"
    experiment = load(AGENTS, [("requests", 80), ("rate", 0.9)])
    build.run(experiment, folder)
    check_records(folder)
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("policy", ["neustream-llm", "vllm"])
def test_it_breaks_no_invariant(policy: str) -> None:
    checker = InvariantChecker()
    run = build.build(load(AGENTS, [("policy", policy), ("requests", 60), ("rate", 1.0)]), checker)
    checker.watch(run.loop)
    run.play()
    checker.finish()
    assert checker.summary.requests == 60


def test_prompts_hold_what_was_put_out_before(served) -> None:
    prompts, llava = listed("matplotagent-codellama1-prompts"), listed("matplotagent-llava-prompts")
    whole = 0
    for request in served:
        stages = {s["stage"]: s for s in request["stages"]}
        assert stages["codellama_1"]["prompt"] == prompts[request["id"]]
        if "llava" in stages:
            assert stages["llava"]["prompt"] == llava[request["id"]] + stages["codellama_1"]["generated"]
        if "codellama_2" in stages:
            assert stages["codellama_2"]["prompt"] == 158 + stages["llava"]["generated"]
            whole += 1
    assert whole > 20


def test_llava_is_served_by_two_workers_by_turns(served) -> None:
    came = sorted((s["queued"], s["worker"]) for r in served for s in r["stages"] if s["stage"] == "llava")
    workers = [w for _, w in came]
    assert set(workers) == {"llava_1", "llava_2"}
    assert all(a != b for a, b in pairwise(workers))


def test_who_has_no_slack_left_is_not_sent_on(served) -> None:
    for request in served:
        if request["outcome"] in ("met", "late"):
            assert (
                request["outcome"] == "met"
            )  # only who was in time until then gets to the last stage, a second long
            assert request["finished"] <= request["deadline"]
        else:
            assert request["reason"].startswith(("not forwarded from", "dropped at"))


def test_the_window_counts_what_came_on_time_in_it() -> None:
    whole = build.run(load(AGENTS, [("requests", 40), ("slo.window.requests", 40)])).as_dict()
    assert whole["window"]["seconds"] == pytest.approx(40 / 0.7)
    for stage, rates in whole["window"]["stages"].items():
        tokens = rates["token_goodput"] * whole["window"]["seconds"]
        assert 0 < tokens <= whole["llm"][stage]["on_time_tokens"]
    all_of_it = [("requests", 40), ("slo.window", {"skip": 0.0, "requests": 4000})]
    everything = build.run(load(AGENTS, all_of_it)).as_dict()
    for stage, rates in everything["window"]["stages"].items():
        tokens = rates["token_goodput"] * everything["window"]["seconds"]
        assert tokens == pytest.approx(everything["llm"][stage]["on_time_tokens"])


def test_a_row_has_each_agents_goodput() -> None:
    experiment = load(AGENTS, [("requests", 20)])
    row = results_of(experiment, build.run(experiment))
    assert {"codellama_1.token_goodput", "llava.prefill_goodput", "codellama_2.decode_goodput"} <= set(row)
    assert row["request_goodput"] > 0.0


def test_the_figures_are_drawn_from_rows(tmp_path: Path) -> None:
    experiments = [load(AGENTS, [("policy", p), ("requests", 12), ("rate", r)]) for p in ("vllm", "neustream-llm")
                   for r in (0.5, 0.7)]  # fmt: skip
    rows = [{**settings_of(e), **results_of(e, build.run(e))} for e in experiments]
    for draw in (agents_figure, first_and_last_figure):
        sheet = draw(rows[:2] if draw is first_and_last_figure else rows)
        file, _ = sheet.save(tmp_path / f"{draw.__name__}.png")
        assert file.stat().st_size > 5000


def test_an_engine_that_prepares_images_is_slower() -> None:
    def firsts(seconds: float) -> list[float]:
        key = "deployment.workers.{}.engine.preparing.seconds"
        changes = [(key.format(i), seconds) for i in (2, 3)]
        whole = build.run(load(AGENTS, [("requests", 20), ("rate", 0.2), *changes])).as_dict()
        return whole["llm"]["llava"]["mean_ttft_ms"]

    assert firsts(0.2) - firsts(0.0) == pytest.approx(200.0, rel=0.25)  # and a wait now and then


@pytest.mark.parametrize("figure", sorted(POINTS))
def test_the_figures_points_are_sound(figure: str) -> None:
    path = sweep.find(figure)
    experiments, _ = sweep.points(sweep.read(path), path)
    assert len(experiments) == POINTS[figure]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("workload.lengths.llava.after", "codelama_1"), "'codelama_1' is no other module of kind llm .*codellama_1"),
        (("budget.split", "equal"), "language models have deadlines of tokens"),
        (("budget.seconds", {"execute_1": 2.5}), "no seconds for execute_2"),
        (("workload.arrivals.cv", 1.5), "there is no published seed for cv 1.5"),
        (
            ("workload.lengths.codellama_1.after", "codellama_2"),
            "follow each other in a circle: codellama_1 after codellama_2",
        ),
    ],
)
def test_what_does_not_fit_is_said(override, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build.run(load(AGENTS, [override]))
