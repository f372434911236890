"""Runs whose requests are of several shapes: what they take, what they are promised, and who shares a batch."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput, Shape
from servetwin.core.errors import PolicyFault
from servetwin.core.invariants.checker import InvariantChecker, check_records
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.bound.most_met import most_met
from servetwin.experiments.explaining.alone import Alone
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_runs import compare
from servetwin.profiles.profile import DATA

SHAPES = "sdxl-shapes-synthetic"
POLICIES = [
    "clockwork", "edf", "fcfs", "lsf", "neustream", "nexus", "shepherd", "slack-batch", "srpt", "symphony",
    "tetriserve",
]  # fmt: skip


def shaped(policy: str = "edf", **load_: Any) -> Experiment:
    return load({"extends": SHAPES, "policy": {"name": policy}, "workload": {"requests": 80, **load_}})


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_several_shapes_under_all_invariants(policy: str, tmp_path: Path) -> None:
    experiment = shaped(policy)
    checker = InvariantChecker()
    made = build(experiment, checker)
    checker.watch(made.loop)
    summary = made.play()
    checker.finish()
    assert summary.requests == 80
    assert summary.as_dict()["met"] > 8
    run(experiment, tmp_path / "run")
    check_records(tmp_path / "run")
    of = {r["id"]: tuple(r["shape"].values()) for r in records(tmp_path / "run", "requests")}
    batches = records(tmp_path / "run", "batches")
    assert all(len({of[i] for i in batch["requests"]}) == 1 for batch in batches)
    assert len(set(of.values())) == 4
    if policy != "clockwork":  # whose batches are of equal steps
        assert max(len(batch["requests"]) for batch in batches) > 1


def test_a_request_alone_takes_what_its_shape_takes(tmp_path: Path) -> None:
    """And is promised a multiple of that."""
    shapes = {"draw": "choice", "values": ["512x512", "2048x2048", {"size": "512x512", "images": 2}]}
    shapes["weights"] = None
    arrivals, steps = {"process": "constant", "rate": 0.01}, {"unet": {"draw": "constant", "steps": 10}}
    run(shaped(shape=shapes, arrivals=arrivals, steps=steps), tmp_path / "run")
    alone = {(512, 1): 0.015 + 10 * 0.024 + 0.016, (2048, 1): 0.015 + 10 * 0.290 + 0.240}
    alone[512, 2] = 0.015 + 10 * 0.030 + 0.029
    found = Counter()  # type: ignore[var-annotated]
    for request in records(tmp_path / "run", "requests"):
        key = request["shape"]["height"], request["shape"]["images"]
        assert request["finished"] - request["arrival"] == pytest.approx(alone[key])
        assert request["deadline"] - request["arrival"] == pytest.approx(4.0 * alone[key])
        found[key] += 1
    assert set(found) == set(alone)


def test_one_shape_that_is_the_profiles_changes_nothing() -> None:
    def outcome(experiment: Experiment) -> dict[str, Any]:
        return run(experiment).as_dict()

    plain = {"extends": SHAPES, "workload": {"requests": 80, "shape": None}}
    same = outcome(shaped(shape={"draw": "constant", "size": "1024x1024"}))
    assert list(same.pop("shapes")) == ["encode+unet+vae"]
    assert same == outcome(load(plain))


def test_shapes_of_classes(tmp_path: Path) -> None:
    classes = {
        "preview": {"share": 3, "shape": {"draw": "constant", "size": "512x512"}, "slo": {"factor": 2.0}},
        "poster": {"share": 1, "shape": {"draw": "constant", "size": "2048x2048"}},
    }
    run(shaped(classes=classes, shape=None), tmp_path / "run")
    found = {(r["class"], r["shape"]["height"]) for r in records(tmp_path / "run", "requests")}
    assert found == {("preview", 512), ("poster", 2048)}


def test_shapes_of_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "arrival,steps,height,width,images,guidance\n0,20,512,512,1,2\n1,20,1024,1024,,2\n2,20,512,512,2,2\n"
    )
    arrivals = {"process": "trace", "file": str(tmp_path / "t.csv")}
    trace = {"requests": None, "arrivals": arrivals, "steps": {"unet": {"draw": "trace"}}, "shape": {"draw": "trace"}}
    run(shaped(**trace), tmp_path / "run")
    found = [tuple(r["shape"].values()) for r in sorted(records(tmp_path / "run", "requests"), key=lambda r: r["id"])]
    assert found == [(512, 512, 1, 2, 1), (1024, 1024, 1, 2, 1), (512, 512, 1, 2, 2)]
    with pytest.raises(BadInput, match=r"images of several sizes .*workload.shape: \{draw: trace\}"):
        run(shaped(**{**trace, "shape": None}))
    (tmp_path / "t.csv").write_text("arrival,steps\n0,20\n1,20\n")
    with pytest.raises(BadInput, match="does not say of which size"):
        run(shaped(**trace))


POLICY = """
from servetwin.core import Decision, Policy

