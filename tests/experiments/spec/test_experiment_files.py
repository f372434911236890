"""Experiment files: what extends what, what overrides what, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.registry.catalog import workload_names
from servetwin.experiments.spec import yaml_io
from servetwin.experiments.spec.loading import load, parse_override

SIX = [
    "dit-s2-256-rtx4090",
    "dit-xl2-256-rtx4090",
    "palette-256-rtx4090",
    "sd15-256-rtx4090",
    "sd15-512-h100",
    "sd15-512-rtx4090",
]
OURS = ["dit-s2-256-h100", "dit-xl2-256-h100", "palette-256-h100", "sd15-256-h100", "sd15-512-h100-graphs"]
OPT = ["opt-13b-a6000", "opt-13b-h100", "opt-13b-h100-async", "opt-30b-a6000", "opt-66b-a6000", "tiny-opt-cpu"]
PIPELINES = [
    "flux-groups-published",
    "matplotagent-h200",
    "matplotagent-rtx4090",
    "sdxl-actions-synthetic",
    "sdxl-caption-synthetic",
    "sdxl-cascade-synthetic",
    "sdxl-shapes-synthetic",
]
MLPERF = ["mlperf-sdxl-gh200", "mlperf-sdxl-h100x8"]
TINY = ["tiny-dit-cpu", "tiny-palette-cpu", "tiny-sd-cpu"]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


# -- the workloads that come along ----------------------------------------------------------------------


def test_the_workloads_are_there():
    assert workload_names() == sorted([*SIX, *OURS, *OPT, *TINY, *PIPELINES, *MLPERF])


@pytest.mark.parametrize("policy", ["neustream", "clockwork", "fcfs", "edf"])
@pytest.mark.parametrize("name", [*SIX, *OURS, *TINY])
def test_every_workload_is_set_up_for_every_policy(name, policy):
    experiment = load(name, [("policy", policy)])
    assert experiment.name == name
    assert experiment.policy.name == policy
    assert experiment.workload.requests == (100 if name in TINY else 500)


def test_neustream_had_a_worker_per_stage_and_clockwork_one_for_all():
    neustream = load("sd15-256-rtx4090", [("variant", "neustream-ae")]).deployment
    assert [w.modules for w in neustream.workers] == [["clip"], ["unet"], ["vae", "safety"]]
    assert {w.intake for w in neustream.workers} == {"after"}
    clockwork = load("sd15-256-rtx4090", [("variant", "clockwork-ae")]).deployment
    assert [w.modules for w in clockwork.workers] == [["clip", "unet", "vae", "safety"]]


def test_a_run_of_a_session_is_set_up_as_it_was_then():
    chosen = [("variant", "neustream-ae")]
    early = load("sd15-256-rtx4090", chosen, session="2024-04-29 05:06:40")
    assert early.deployment.workers[1].limit == 15
    assert early.deployment.name == "stages, changed"
    assert early.time.session == "2024-04-29 05:06:40"
    assert load("sd15-256-rtx4090", chosen, session="2024-04-29 14:12:41").deployment.workers[1].limit == 40


# -- extending ------------------------------------------------------------------------------------------


def test_a_file_says_only_what_differs(toy: Path):
    child = write(toy.parent, "child.yaml", "extends: toy.yaml\nname: child\nslo: {factor: 5.0}\n")
    parent, experiment = load(toy), load(child)
    assert (experiment.name, experiment.slo.factor) == ("child", 5.0)
    assert experiment.deployment == parent.deployment


def test_paths_in_a_file_are_relative_to_it(toy: Path):
    folder = toy.parent / "elsewhere"
    folder.mkdir()
    child = write(folder, "child.yaml", "extends: ../toy.yaml\npolicy: {name: mine.py}\n")
    write(folder, "mine.py", "from servetwin.policies.diffusion.edf import EDF\n\n\nclass Mine(EDF):\n    pass\n")
    experiment = load(child)
    assert experiment.deployment.devices["gpu0"] == str(toy.parent / "profile.yaml")
    assert experiment.policy.name == str(folder / "mine.py")


def test_another_policy_takes_no_parameters_along(toy: Path):
    child = write(toy.parent, "child.yaml", "extends: toy.yaml\npolicy: {name: edf, params: {drop_late: false}}\n")
    assert load(child).policy.params == {"max_batch": None, "drop_late": False}
    assert load(child, [("policy", "fcfs")]).policy.params == {"max_batch": None}


def test_another_arrival_process_keeps_what_it_knows(toy: Path):
    arrivals = load(toy, [("workload.arrivals.process", "poisson")]).workload.arrivals
    assert arrivals.model_dump() == {"process": "poisson", "rate": 4.0}


def test_an_absolute_slo_takes_the_place_of_a_relative_one(toy: Path):
    child = write(toy.parent, "child.yaml", "extends: toy.yaml\nslo: {seconds: 2}\n")
    assert load(child).slo.model_dump() == {"seconds": 2.0}
    assert load(toy, [parse_override("slo={seconds: 0.5}")]).slo.model_dump() == {"seconds": 0.5}


# -- overriding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("slo.factor=2.5", lambda e: (e.slo.factor, 2.5)),
        ("rate=1e1", lambda e: (e.workload.arrivals.rate, 10.0)),
        ("deployment.workers.1.limit=4", lambda e: (e.deployment.workers[1].limit, 4)),
        ("policy.params.drop_late=false", lambda e: (e.policy.params["drop_late"], False)),
        ("system.stop_after=1.5", lambda e: (e.system.stop_after, 1.5)),
        ("about=yes", lambda e: (e.about, "yes")),
        ("time.session=2024-04-29 05:00", lambda e: (e.time.session, "2024-04-29 05:00:00")),
    ],
)
def test_overrides_are_read_as_yaml(toy: Path, override, key):
    found, expected = key(load(toy, [parse_override(override)]))
    assert found == expected


def test_a_resolved_experiment_written_out_is_the_same_experiment(toy: Path):
    for experiment in (load(toy), *(load(name) for name in SIX)):
        text = yaml_io.write(experiment.as_dict())
        again = load(write(toy.parent, "again.yaml", text))
        assert again == experiment
        assert again.digest() == experiment.digest()


def test_the_digest_tells_experiments_apart_but_not_by_their_comments(toy: Path):
    assert load(toy, [("about", "something")]).digest() == load(toy).digest()
    assert load(toy, [("rate", 4.5)]).digest() != load(toy).digest()


# -- saying what is wrong -------------------------------------------------------------------------------

WRONG_FILES = {
    "unknown key": ("workload: {requsts: 3}", ["child.yaml:2", "workload.requsts", "unknown key", "requests"]),
    "unknown key in an arrival process": (
        "workload: {arrivals: {cvv: 3}}",
        ["child.yaml:2", "workload.arrivals.cvv", "unknown key 'cvv'", "cv"],
    ),
    "gaps that do not vary": (
        "workload: {arrivals: {process: gamma, cv: 0}}",
        ["workload.arrivals.cv", "0 does not fit", "greater than or equal to 0.001", "process: constant"],
    ),
    "wrong type": ("slo: {factor: fast}", ["child.yaml:2: slo.factor", "'fast'", "a valid number"]),
    "a number as text": ('workload: {requests: "60"}', ["workload.requests", "'60'", "a valid integer"]),
    "out of range": ("slo: {factor: -1}", ["slo.factor", "-1", "greater than 0"]),
    "unknown kind": ("workload: {arrivals: {process: poison}}", ["unknown process 'poison'", "poisson"]),
    "kind that stands elsewhere": (
        "workload: {classes: {a: {arrivals: {process: closed, clients: 3}}}}",
        [
            "workload.classes.a.arrivals.process: process 'closed' is none of those that may stand here",
            "(right would be: one of gamma, poisson, constant, bursty, schedule)",
        ],
    ),
    "kind without what it needs": ("workload: {arrivals: {process: trace}}", ["workload.arrivals.file", "missing"]),
    "unknown policy": ("policy: {name: neustrem}", ["child.yaml:2: policy.name", "'neustrem'", "neustream"]),
    "policy that is no mapping": ("policy: edf", ["child.yaml:2: policy", "'edf' does not fit", "policy: {...}"]),
    "policy file that is not there": ("policy: {name: nope.py}", ["policy.name", "nope.py", "no such policy file"]),
    "unknown policy parameter": (
        "policy: {name: edf, params: {drop_lat: 1}}",
        ["child.yaml:2: policy.params.drop_lat", "no parameter", "drop_late"],
    ),
    "policy parameter of another type": (
        "policy: {name: edf, params: {drop_late: 1}}",
        ["policy.params.drop_late", "1 does not fit", "bool"],
    ),
    "worker of an unknown module": (
        "deployment: {workers: [{modules: [denois], device: gpu0, limit: 1}]}",
        ["deployment.workers.0.modules", "'denois'", "denoise"],
    ),
    "worker on an unknown device": (
        "deployment: {workers: [{modules: [encode], device: gpu1, limit: 1}]}",
        ["deployment.workers.0.device", "'gpu1'", "gpu0"],
    ),
    "worker without a limit": (
        "deployment: {workers: [{modules: [encode], device: gpu0}]}",
        ["deployment.workers.0.limit", "missing"],
    ),
    "steps of a module without a loop": (
        "workload: {steps: {encode: {draw: constant, steps: 3}}}",
        ["workload.steps.encode", "not a loop module", "denoise"],
    ),
    "bounds the wrong way round": (
        "workload: {steps: {denoise: {draw: uniform, low: 50, high: 30}}}",
        ["workload.steps.denoise.low", "50 is above high"],
    ),
    "repeating random numbers that were never published": (
        "workload: {draws: published, arrivals: {process: poisson, rate: 1.0}}",
        ["workload.draws", "poisson", "seeded"],
    ),
    "a key twice": ("seed: 1\nseed: 2", ["child.yaml:3", "'seed' stands twice"]),
    "no YAML": ("slo: {factor: 1", ["child.yaml:", "no valid YAML"]),
    "by_policy, of old": ("by_policy: {edf: {}}", ["child.yaml", "by_policy is no key any more", "deployments:"]),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_told_in_one_line(toy: Path, case):
    text, expected = WRONG_FILES[case]
    child = write(toy.parent, "child.yaml", f"extends: toy.yaml\n{text}\n")
    with pytest.raises(BadInput) as caught:
        load(child)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


WRONG_OVERRIDES = {
    "slo.factr=2": ["slo has no key 'factr'", "factor"],
    "policy.params.foo=1": ["policy.params has no key 'foo'", "drop_late"],
    "deployment.workers.7.limit=1": ["deployment.workers has no key '7'", "0"],
    "name.first=1": ["name has no key 'first'"],
    "slo.factor=fast": ["--set slo.factor", "'fast'", "a valid number"],
    "slo.factor": ["sets nothing", "--set slo.factor=2.5"],
    "slo.factor=[1": ["--set slo.factor", "no valid YAML"],
    "policy=neustrem": ["--set policy", "'neustrem'", "neustream"],
    "policy=3": ["3 is no policy"],
    "cv=0": ["--set cv", "workload.arrivals.cv", "0.001"],
    "time.session=soon": ["--set time.session", "'soon'", "a date and time"],
}


@pytest.mark.parametrize("override", WRONG_OVERRIDES)
def test_a_wrong_override_is_told_in_one_line(toy: Path, override):
    with pytest.raises(BadInput) as caught:
        load(toy, [parse_override(override)])
    message = str(caught.value)
    assert "\n" not in message
    for part in WRONG_OVERRIDES[override]:
        assert part in message, message


def test_names_and_files_that_are_not_there(toy: Path):
    with pytest.raises(BadInput, match=r"unknown workload 'dit-s2-256'.*dit-s2-256-h100"):
        load("dit-s2-256")
    with pytest.raises(BadInput, match=r"nowhere.yaml: there is no such file"):
        load(toy.parent / "nowhere.yaml")
    child = write(toy.parent, "child.yaml", "extends: toi.yaml\n")
    with pytest.raises(BadInput, match=r"toi.yaml: there is no such file"):
        load(child)
    with pytest.raises(BadInput, match=r"child.yaml: extends: unknown workload 'toy'"):
        load(write(toy.parent, "child.yaml", "extends: toy\n"))
    with pytest.raises(BadInput, match="extends itself"):
        load(write(toy.parent, "child.yaml", "extends: child.yaml\n"))
    with pytest.raises(BadInput, match="no mapping"):
        load(write(toy.parent, "child.yaml", "- a\n"))


def test_the_wrong_line_is_named_in_the_file_that_holds_it(toy: Path):
    toy.write_text(toy.read_text().replace("factor: 3.0", "factor: 0"))
    child = write(toy.parent, "child.yaml", "extends: toy.yaml\n")
    line = next(i for i, text in enumerate(toy.read_text().splitlines(), 1) if "factor: 0" in text)
    with pytest.raises(BadInput, match=rf"toy.yaml:{line}: slo.factor"):
        load(child)


def test_a_router_by_its_short_name_may_be_a_mapping():
    """As `deployment.router` may; `policy` and `slo` are keys of their own, whose mappings stand there."""
    stale = {"name": "jsq", "stale": 2}
    short, full = (
        load("opt-13b-a6000", [("policy", "vllm-v1"), (key, stale)]) for key in ("router", "deployment.router")
    )
    assert short == full
    assert short.deployment.router.stale == 2.0
    own = {"prefill": None, "decode": None, "limits": {"ttft_ms": 9}}
    named = load("opt-13b-a6000", [("policy", {"name": "vllm-v1"}), ("slo", own)])
    assert (named.policy.name, named.slo.limits.ttft_ms) == ("vllm-v1", 9)
