"""Tiny models from the command line, as a user without a GPU has them: profile, serve under every policy, simulate,
compare, trace. Nothing is mocked; where something has to break, it is broken on purpose.
"""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml
from servetwin.core import Outcome
from servetwin.core.installed import not_installed
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as load_profile
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.models import find

LIMIT = 3
POLICIES = ["neustream", "clockwork", "edf", "fcfs"]
#: Attainment may differ by this many points between the worlds: the machines that run this are small and busy.
TOLERANCE = 20.0
#: A run is repeated so often, with a profile taken anew, before a difference counts: these hosts run at half their
#: speed for spells, which a profile taken in another spell cannot know.
TRIES = 3
#: A request takes this many seconds alone, so that its SLO is well above the hiccups of a busy host.
ALONE = 0.08
REQUESTS = 15
#: The share of its time that a device is busy if it serves requests one by one: enough for some company, and with
#: batches it can do so much at half its speed too.
LOAD = 0.6


class Tiny:
    """A tiny model in a folder of its own, with the profile just taken of it."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.loop = find(name).loop
        self.taken = 0

    def take_profile(self, servetwin):
        arguments = ("--device", "cpu", "--brief", "--seconds", 0.05, "--limit", LIMIT, "--reuse")
        for _ in range(TRIES):
            self.taken += 1
            self.profile = self.folder / f"{self.taken}.yaml"
            code, out, err = servetwin("profile", self.name, *arguments, "--out", self.profile)
            if "nothing else running on this machine" not in err:  # what is measured on a busy machine is refused
                break
        assert (code, err) == (0, "")
        assert f"deployment.devices.gpu0={self.profile}" in out

    def settings(self, policy, requests=REQUESTS, seed=0, seconds=ALONE):
        """Options for `run`: requests of so many seconds at `LOAD`, by what the profile says."""
        profile = load_profile(str(self.profile))
        steps = min(max(round(seconds / profile.estimate()(self.loop, 1)), 8), 120)
        alone = sum(profile.estimate()(m, 1) * (steps if m == self.loop else 1) for m in profile.modules)
        sets = {
            "deployment.devices.gpu0": self.profile,
            f"workload.steps.{self.loop}.low": steps * 3 // 4,
            f"workload.steps.{self.loop}.high": steps * 5 // 4,
        }
        for i in range(len(load(f"{self.name}-cpu", [("policy", policy)]).deployment.workers)):
            sets[f"deployment.workers.{i}.limit"] = LIMIT
        options = ["--policy", policy, "--requests", requests, "--seed", seed, "--rate", LOAD / alone]
        return [f"{self.name}-cpu", *options, *(part for k, v in sets.items() for part in ("--set", f"{k}={v}"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each for all tests of this file: a profile takes seconds."""
    return {name: Tiny(name, tmp_path_factory.mktemp(name)) for name in ("tiny-sd", "tiny-dit", "tiny-palette")}


@pytest.fixture(params=["tiny-sd", "tiny-dit", "tiny-palette"])
def tiny(request, models):
    return models[request.param]


@pytest.fixture
def dit(servetwin, models):
    """With a profile; for tests to which times do not matter."""
    if not models["tiny-dit"].taken:
        models["tiny-dit"].take_profile(servetwin)
    return models["tiny-dit"]