class Own(Policy):
    heeds_shapes = True

    def start(self, view):
        assert view.estimate("unet", 1, SMALL) == 0.024
        assert view.limit_of(SMALL) == 4 and view.limit_of(LARGE) == 2

    def decide(self, view, now):
        {body}
"""
HEAD = "from servetwin.core import Shape\nSMALL, LARGE = Shape(512, 512), Shape(2048, 2048)\n"
HEAD += "f = lambda view: [t for t in view.waiting if t.shape == LARGE]\n"


def own(tmp_path: Path, body: str) -> Experiment:
    file = tmp_path / "own.py"
    file.write_text(HEAD + POLICY.replace("{body}", body))
    return shaped(str(file))


def test_a_policy_may_heed_shapes_itself(tmp_path: Path) -> None:
    body = """
        first = next(iter(view.waiting), None)
        if first is None:
            return Decision()
        like = [task for task in view.waiting if task.shape == first.shape]
        assert abs(view.solo(first) - (view.estimate("encode", 1, first.shape) + first.left
                   * view.estimate("unet", 1, first.shape) + view.estimate("vae", 1, first.shape))) < 1e-9
        return Decision(like[:view.limit_of(first.shape)], whole=True)"""
    assert run(own(tmp_path, body)).as_dict()["requests"] == 80


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return Decision(list(view.waiting)[:4], whole=True)",
            "several shapes together: .* and .*own.*|several shapes",
        ),
        (
            "return Decision(idle_until=now + 9.0) if len(f(view)) < 3 else Decision(f(view)[:3], whole=True)",
            "a batch of 3 is over the limit of 2 of .* for 2048x2048",
        ),
        ("return Decision(7)", "run of its decision is 7"),
    ],
)
def test_a_batch_of_several_shapes_is_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(PolicyFault, match=message):
        run(own(tmp_path, body))


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"shape": {"draw": "constant", "size": "0x512"}}, "workload.shape"),
        ({"shape": {"draw": "choice", "values": ["512x512"], "weights": [0.0]}}, "weights do not fit"),
        (
            {"shape": {"draw": "choice", "values": ["512x512"] * 3 + [{"size": "1024x1024", "guidance": 2}]}},
            "guidance",
        ),
        ({"shape": {"draw": "trace"}}, "come from no trace"),
        ({"shape": {"draw": "constant", "size": "4096x4096"}}, "nobody measured 4096x4096"),
        ({"shape": {"draw": "constant", "size": "512x512", "depth": 3}}, "depth"),
        (
            {
                "shape": None,
                "classes": {"a": {"share": 1, "shape": {"draw": "constant", "size": "512x512"}}, "b": {"share": 1}},
            },
            "this one has none",
        ),
    ],
)
def test_what_fits_nothing_is_refused(workload: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build(shaped(**workload))


def test_who_knows_nothing_of_shapes_says_so() -> None:
    for call in (most_met, Alone):
        with pytest.raises(BadInput, match="knows nothing of shapes"):
            call(shaped())


def test_what_a_shape_is_called() -> None:
    assert str(Shape(480, 832, frames=81, guidance=2, images=3)) == "480x832 x 81 frames, guidance 2, 3 images"


def with_memory(tmp_path: Path, gib: float, policy: str = "fcfs", **more: Any) -> Experiment:
    """On a device of so many GiB."""
    text = (DATA / "synthetic/sdxl-shapes.yaml").read_text().replace("memory_gib: 40.0", f"memory_gib: {gib}")
    text = text.replace("slot_gib: 0.08", "slot_gib: 0.5").replace("slot_gib: 0.01", "slot_gib: 0.5")
    (tmp_path / "gpu.yaml").write_text(text.replace("slot_gib: 0.02", "slot_gib: 0.5"))
    return load(
        {
            "extends": SHAPES,
            "policy": {"name": policy},
            "workload": {"requests": 60, **more},
            "deployment": {"devices": {"gpu0": str(tmp_path / "gpu.yaml")}},
        }
    )


def most_at_once(folder: Path) -> int:
    """The most requests that a policy saw together."""
    stays = [r["stages"][0] for r in records(folder, "requests")]
    stays = [s for s in stays if s["admitted"] is not None]
    moments = sorted((s["admitted"], s["finished"] if s["finished"] is not None else s["admitted"]) for s in stays)
    return max(sum(a <= at < b for a, b in moments) for at, _ in moments)


@pytest.mark.parametrize("policy", ["fcfs", "edf", "slack-batch"])
def test_no_more_requests_are_in_service_than_fit(policy: str, tmp_path: Path) -> None:
    """Weights of 7 GiB and a peak of 12 leave 1.2 GiB of 20.2: slots of 0.5 for two requests."""
    experiment = with_memory(tmp_path, 20.2, policy)
    checker = InvariantChecker()
    made = build(experiment, checker)
    checker.watch(made.loop)
    made.play()
    checker.finish()
    run(experiment, tmp_path / "run")
    assert most_at_once(tmp_path / "run") == 2
    assert max(len(batch["requests"]) for batch in records(tmp_path / "run", "batches")) == 2
    told = json.loads((tmp_path / "run/summary.json").read_text())["shapes"]["encode+unet+vae"]
    assert told["gib"] == pytest.approx(1.2)
    assert told["limits"] == {"512x512": 2, "1024x1024": 2, "768x1344": 2, "2048x2048": 1}


def test_a_shape_that_never_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a request of 2048x2048 takes 12.5 GiB, and 8 GiB are left of gpu0"):
        build(with_memory(tmp_path, 15.0))
    with pytest.raises(BadInput, match=r"beside a batch of 2048x2048 there is no room .* 512x512, 4 images"):
        build(
            with_memory(
                tmp_path,
                19.7,
                shape={"draw": "choice", "values": ["2048x2048", {"size": "512x512", "images": 4}], "weights": None},
            )
        )
    build(with_memory(tmp_path, 15.0, shape={"draw": "constant", "size": "1024x1024"}))


def test_a_shape_may_be_set_where_a_workload_has_none() -> None:
    said = {"draw": "constant", "size": "256x256"}
    own = load("dit-s2-256-rtx4090", [("workload.shape", said), ("workload.draws", "seeded"), ("requests", 20)])
    assert {r.shape for r in build(own).source} == {Shape(256, 256)}
    with pytest.raises(BadInput, match="nobody measured 512x512"):
        build(
            load(
                "dit-s2-256-rtx4090", [("workload.shape", {**said, "size": "512x512"}), ("workload.draws", "seeded")]
            )
        )


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        ("Stable Diffusion XL", "1024x1020", r"1024x1020: sides of sdxl-1024 are multiples of 8 pixels .*1024x1024"),
        ("FLUX.1 dev", "1032x1032", r"1032x1032: sides of flux1-dev-1024 are multiples of 16 pixels"),
        ("a model of mine", "1023x1023", None),
    ],
)
def test_a_size_that_the_model_cannot_make_is_refused(
    model: str, size: str, said: str | None, tmp_path: Path
) -> None:
    """In simulation too, where the profile is of a model that comes along."""
    text = (DATA / "synthetic" / "sdxl-shapes.yaml").read_text()
    (tmp_path / "p.yaml").write_text(re.sub(r"(?m)^model: .*", f"model: {model}", text))
    deployment = {"devices": {"gpu0": str(tmp_path / "p.yaml")}}
    experiment = load(
        {
            "extends": SHAPES,
            "deployment": deployment,
            "workload": {"requests": 5, "shape": {"draw": "constant", "size": size}},
        }
    )
    if said is None:
        assert run(experiment).requests == 5
        return
    with pytest.raises(BadInput, match=said):
        run(experiment)


def test_two_runs_are_compared_shape_by_shape(tmp_path: Path) -> None:
    """The time of an iteration is held against the table of its shape."""
    for world, seed in (("a", 0), ("b", 1)):
        run(shaped().model_copy(update={"seed": seed}), tmp_path / world)
    found = compare(tmp_path / "a", tmp_path / "b")
    times = {"512x512": 24.0, "1024x1024": 55.0}
    for shape, alone in times.items():
        ms = found["iterations"][f"encode+unet+vae of {shape}"][1]
        assert ms["table"] == pytest.approx(alone)
        assert [ms["first"], ms["second"]] == pytest.approx([alone, alone])
        assert ms["first_over_table"] == pytest.approx(1.0, abs=0.05)  # of means, pauses included
    assert len(found["iterations"]) == 4
    shapes = {"draw": "constant", "size": "512x512"}
    run(shaped(shape=shapes), tmp_path / "other")
    assert compare(tmp_path / "a", tmp_path / "other")["other_requests"] == "they ask for other work"
    lines = (tmp_path / "a" / "requests.jsonl").read_text()
    (tmp_path / "a" / "requests.jsonl").write_text(lines.replace('"height": 512, ', "", 1))
    with pytest.raises(BadInput, match=r"requests.jsonl.*shape.*height"):
        compare(tmp_path / "a", tmp_path / "b")
