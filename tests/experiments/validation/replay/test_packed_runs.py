"""Run folders packed into one file: repeated from there as from where they were; and the gate on those that were
measured on several devices."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from held_points import hold_scored
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.registry.catalog import MEASURED
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison.compare_runs import over_profile, read
from servetwin.experiments.validation.replay import packed_runs
from servetwin.experiments.validation.score import score
from servetwin.profiles import load as load_profile

#: Gaps in points of attainment, mean and largest over two seeds: what a recording that comes along must reach, and
#: what those have reached that do not.
WANTED = (0.5, 2.0)
REACHED = {  # DiT's first run was on quicker GPUs than all others (docs/reports/2026-11-h200-pair.md)
    "h200-pair/folders-dit-xl2-256.json.gz": (0.65, 3.1),
    "h200-pair/folders-sd15-512.json.gz": (0.6, 1.6),
    # One of twelve is 2.33 points off; a request is a third of a point (docs/reports/2026-11-h200-shapes.md).
    "h200-shapes/folders-sdxl-1024.json.gz": (0.6, 2.4),
    "h200-shapes/folders-flux1-dev-1024.json.gz": (0.6, 1.4),
}
RECORDINGS = sorted(str(path.relative_to(MEASURED)) for path in MEASURED.rglob("folders-*.json.gz"))

ROUTER = """from servetwin.core.routing import Router


class Last(Router):
    def route(self, request, workers, now):
        return workers[-1] if request.id % 3 else workers[0]