@pytest.mark.parametrize("policy", POLICIES)
def test_profile_run_simulate_compare_trace(servetwin, tiny, policy, tmp_path):
    gaps = []
    for attempt in range(TRIES):
        if attempt or not tiny.taken:
            tiny.take_profile(servetwin)
        real, simulated = tmp_path / f"real{attempt}", tmp_path / f"simulated{attempt}"
        settings = tiny.settings(policy, seed=attempt)
        code, out, err = servetwin("run", *settings, "--backend", "real", "--device", "cpu", "--out", real)
        assert (code, err) == (0, "")
        assert f"{tiny.name}-cpu, {policy}, rate" in out
        assert "client late by" in out
        assert f"records in {real}" in out
        check_records(real)
        meta = json.loads((real / "meta.json").read_text())
        assert (meta["kind"], meta["model"]) == ("real", tiny.name)
        assert meta["versions"]["torch"] == torch.__version__
        assert meta["devices"]["gpu0"]["name"] == load_profile(str(tiny.profile)).data.device.name
        summary = json.loads((real / "summary.json").read_text())
        assert summary["requests"] == REQUESTS
        assert summary["failed"] == 0
        assert servetwin("run", *settings, "--out", simulated)[0] == 0
        found = json.loads(servetwin("compare", real, simulated, "--json")[1])
        gaps.append(found["attainment"]["gap"])
        if abs(gaps[-1]) <= TOLERANCE:
            break
    else:
        pytest.fail(f"attainment, simulated minus real: {gaps}")
    told = json.loads((real / "real.json").read_text())
    assert told["lateness_ms"]["samples"] == REQUESTS
    worker = next(name for name in summary["workers"] if tiny.loop in name.split("+"))
    assert (worker in found["iterations"]) == (policy in ("neustream", "edf"))  # else whole batches, each one period
    code, out, _ = servetwin("trace", real, simulated, "--out", tmp_path / "trace.json")
    assert code == 0
    processes = {e["pid"] for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert processes == {1, 2}


def test_steps_are_reused_by_the_profile_that_the_command_took(servetwin, dit, tmp_path):
    cost = load_profile(str(dit.profile)).data.costs["dit.reuse"]
    assert cost.by_batch is not None
    assert [*cost.by_batch.batch] == [*range(1, LIMIT + 1)]
    assert all(0.0 < ratio < 1.0 for ratio in cost.by_batch.values)
    actions = "{quality: [[0.4, 0.7], [1.0, 1.0]], source: a test, reuse: true}"
    settings = [*dit.settings("reuse-steps"), "--set", f"pipeline.modules.dit.actions={actions}"]
    code, out, err = servetwin("run", *settings, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "of the steps asked for were run" in out
    check_records(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["quality"]["steps_skipped"] > 0


def test_the_profile_is_whole(servetwin, tiny):
    if not tiny.taken:
        tiny.take_profile(servetwin)
    profile = load_profile(str(tiny.profile))
    assert profile.modules == find(tiny.name).modules
    assert profile.name.endswith(f"/{tiny.name}")
    assert profile.data.device.kind == "cpu"
    assert "--brief --seconds 0.05" in profile.data.origin.repository
    for module in profile.modules:
        table = profile.table(module, "scheduler")
        assert (table.smallest, table.largest) == (1, LIMIT)
    if tiny.name == "tiny-sd":  # each stage beside each other, and beside both
        stages = {"clip", "unet", "vae"}
        for stage in stages:
            one, other = sorted(stages - {stage})
            beside = {f"{stage}.device_beside.{names}" for names in (one, other, f"{one}_and_{other}")}
            assert beside <= set(profile.costs)
    if tiny.name == "tiny-palette":  # no other stage that could be busy at the wrong moment
        for cost in ("joins", "leaves", "pauses"):
            by_batch = profile.cost(f"unet.{cost}").by_batch
            assert by_batch is not None
            assert by_batch.batch[0] == 1
            assert by_batch.batch[-1] <= LIMIT


def test_a_grid_is_served_scored_and_decided(servetwin, dit, tmp_path):
    """A sweep for real, which goes on where it was cut off, and its repetition with the requests that were sent."""
    settings = dit.settings("edf", requests=8, seconds=0.02)
    sets = dict(part.split("=", 1) for part in settings[settings.index("--set") + 1 :: 2])
    rate = float(settings[settings.index("--rate") + 1])
    spec = {
        "extends": "tiny-dit-cpu",
        "set": {"requests": 8, **{k: yaml.safe_load(v) for k, v in sets.items()}},
        "grid": {"policy": ["edf", "neustream"], "rate": [rate, 2 * rate]},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(spec))
    arguments = ("sweep", tmp_path / "grid.yaml", "--backend", "real", "--device", "cpu", "--out", tmp_path / "runs")
    code, out, err = servetwin(*arguments)
    assert (code, err) == (0, "")
    assert "4 runs in" in out
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("summary.json")}
    assert len(first) == 4
    next(iter(first)).unlink()  # as if that run had been cut off
    assert servetwin(*arguments, "--repeats", 2)[0] == 0
    second = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("summary.json")}
    assert len(second) == 8
    assert sum(first.get(p) == at for p, at in second.items()) == 3
    code, out, err = servetwin(
        "score", tmp_path / "runs", "--out", tmp_path / "s.csv", "--keep", tmp_path / "again", "-j", 1, "--seeds", 1
    )
    assert (code, err) == (0, "")
    assert "4 cells repeated with the same requests" in out
    assert "8 rows in" in out
    for folder in (tmp_path / "again").iterdir():
        sent, again = (
            sorted((r["id"], r["arrival"], r["deadline"]) for r in map(json.loads, path.read_text().splitlines()))
            for path in (tmp_path / "runs" / folder.name / "requests.jsonl", folder / "requests.jsonl")
        )
        assert sent == again
    code, out, _ = servetwin("compare", tmp_path / "runs", tmp_path / "again")
    assert "4 cells: |B - A| mean" in out
    code, out, err = servetwin(*arguments, "--until", "1pp")
    assert (code, out) == (2, "")
    assert "--until: only simulations take this" in err


MINE = """
from aid import ORDER
from servetwin.core import Decision, Policy


class Mine(Policy):
    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: ORDER * task.request.id)
        return Decision(tasks[: view.limit])
"""


def test_a_grid_goes_on_only_with_what_its_runs_were_made_with(servetwin, dit, tmp_path, monkeypatch):
    """Policy, options and profile are those of the runs that are there, or that is said and nothing is served."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "aid.py").write_text("ORDER = 1\n")
    profile = tmp_path / "profile.yaml"
    profile.write_text(dit.profile.read_text())
    settings = dit.settings("edf", requests=4, seconds=0.02)
    sets = dict(part.split("=", 1) for part in settings[settings.index("--set") + 1 :: 2])
    sets = {k: yaml.safe_load(v) for k, v in sets.items()}
    spec = {
        "extends": "tiny-dit-cpu",
        "set": {"requests": 4, **sets, "deployment.devices.gpu0": str(profile), "policy": str(tmp_path / "mine.py")},
        "grid": {"seed": [0, 1]},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(spec))
    arguments = ("sweep", tmp_path / "grid.yaml", "--backend", "real", "--device", "cpu", "--out", tmp_path / "runs")

    def runs() -> set[Path]:
        return set((tmp_path / "runs").rglob("summary.json"))

    def refused(*more: str) -> str:
        before = runs()
        code, out, err = servetwin(*arguments, *more)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "this run was made with another state of what it takes" in err
        assert "another --out; or --as-they-are" in err
        assert runs() == before
        return err

    assert servetwin(*arguments)[::2] == (0, "")
    assert len(runs()) == 2
    assert servetwin(*arguments)[::2] == (0, "")
    assert len(runs()) == 2
    (tmp_path / "aid.py").write_text("ORDER = -1\n")
    assert "mine.py (aid.py)" in refused()
    (tmp_path / "aid.py").write_text("ORDER = 1\n")
    assert servetwin(*arguments)[::2] == (0, "")
    assert "--sampler (ddim, now euler)" in refused("--sampler", "euler")
    assert "--slots (256, now 300)" in refused("--slots", "300")
    content = yaml.safe_load(profile.read_text())
    content["description"] += "."
    profile.write_text(yaml.safe_dump(content))
    assert f"the profile {content['name']}" in refused()
    assert servetwin(*arguments, "--as-they-are", "--repeats", 2)[::2] == (0, "")
    assert len(runs()) == 4


def test_euler_weights_and_any_device(servetwin, dit, tmp_path):
    """The options reach the model, and a profile of another device is refused unless one insists."""
    content = yaml.safe_load(dit.profile.read_text())
    content["device"]["name"] = "NVIDIA H100 80GB HBM3"
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text(yaml.safe_dump(content))
    settings = [str(s).replace(str(dit.profile), str(foreign)) for s in dit.settings("edf", requests=4)]
    assert f"deployment.devices.gpu0={foreign}" in settings
    settings += ["--backend", "real", "--device", "cpu", "--sampler", "euler", "--out", tmp_path / "run"]
    code, out, err = servetwin("run", *settings)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is of NVIDIA H100 80GB HBM3, but gpu0 is" in err
    assert "servetwin profile tiny-dit --device cpu" in err
    assert "--any-device" in err
    assert not (tmp_path / "run").exists()
    assert servetwin("run", *settings, "--any-device")[0] == 0
    options = json.loads((tmp_path / "run" / "meta.json").read_text())["options"]
    assert (options["scheduler"], options["weights"], options["devices"]) == ("euler", "random", {"gpu0": "cpu"})
    assert servetwin("run", *settings, "--any-device")[0] == 2  # the folder holds a run already


# -- wrong input ------------------------------------------------------------------------------------------

TOY = """
name: toy
pipeline: {modules: {encode: {}, dit: {loop: true}}}
workload: {requests: 5, arrivals: {process: poisson, rate: 1.0}, steps: {dit: {draw: constant, steps: 5}}}
slo: {factor: 3.0}
policy: {name: edf}
deployment: {devices: {gpu0: cpu/tiny-dit}, workers: [{modules: [encode, dit], device: gpu0, limit: 2}]}
"""

REAL = ["--backend", "real", "--device", "cpu"]
WRONG = {
    "no GPU": (["run", "tiny-dit-cpu", "--backend", "real"], "device 'cuda:0' is asked for, but torch sees no GPU"),
    "no GPU to profile": (["profile", "tiny-dit", "--out", "new.yaml"], "but torch sees no GPU"),
    "no such device": (["run", "tiny-dit-cpu", "--backend", "real", "--device", "tpu"], "unknown device 'tpu'"),
    "another's profile": (["run", "dit-s2-256-rtx4090", *REAL], "is of NVIDIA GeForce RTX 4090, but gpu0 is"),
    "no modules": (["run", "toy.yaml", *REAL], "there are no real modules for the pipeline vae -> dit"),
    "a language model of another device": (
        ["run", "opt-13b-a6000", "--backend", "real"],
        "is of NVIDIA RTX A6000, but this machine has"
        if not not_installed("vllm")
        else "real language models need vllm",
    ),
    "not that model": (["run", "tiny-dit-cpu", *REAL, "--model", "tiny-sd"], "tiny-sd does not have the modules of"),
    "no such model": (["run", "tiny-dit-cpu", *REAL, "--model", "dalle"], "unknown model 'dalle'"),
    "too many steps": (["run", "tiny-dit-cpu", *REAL, "--set", "workload.steps.dit.high=2000"], "denoising steps"),
    "no such sampler": (["run", "tiny-dit-cpu", *REAL, "--sampler", "heun"], "unknown sampler 'heun'"),
    "no such weights": (["run", "tiny-dit-cpu", *REAL, "--weights", "none"], "there is no such folder"),
    "nothing to profile": (["profile", "dalle", "--device", "cpu", "--out", "new.yaml"], "unknown model 'dalle'"),
    "the file is there": (["profile", "tiny-dit", "--device", "cpu", "--out", "toy.yaml"], "is there already"),
    "no profile's ending": (["profile", "tiny-dit", "--device", "cpu", "--out", "new.json"], "no kind of profile"),
    "no name": (["profile", "tiny-dit", "--device", "cpu", "--out", "new.yaml", "--name", "Mine!"], "is no name"),
    "no batches": (["profile", "tiny-dit", "--device", "cpu", "--out", "new.yaml", "--limit", "0"], "1 at least"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_in_one_line_with_exit_code_2(servetwin, case, tmp_path, monkeypatch):
    arguments, message = WRONG[case]
    if torch.cuda.is_available() and "no GPU" in message:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(TOY.replace("encode", "vae"))
    if arguments[0] == "run":
        arguments = [*arguments, "--out", "made", "--any-device"][: None if "another" not in case else -1]
    code, out, err = servetwin(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("servetwin: ")
    assert message in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["toy.yaml"]


# -- what breaks in mid-run -------------------------------------------------------------------------------


@pytest.fixture
def interrupted():
    """Call it to be interrupted once something is so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
    over = threading.Event()
    threads = []

    def when(so):
        def wait():
            while not over.wait(0.02):
                if so():
                    os.kill(os.getpid(), signal.SIGINT)
                    return

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield when
    over.set()
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_no_half_written_profile(servetwin, interrupted, monkeypatch, tmp_path):
    steps = []
    step = DeviceSlots.step
    monkeypatch.setattr(DeviceSlots, "step", lambda slots, *more: (steps.append(1), step(slots, *more))[1])
    interrupted(lambda: len(steps) > 100)  # in the midst of measuring
    code, out, err = servetwin("profile", "tiny-sd", "--device", "cpu", "--out", tmp_path / "my.yaml")
    assert (code, out, err) == (130, "", "servetwin: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_the_records_of_a_run(servetwin, interrupted, tmp_path):
    folder = tmp_path / "run"
    requests = folder / "requests.jsonl"
    interrupted(lambda: requests.is_file() and requests.stat().st_size)  # once some are served
    options = [
        "--backend",
        "real",
        "--device",
        "cpu",
        "--any-device",
        "--rate",
        20,  # records reach the file by the block
        "--requests",
        500,
        "--out",
        folder,
    ]
    code, out, err = servetwin("run", "tiny-dit-cpu", *options)
    assert (code, out) == (130, "")
    assert err == f"servetwin: interrupted; what was recorded is in {folder}\n"
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert 0 < len(records) < 500
    assert all(r["outcome"] for r in records)
    assert not (folder / "summary.json").exists()
    assert not (folder / "real.json").exists()
    assert "did not come to its end" in servetwin("compare", folder, folder)[2]


def test_a_run_that_breaks_says_why_and_where_its_records_are(servetwin, tmp_path, monkeypatch):
    calls = []
    step = DeviceSlots.step

    def breaks(slots, *batch):
        calls.append(1)
        if len(calls) > 200:
            raise torch.OutOfMemoryError("no memory")
        step(slots, *batch)

    monkeypatch.setattr(DeviceSlots, "step", breaks)
    folder = tmp_path / "run"
    options = ["--backend", "real", "--device", "cpu", "--any-device", "--rate", 20, "--out", folder]
    code, out, err = servetwin("run", "tiny-dit-cpu", *options)
    assert (code, out) == (1, "")
    assert err == (
        f"servetwin: the run ended early: the device ran out of memory; what was recorded is in {folder}\n"
    )
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    failed = [r for r in records if r["outcome"] == Outcome.FAILED]
    assert failed
    assert {r["reason"] for r in failed} == {"the device ran out of memory"}
    assert not (folder / "summary.json").exists()
