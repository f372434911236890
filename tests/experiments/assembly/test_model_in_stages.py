"""A model in stages in experiments: what it takes, what a run says of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.explaining.alone import Alone
from servetwin.experiments.reporting.timeline import read
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.validation.comparison.compare_llm_runs import tables_of
from test_engine_options import A6000, AHEAD, HOST, experiment, visits_of

STAGES: dict[str, Any] = {
    "pipeline_parallel_size": 2,
    "hop_seconds": 0.001,
    "hop_seconds_each": 1e-5,
    "source": "assumed",
}


def staged(
    folder: Path, *set_: tuple[str, Any], engine: dict[str, Any] | None = None, device: str = A6000, **stages: Any
) -> Experiment:
    """An engine with stages, with other settings of these."""
    own = {"blocks": 2000, **(engine or {}), "pipeline_parallel": {**STAGES, **stages}}
    return experiment(folder, own, *set_, device=device)


def test_a_request_alone_takes_a_step_and_what_is_sent(tmp_path: Path) -> None:
    """20 tokens of one request: as on one device, and 19 times a token's hop and once the prompt's."""
    one = ("workload.requests", 1)
    made = staged(tmp_path, one)
    took, alone = (
        visits_of(each, tmp_path / name)[0] for each, name in ((made, "a"), (experiment(tmp_path, {}, one), "b"))
    )
    hops = 20 * 0.001 + 1e-5 * (took["prompt"] + 19)
    assert took["last_token"] - alone["last_token"] == pytest.approx(hops)
    free = build.run(staged(tmp_path, one, ("time.costs", False))).as_dict()
    assert free["mean_e2el_ms"] == pytest.approx(1000 * (alone["last_token"] - alone["arrival"]))


@pytest.mark.parametrize(("size", "layers"), [(2, [20, 20]), (3, [13, 14, 13]), (7, [5, 6, 6, 6, 6, 6, 5])])
def test_layers_are_divided_as_vllm_does(size: int, layers: list[int], tmp_path: Path) -> None:
    made = staged(tmp_path, pipeline_parallel_size=size)
    worker = build.build(made).loop.workers[0]
    assert worker.stages.shares == [count / 40 for count in layers]  # type: ignore[attr-defined]
    assert f"stages of {' + '.join(map(str, layers))} layers" in build.stands_on(made)[0]


WRONG_STAGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"pipeline_parallel_size": 1}, "pipeline_parallel_size"),
    ({}, {"layers": [10, 10, 20]}, "3 numbers of layers for 2 stages"),
    ({}, {"layers": [10, 10]}, "10 [+] 10 layers are not the 40 of opt-13b"),
    ({}, {"pipeline_parallel_size": 41}, "41 stages for 40 layers"),
    ({}, {"hop_seconds": None}, "without hop_seconds it is not looked at"),
    ({}, {"hop_seconds": None, "hop_seconds_each": 0.0}, r"a6000/opt-13b-tp1 has no cost pipeline\.hop"),
    ({}, {"source": None}, "nothing says where the seconds come from"),
    ({"blocks": None}, {}, "where each device has a part of the model is not known"),
    ({"asynchronous": True}, {}, "what that does with a model in stages is not known"),
    ({"preemption": "swap"}, {}, "what that does with a model in stages is not known"),
    (HOST, {}, "what that does with a model in stages is not known"),
    ({"pipeline_parallel_size": 2}, {}, "pipeline_parallel: {pipeline_parallel_size: ...}"),
]


@pytest.mark.parametrize(("engine", "stages", "says"), WRONG_STAGES)
def test_stages_that_do_not_fit_are_refused(
    engine: dict[str, Any], stages: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        build.build(staged(tmp_path, engine=engine, **stages))


def test_prices_and_a_profile_that_decides_ahead_with_stages(tmp_path: Path) -> None:
    prices = ("deployment.prices", {"gpu0": {"per_hour": 1.0, "source": "assumed"}})
    with pytest.raises(BadInput, match="would count once, and the stages are 2"):
        staged(tmp_path, prices)
    engine = {"headroom": 0, "stamp": "sent"}
    said = build.stands_on(staged(tmp_path, engine=engine, device=AHEAD[1]))
    assert "pipeline: asynchronous scheduling is off" in said


def test_what_goes_by_other_times_refuses_them(tmp_path: Path) -> None:
    made = staged(tmp_path)
    assert any("assumed" in line for line in build.run(made).as_dict()["basis"])
    with pytest.raises(BadInput, match="the bound knows nothing of pipeline_parallel"):
        most_met(made)
    with pytest.raises(BadInput, match="an explanation knows nothing of pipeline_parallel"):
        Alone(made)


def test_a_device_is_as_busy_as_its_stages_on_average(tmp_path: Path) -> None:
    """One request: a stage of four computes at a time, and none while activations are sent."""
    one, shares = ("workload.requests", 1), []
    for hop in (0.0, 0.5):
        folder = tmp_path / str(hop)
        visit = visits_of(
            staged(tmp_path, one, pipeline_parallel_size=4, hop_seconds=hop, hop_seconds_each=0.0), folder
        )[0]
        line = read(folder)
        (level,) = line.busy.values()
        assert level.peak == pytest.approx(0.25)
        shares.append(line.mean(level))
        sent = 3 * hop * 20 / (visit["last_token"] - visit["arrival"])
        assert shares[-1] == pytest.approx(0.25 * (1.0 - sent), rel=0.02)
    assert shares[1] < 0.1 * shares[0]


def test_steps_are_held_against_no_table_of_one_device(tmp_path: Path) -> None:
    tables = [tables_of({"experiment": made.as_dict()}) for made in (staged(tmp_path), experiment(tmp_path, {}))]
    assert [table is None for (table,) in map(dict.values, tables)] == [True, False]