"""


def experiment(profiles: list[str], router: str, rate: float) -> dict:
    workers = [{"modules": [m], "device": d, "limit": 2} for d in ("gpu0", "gpu1") for m in ("dit", "vae")]
    devices = dict(zip(("gpu0", "gpu1"), profiles, strict=True))
    deployment = {"devices": devices, "workers": workers, "router": router}
    return {
        "extends": "tiny-dit-cpu",
        "name": "two",
        "workload": {"requests": 60, "arrivals": {"process": "poisson", "rate": rate}},
        "deployment": deployment,
        "policy": {"name": "edf"},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs, one behind a router of a user's, with the profiles that they were made with; and one that broke."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "profiles").mkdir()
    text = Path(load_profile.__globals__["DATA"] / "cpu" / "tiny-dit.yaml").read_text()
    for name in ("a", "b"):
        (folder / "profiles" / f"{name}.yaml").write_text(text)
    (folder / "last.py").write_text(ROUTER)
    profiles = [str(folder / "profiles" / f"{name}.yaml") for name in ("a", "b")]
    for name, router, rate in (("0-own", str(folder / "last.py"), 20.0), ("1-usual", "least_loaded", 40.0)):
        one = load(experiment(profiles, router, rate))
        build.run(one, folder / "runs" / name)
    (folder / "runs" / "2-broken").mkdir()
    (folder / "runs" / "0-own" / "real.json").write_text('{"hand_overs": {}}')
    return folder


def test_shapes_come_along(tmp_path):
    (tmp_path / "profiles").mkdir()
    one = load("sdxl-shapes-synthetic", [("workload.requests", 30)])
    build.run(one, tmp_path / "runs" / "shapes")
    out = tmp_path / "folders-shapes.json.gz"
    assert packed_runs.pack(tmp_path, out) == []
    (run,) = packed_runs.read(out)["runs"]
    assert len(run["shapes"]) == len(set(run["shape"])) == 4
    with packed_runs.unpacked([out]) as folder:
        written = (folder / "folders-shapes" / "shapes" / "requests.jsonl").read_text().splitlines()
    was = (tmp_path / "runs" / "shapes" / "requests.jsonl").read_text().splitlines()
    shapes = [{r["id"]: r["shape"] for r in map(json.loads, lines)} for lines in (written, was)]
    assert shapes[0] == shapes[1]
    run["shape"][0] = 4
    out.write_bytes(gzip.compress(json.dumps({"runs": [run], "files": {}}).encode()))
    with pytest.raises(BadInput, match="none of the run's shapes"):
        packed_runs.read(out)


def test_packed_runs_are_repeated_as_their_folders_are(made, tmp_path):
    out = tmp_path / "folders-two.json.gz"
    assert packed_runs.pack(made, out) == ["2-broken"]
    first = out.read_bytes()
    packed_runs.pack(made, out)
    assert out.read_bytes() == first
    here, there = score(made / "runs", seeds=1, jobs=1), score(out, tmp_path / "scored.csv", seeds=1, jobs=1)
    assert [s.run.cells["folder"] for s in there] == ["0-own", "1-usual"]
    assert [s.gap_met for s in there] == [s.gap_met for s in here] == [0.0, 0.0]
    assert {s.run.met for s in there} != {60}  # or nothing could be told apart
    assert all(s.run.requests == 60 for s in there)
    with packed_runs.unpacked([out]) as folder:
        meta = json.loads((folder / "folders-two" / "0-own" / "meta.json").read_text())
        assert meta["experiment"]["deployment"]["devices"] == {"gpu0": "cpu/tiny-dit", "gpu1": "cpu/tiny-dit"}
        assert Path(meta["experiment"]["deployment"]["router"]).read_text() == ROUTER
        assert json.loads((folder / "folders-two" / "0-own" / "real.json").read_text()) == {"hand_overs": {}}
    assert not folder.exists()


def test_real_runs_whose_steps_took_other_times_than_the_profile_says_are_told(tmp_path, servetwin):
    """The records are those of a simulation by a profile whose steps take twice as long."""
    content = load_profile("cpu/tiny-dit").data.model_dump(mode="json", exclude_none=True)
    for table in content["modules"]["dit"]["tables"].values():
        table["seconds"] = [2.0 * s for s in table["seconds"]]
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(content))
    run = tmp_path / "slow"
    build.run(
        load("tiny-dit-cpu", [("deployment.devices.gpu0", str(tmp_path / "slow.yaml")), ("time.noise", False)]), run
    )
    meta = json.loads((run / "meta.json").read_text())
    for kind, profile, told in (
        ("real", "cpu/tiny-dit", True),
        ("real", str(tmp_path / "slow.yaml"), False),
        ("simulated", "cpu/tiny-dit", False),
    ):
        (run / "meta.json").write_text(json.dumps({**meta, "kind": kind}))
        given = ("--set", f"deployment.devices.gpu0={profile}", "--as-they-are", "--out", tmp_path / "scored.csv")
        code, out, error = servetwin("score", run, *given, "--seeds", 1)
        assert (code, "slow: steps of dit took " in out) == (0, told), (out, error)
    ratios = over_profile(replace(read(run), meta={**meta, "experiment": load("tiny-dit-cpu").as_dict()}))
    assert ratios["dit"] == pytest.approx(2.0, rel=0.15)


def test_a_router_that_is_another_is_refused(made, tmp_path):
    path = tmp_path / "folders-two.json.gz"
    packed_runs.pack(made, path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    content["files"]["last.py"] = ROUTER.replace("% 3", "% 2")
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(BadInput, match=r"not what it was when the run was made: the router .*last.py"):
        score(path, seeds=1, jobs=1)


def test_a_router_that_is_not_there_any_more_is_asked_for(made, tmp_path):
    run = tmp_path / "runs" / "0-own"
    run.parent.mkdir()
    (tmp_path / "profiles").mkdir()
    run.mkdir()
    for path in (made / "runs" / "0-own").iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    meta = json.loads((run / "meta.json").read_text())
    meta["experiment"]["deployment"]["router"] = str(tmp_path / "gone" / "last.py")
    (run / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        BadInput, match=r"gone/last.py: the policy or router is not there \(right would be: a copy of it in"
    ):
        packed_runs.pack(tmp_path, tmp_path / "folders-x.json.gz")
    (tmp_path / "last.py").write_text(ROUTER)
    assert packed_runs.pack(tmp_path, tmp_path / "folders-x.json.gz") == []


@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(b"[]"), gzip.compress(b'{"runs": []}'), gzip.compress(b'{"runs": [{}], "files": {}}')],
    ids=["nothing", "a list", "no files", "an empty run"],
)
def test_what_is_no_file_of_packed_runs(content, tmp_path):
    path = tmp_path / "folders-x.json.gz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"folders-x.json.gz: holds no packed runs"):
        score(path, seeds=1, jobs=1)


def _run(content: dict) -> dict:
    return content["runs"][0]


WRONG = {
    "no name": (lambda c: _run(c).pop("name"), "no key runs.0.name"),
    "a name that leads elsewhere": (lambda c: _run(c).update(name="../x"), "runs.0.name"),
    "a name twice": (lambda c: c["runs"].append(_run(c)), "have this name"),
    "no summary": (lambda c: _run(c).pop("summary"), "no key runs.0.summary"),
    "an outcome that there is not": (lambda c: _run(c).update(outcome="x" * 60), "runs.0.outcome"),
    "a request less": (lambda c: _run(c)["id"].pop(), "as much of each request"),
    "a text for an experiment": (lambda c: _run(c)["meta"].update(experiment="x"), "meta.experiment"),
    "no policy": (lambda c: _run(c)["meta"]["experiment"].pop("policy"), "experiment.policy"),
    "a file that is none": (lambda c: c["files"].update({"last.py": 3}), "files.last.py"),
    "a file elsewhere": (
        lambda c: _run(c)["meta"]["experiment"]["policy"].update(name="/tmp/elsewhere.py"),
        "not among the files that were packed",
    ),
    "ends before arrivals": (lambda c: _run(c)["arrival"].reverse(), "before its arrival"),
}


@pytest.mark.parametrize("what", WRONG)
def test_packed_runs_that_were_changed_are_refused(made, tmp_path, what):
    path = tmp_path / "folders-two.json.gz"
    packed_runs.pack(made, path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    change, words = WRONG[what]
    change(content)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(BadInput, match=words):
        score(path, seeds=1, jobs=1)


POLICY = """from most import MOST

