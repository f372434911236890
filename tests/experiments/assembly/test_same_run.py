"""Run folders against what there is now: a run is what it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from servetwin.experiments.assembly import same_run
from servetwin.experiments.spec.loading import load

POLICY = """
from pathlib import Path

import aid
from servetwin.core import Decision, Policy


class Mine(Policy):
    files = ("table.txt",)

    def __init__(self):
        self.n = aid.N * int(Path(__file__).with_name("table.txt").read_text())
        self.n += int(Path(__file__).with_name("aside.txt").read_text())

    def decide(self, view, now):
        return Decision([*view.running, *view.waiting][: min(self.n, view.limit)])
"""


@pytest.fixture
def runs(toy: Path, servetwin, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run of a policy that stands on four files."""
    monkeypatch.syspath_prepend(str(toy.parent))
    monkeypatch.chdir(toy.parent)
    for name, text in {"mine.py": POLICY, "aid.py": "N = 1\n", "table.txt": "1", "aside.txt": "1"}.items():
        Path(name).write_text(text)
    assert servetwin("run", toy, "--policy", "mine.py", "--rate", 12, "--out", "runs/a")[0] == 0
    return toy.parent / "runs"


def score(servetwin, runs: Path, *more: object) -> tuple[int, str, str]:
    return servetwin("score", runs, "--out", runs.parent / "out.csv", "--seeds", 1, "-j", 1, *more)


def test_what_is_as_it_was_is_scored_without_a_word(servetwin, runs: Path):
    code, out, err = score(servetwin, runs)
    assert (code, err) == (0, "")
    assert "is not what it was" not in out
    Path("aid.py").touch()
    Path("unused.py").write_text("")
    assert score(servetwin, runs)[0] == 0


@pytest.mark.parametrize("name", ["mine.py", "aid.py", "table.txt", "aside.txt"])
def test_a_policy_that_was_edited_is_refused_by_the_name_of_its_file(servetwin, runs: Path, name: str):
    text = Path(name).read_text()
    Path(name).write_text(text + "\n# edited\n" if name.endswith(".py") else "2")
    code, out, err = score(servetwin, runs)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "runs/a: not what it was when the run was made: the policy " in err
    told = runs.parent / name if name == "aside.txt" else name
    assert f"mine.py ({told}) (right would be: what it was made with; or --as-they-are)" in err
    assert not Path("out.csv").exists()
    code, out, err = score(servetwin, runs, "--as-they-are")
    assert (code, err) == (0, "")
    assert f"mine.py ({told}) is not what it was when the runs were made" in out


def test_another_policy_that_is_asked_for_is_not_the_one_that_was_edited(servetwin, runs: Path):
    Path("aid.py").write_text("N = 2\n")
    code, _, err = score(servetwin, runs, "--set", "policy=edf")
    assert (code, err) == (0, "")


def test_our_own_code_is_what_scoring_is_for(servetwin, runs: Path):
    meta = json.loads((runs / "a" / "meta.json").read_text())
    (runs / "a" / "meta.json").write_text(json.dumps({**meta, "code": "0" * 64}))
    code, out, err = score(servetwin, runs)
    assert (code, err) == (0, "")
    assert "the code of ServeTwin is not what it was when the runs were made" in out


def test_a_run_of_an_earlier_version_goes_by_the_file_of_its_policy(servetwin, runs: Path):
    meta = json.loads((runs / "a" / "meta.json").read_text())
    del meta["code"], meta["policy_files"]
    (name,) = meta["policies"]
    meta["policies"] = {name: hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()}
    (runs / "a" / "meta.json").write_text(json.dumps(meta))
    code, out, _ = score(servetwin, runs)
    assert code == 0
    assert "the code of ServeTwin is not what it was" in out
    Path("mine.py").write_text(POLICY + "\n# edited\n")
    code, _, err = score(servetwin, runs)
    assert code == 2
    assert "mine.py (right would be" in err


def test_options_of_real_runs_are_told_as_on_the_command_line(toy: Path, tmp_path: Path):
    from servetwin.experiments.assembly.build import describe

    experiment = load(toy)
    options = {"scheduler": "ddim", "eager": False, "slots": 1, "weights": "random", "devices": {"gpu0": "cpu"}}
    real = {"model": "tiny-dit", "options": options}
    meta = json.loads(json.dumps({**describe(experiment), **real}))
    assert same_run.otherwise(meta, experiment, real) == []
    other = {**options, "scheduler": "euler", "eager": True, "devices": {"gpu0": "cuda:0"}}
    assert same_run.otherwise(meta, experiment, {"model": "tiny-sd", "options": other}) == [
        "--model (tiny-dit, now tiny-sd)",
        "--sampler (ddim, now euler)",
        "--eager (no, now yes)",
        "--device (gpu0=cpu, now gpu0=cuda:0)",
    ]
    own = {**real, "model_file": "1"}
    assert same_run.otherwise({**meta, **own}, experiment, own) == []
    assert same_run.otherwise({**meta, **own}, experiment, {**own, "model_file": "2"}) == ["the file of --model"]
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("0.020", "0.025"))
    assert same_run.otherwise({**meta, "code": "x"}, experiment, real) == [
        "the profile mine/toy",
        "the code of ServeTwin",
    ]
    assert same_run.otherwise({}, experiment, real) != []
    assert same_run.otherwise({"policies": [1], "options": 3, "profiles": None}, experiment, real) != []


def test_weights_are_known_by_what_they_hold(tmp_path: Path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "unet" / "weights.bin").write_bytes(bytes(3_000_000))
    first = same_run.weights_digest(tmp_path)
    assert same_run.weights_digest(tmp_path) == first
    (tmp_path / "unet" / "weights.bin").write_bytes(bytes(2_999_999) + b"1")
    assert same_run.weights_digest(tmp_path) != first
