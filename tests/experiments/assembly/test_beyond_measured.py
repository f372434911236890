"""What lies beyond a profile is refused, or, where ``time.hold`` asks for it, counted and told."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from servetwin.core import BadInput, Recorder
from servetwin.experiments.assembly import build
from servetwin.experiments.registry.catalog import WORKLOADS
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.replay.llm import HOLDS, MEASURED, held, read
from servetwin.profiles import load as load_profile

CONSTANT = {"draw": "constant", "tokens": 100}
#: 600 requests at once, 40 tokens each, on an engine that takes as many as its limit says.
BURST = [
    ("workload.lengths.llm.prompt", CONSTANT),
    ("workload.lengths.llm.output", {"draw": "constant", "tokens": 40}),
    ("workload.arrivals.rate", 5000.0),
    ("workload.requests", 600),
    ("deployment.workers.0.engine.blocks", 200000),
    ("policy", {"name": "vllm-v1"}),
    ("time.noise", False),
]


def burst(limit: int, *more: tuple[str, object]) -> Experiment:
    return load("opt-13b-h100-async", [*BURST, ("deployment.workers.0.limit", limit), *more])


class Steps(Recorder):
    """Sequences that decode in each step, and the tokens of context that each of them needs."""

    wants_batches = True

    def __init__(self) -> None:
        super().__init__()
        self.decoding: list[int] = []
        self.tokens: list[int] = []

    def batch(self, batch):  # type: ignore[no-untyped-def]
        super().batch(batch)
        self.decoding += [batch.decode] * batch.count
        self.tokens += [sum(n for _, n, _ in batch.prefill) + batch.decode if batch.prefill else 0]


def test_no_shipped_workload_holds() -> None:
    files = sorted(WORKLOADS.glob("*.yaml"))
    assert files
    for file in files:
        assert not (yaml.safe_load(file.read_text()).get("time") or {}).get("hold"), file.name


@pytest.mark.parametrize("limit", [300, 512])
def test_a_batch_beyond_the_profile_is_refused(limit: int) -> None:
    with pytest.raises(BadInput) as error:
        build.run(burst(limit))
    text = str(error.value)
    assert text.startswith("h100-knees/opt-13b-tp1 (measured): no value for decoding a batch of ")
    assert "1 to 256 as measured, a profile that goes further, a smaller limit" in text
    assert "time.hold: true" in text


def test_a_context_beyond_the_profile_is_refused() -> None:
    long = ("workload.lengths.llm.prompt", {"draw": "constant", "tokens": 500})
    with pytest.raises(BadInput, match=r"with 7\d{4} tokens of context \(right would be: 73225 at most, a profile"):
        build.run(burst(256, long))


def test_within_the_profile_nothing_is_told() -> None:
    summary = build.run(burst(256, ("time.hold", True)))
    assert summary.held == []
    assert "held" not in summary.as_dict()
    plain = build.run(burst(256))
    assert plain.as_dict() == summary.as_dict()


@pytest.mark.parametrize(("limit", "more"), [(300, []), (512, []), (512, [("time.noise", True)])])
def test_steps_with_too_many_sequences_are_counted(limit: int, more: list[tuple[str, object]]) -> None:
    recorder = Steps()
    summary = build.build(burst(limit, ("time.hold", True), *more), recorder).play()
    beyond = [n for n in recorder.decoding if n > 256]
    (told,) = (found for found in summary.held if found["of"] == "sequences that decode")
    assert len(beyond) > 20
    assert told == {
        "worker": "llm",
        "profile": "h100-knees/opt-13b-tp1 (measured)",
        "of": "sequences that decode",
        "steps": len(beyond),
        "largest_asked": max(beyond),
        "largest_known": 256,
    }
    # Nobody hears of batches: the short ways count the same.
    assert build.run(burst(limit, ("time.hold", True), *more)).held == summary.held


def test_steps_with_too_much_context_are_counted() -> None:
    long = ("workload.lengths.llm.prompt", {"draw": "constant", "tokens": 400})
    summary = build.run(burst(256, long, ("time.hold", True)))
    (told,) = summary.held
    assert (told["of"], told["largest_known"]) == ("tokens of context that decode", 73225)
    assert told["steps"] > 10
    assert 73225 < told["largest_asked"] <= 256 * 440


def test_batches_of_a_loop_are_counted() -> None:
    """SD 1.5 on an RTX 4090, whose iterations are known for batches of up to 15."""
    summary = build.run(
        load(
            "sd15-512-rtx4090",
            [
                ("time", {"hold": True, "noise": False, "unmeasured": "shared"}),
                ("policy", {"name": "edf"}),
                ("slo.factor", 30.0),
                ("workload.arrivals.rate", 6.0),
                ("workload.requests", 100),
                ("deployment.workers.1.limit", 24),
            ],
        )
    )
    loop = [found for found in summary.held if "unet" in found["profile"]]
    assert {found["largest_known"] for found in loop} == {15}
    for told in loop:
        sizes = summary.sizes[told["worker"]]
        assert told["steps"] == sum(count for size, count in sizes.items() if size > told["largest_known"])
        assert told["largest_asked"] == max(sizes)


def test_the_console_and_the_records_tell(tmp_path, servetwin) -> None:  # type: ignore[no-untyped-def]
    given = [f"--set={key}={json.dumps(value)}" for key, value in (*BURST, ("deployment.workers.0.limit", 300))]
    code, out, _ = servetwin("run", "opt-13b-h100-async", *given, "--set=time.hold=true", f"--out={tmp_path / 'run'}")
    assert code == 0
    assert "beyond what was measured: " in out
    assert "up to 300 sequences that decode; h100-knees/opt-13b-tp1 (measured) knows 256 at most" in out
    (told,) = json.loads((tmp_path / "run" / "summary.json").read_text())["held"]
    assert f"{told['steps']} steps of llm" in out


@pytest.mark.parametrize(("name", "steps"), [("h100-knees/llm-opt-30b", 0), ("h200-long/llm-opt-66b", 3)])
def test_repeats_of_recordings_hold_where_they_say(name: str, steps: int) -> None:
    campaign = read(MEASURED / f"{name}.json.gz")
    assert campaign.profile in HOLDS
    told = held(campaign, load_profile(campaign.profile))
    assert sum(found["steps"] for found in told) == steps
    assert all(found["largest_asked"] == 2048 for found in told)


def test_a_table_says_how_many_steps_were_beyond(tmp_path, servetwin) -> None:
    text = "extends: sd15-512-rtx4090\nset: {requests: 60, policy: fcfs, rate: 20.0, time.hold: true, slo: 20.0}\n"
    (tmp_path / "s.yaml").write_text(text + "grid: {deployment.workers.1.limit: [10, 40]}\n")
    assert servetwin("sweep", tmp_path / "s.yaml", "--out", tmp_path / "s.csv", "--jobs", 1, "--no-cache")[0] == 0
    with (tmp_path / "s.csv").open(newline="") as file:
        measured, beyond = (int(row["steps_beyond_measured"]) for row in csv.DictReader(file))
    assert measured == 0 < beyond
    options = [("workload.requests", 60), ("policy", "fcfs"), ("rate", 20.0), ("time.hold", True), ("slo", 20.0)]
    summary = build.run(load("sd15-512-rtx4090", [*options, ("deployment.workers.1.limit", 40)]))
    assert beyond == max(held["steps"] for held in summary.held if held["worker"] == "unet")