import servetwin


class Few(servetwin.Policy):
    def decide(self, view, now):
        return servetwin.Decision([*view.running, *view.waiting][:MOST])
"""


def test_what_a_policy_imports_is_packed_with_it(tmp_path):
    there = tmp_path / "made"
    (there / "profiles").mkdir(parents=True)
    (tmp_path / "few.py").write_text(POLICY)
    (tmp_path / "most.py").write_text("MOST = 1\n")
    one = load("tiny-dit-cpu", [("policy", str(tmp_path / "few.py")), ("requests", 20)])
    build.run(one, there / "runs" / "0")
    packed_runs.pack(there, tmp_path / "folders-few.json.gz")
    for name in ("few.py", "most.py"):
        (tmp_path / name).unlink()
    packed = tmp_path / "folders-few.json.gz"
    (scored,) = score(packed, seeds=1, jobs=1)
    assert scored.gap_met == 0.0
    content = json.loads(gzip.decompress(packed.read_bytes()))
    content["files"]["most.py"] = "MOST = 2\n"
    packed.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(BadInput, match=r"not what it was when the run was made: .*most.py"):
        score(packed, seeds=1, jobs=1)


def test_files_of_one_name_are_not_packed(made, tmp_path):
    runs = tmp_path / "runs"
    (tmp_path / "profiles").mkdir()
    for name in ("0", "1"):
        (runs / name).mkdir(parents=True)
        for path in (made / "runs" / "0-own").iterdir():
            (runs / name / path.name).write_bytes(path.read_bytes())
        meta = json.loads((runs / name / "meta.json").read_text())
        meta["experiment"]["deployment"]["router"] = str(tmp_path / name / "last.py")
        (runs / name / "meta.json").write_text(json.dumps(meta))
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.py").write_text(ROUTER)
    with pytest.raises(BadInput, match="have the same name"):
        packed_runs.pack(tmp_path, tmp_path / "folders-x.json.gz")
    assert not (tmp_path / "folders-x.json.gz").exists()


def test_they_are_not_mixed_with_other_recordings(made, tmp_path):
    packed_runs.pack(made, tmp_path / "folders-two.json.gz")
    (tmp_path / "other.json.gz").write_bytes(b"")
    with pytest.raises(BadInput, match="beside other recordings"):
        score(tmp_path, seeds=1, jobs=1)


@pytest.mark.parametrize("name", RECORDINGS)
def test_attainment_is_as_close_as_it_was(name):
    scored = score(MEASURED / name, seeds=2, jobs=1)
    hold_scored(name.partition("/")[0], scored, 2)
    assert not any(s.changed and "profile" in " ".join(s.changed) for s in scored)
    assert all(s.run.requests >= 300 for s in scored)
    gaps = [abs(s.gap_met) for s in scored]
    mean, largest = REACHED.get(name, WANTED)
    assert fmean(gaps) <= mean
    assert max(gaps) <= largest


def test_what_was_reached_is_of_recordings_that_are_there():
    assert REACHED.keys() <= set(RECORDINGS)


@pytest.mark.parametrize("router", ["own.py", {"name": "own.py", "params": {"choices": 2}}])
def test_a_routers_file_is_found_with_and_without_parameters(router):
    found = packed_runs.routers({"deployment": {"router": router}})
    assert [of[key] for of, key in found] == ["own.py"]
    assert packed_runs.routers({"deployment": {"router": "jsq"}}) == packed_runs.routers({"deployment": {}}) == []
