"""The command line: what a user types and reads. Errors are one line on standard error."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servetwin.core import InvariantBroken
from servetwin.experiments.assembly import build
from servetwin.experiments.cli import entry
from servetwin.experiments.cli.commands import demo as demonstration
from servetwin.experiments.spec.loading import load
from servetwin.experiments.validation.comparison import run_table

COMMANDS = [
    "run",
    "profile",
    "import",
    "sweep",
    "score",
    "compare",
    "trace",
    "figures",
    "demo",
    "policies",
    "workloads",
    "profiles",
]


def test_help_lists_the_commands(servetwin):
    for arguments in ((), ("--help",), ("-h",)):
        code, out, err = servetwin(*arguments)
        assert (code, err) == (0, "")
        assert [c for c in COMMANDS if c not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(servetwin, command):
    code, out, _ = servetwin(command, "--help")
    assert code == 0
    assert "Usage: servetwin" in out
    assert "…" not in out  # in 80 columns nothing is cut off, and least of all an option's name


# -- run ------------------------------------------------------------------------------------------------


def test_run_says_what_came_out(servetwin, toy: Path):
    code, out, err = servetwin("run", toy, "--rate", 8, "--policy", "fcfs")
    assert (code, err) == (0, "")
    assert "toy, fcfs, rate 8, cv 2, slo_factor 3: 60 requests" in out
    for word in ("met", "late", "dropped", "failed", "goodput", "p99", "batches of denoise"):
        assert word in out


def test_run_shows_what_was_measured_where_it_was(servetwin):
    code, out, _ = servetwin("run", "palette-256-rtx4090", "--rate", "0.9")
    assert code == 0
    assert "measured on 2024-05-06 00:06:48: 408 met, 408 finished" in out
    assert "measured" not in servetwin("run", "palette-256-rtx4090", "--rate", "0.95")[1]


def test_run_as_json(servetwin, toy: Path):
    code, out, _ = servetwin("run", toy, "--json", "--requests", 20, "--seed", 3, "--slo", 9, "--cv", 1)
    assert code == 0
    assert json.loads(out)["requests"] == 20


def test_run_leaves_records_and_the_resolved_experiment(servetwin, toy: Path, tmp_path: Path):
    code, out, _ = servetwin("run", toy, "--set", "slo.factor=4.5", "--out", tmp_path / "run")
    assert code == 0
    assert f"records in {tmp_path / 'run'}" in out
    assert load(tmp_path / "run" / "experiment.yaml") == load(toy, [("slo", 4.5)])


def test_a_policy_file_of_ones_own(servetwin, toy: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from servetwin.policies.diffusion.edf import EDF\n\n\nclass Mine(EDF):\n    pass\n"
    )
    code, out, _ = servetwin("run", toy, "--policy", tmp_path / "mine.py")
    assert code == 0
    assert "60 requests" in out


# -- the others -----------------------------------------------------------------------------------------


def test_sweep(servetwin, toy: Path, tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text("extends: toy.yaml\ngrid: {rate: [2.0, 4.0]}\n")
    code, out, err = servetwin("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out.csv", "--jobs", 1)
    assert (code, err) == (0, "")
    assert f"2 points in {tmp_path / 'out.csv'}" in out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_score(servetwin, tmp_path: Path):
    lines = run_table.NEUSTREAM.read_text().splitlines()
    chosen = [line for line in lines if "palette-256-rtx4090,neustream,0.9" in line]
    (tmp_path / "runs.csv").write_text("\n".join([lines[0], *chosen]) + "\n")
    code, out, err = servetwin("score", tmp_path / "runs.csv", "--out", tmp_path / "out.csv", "-j", 1, "--seeds", 1)
    assert (code, err) == (0, "")
    assert "palette-256-rtx4090" in out
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert abs(float(row["gap_met_pp"])) < 3


def test_compare_two_runs(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    servetwin("run", toy, "--out", tmp_path / "b", "--policy", "fcfs", "--rate", 12)
    code, out, err = servetwin("compare", tmp_path / "a", tmp_path / "b")
    assert (code, err) == (0, "")
    for word in ("attainment, %", "goodput", "latency p99", "mean batch of denoise", "toy, fcfs, simulated"):
        assert word in out
    found = json.loads(servetwin("compare", tmp_path / "a", tmp_path / "b", "--json")[1])
    assert found["attainment"]["gap"] == found["attainment"]["second"] - found["attainment"]["first"] < 0
    sizes = found["workers"]["denoise"]["batch_sizes"]
    for side in (0, 1):
        assert sum(shares[side] for shares in sizes.values()) == pytest.approx(100.0)


def test_a_run_compared_with_itself_has_no_gap(servetwin, toy: Path, tmp_path: Path):
    servetwin("run", toy, "--out", tmp_path / "a")
    found = json.loads(servetwin("compare", tmp_path / "a", tmp_path / "a", "--json")[1])
    assert found["same_outcome"] == 100.0
    assert {found[k]["gap"] for k in ("attainment", "goodput", "e2el_p50", "e2el_p99")} == {0.0}
    assert {w["distance"] for w in found["workers"].values()} == {0.0}


def test_listings(servetwin):
    assert "step_delta: float = 0.95" in servetwin("policies")[1]
    assert "sd15-512-h100" in servetwin("workloads")[1]
    assert "rtx4090/dit-s2-256" in servetwin("profiles")[1]


# -- wrong usage ----------------------------------------------------------------------------------------

WRONG = {
    "no such command": (["rnu"], "No such command 'rnu'"),
    "no such option": (["run", "palette-256-rtx4090", "--rte", "1"], "No such option: --rte"),
    "no number": (["run", "palette-256-rtx4090", "--rate", "fast"], "Invalid value for '--rate'"),
    "nothing to run": (["run"], "Missing argument"),
    "no such workload": (["run", "palette"], "unknown workload 'palette'"),
    "no such file": (["run", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    "a folder": (["run", "."], "unknown workload '.'"),
    "no such key": (["run", "palette-256-rtx4090", "--set", "slo.facto=2"], "slo has no key 'facto'"),
    "no value": (["run", "palette-256-rtx4090", "--set", "slo.factor"], "sets nothing"),
    "no such policy": (["run", "palette-256-rtx4090", "--policy", "fcsf"], "unknown policy 'fcsf'"),
    "no such policy file": (["run", "palette-256-rtx4090", "--policy", "no.py"], "no such policy file"),
    "no such sweep": (["sweep", "figure16", "--out", "x.csv"], "unknown sweep 'figure16'"),
    "no such table": (["score", "nowhere.csv", "--out", "x.csv"], "nowhere.csv: there is no such file"),
    "no such run": (["compare", "nowhere", "nowhere"], "nowhere: there is no such folder"),
    "no such format": (["figures", "--out", "x", "--format", "gif"], "'gif' is no format"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_told_in_one_line_with_exit_code_2(servetwin, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    code, out, err = servetwin(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("servetwin: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_and_a_run_that_did_not_end(servetwin, toy: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "there is no run in it" in servetwin("compare", tmp_path / "empty", tmp_path / "empty")[2]
    servetwin("run", toy, "--out", tmp_path / "a")
    (tmp_path / "a" / "summary.json").unlink()
    assert "did not come to its end" in servetwin("compare", tmp_path / "a", tmp_path / "a")[2]


def test_other_errors_and_interrupts_have_exit_codes_of_their_own(servetwin, toy: Path, monkeypatch):
    def broken(*_):
        raise InvariantBroken("request 7 ended twice")

    monkeypatch.setattr(build, "run", broken)
    assert servetwin("run", toy) == (1, "", "servetwin: request 7 ended twice\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "run", interrupted)
    assert servetwin("run", toy) == (130, "", "servetwin: interrupted\n")


def test_a_policy_that_breaks_a_invariant_is_told_in_one_line(servetwin, toy: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from servetwin.core import Decision, Policy\n\n\n"
        "class Mine(Policy):\n    def decide(self, view, now):\n        return Decision()\n"
    )
    code, out, err = servetwin("run", toy, "--policy", tmp_path / "mine.py")
    assert (code, out) == (2, "")
    assert "60 requests never ended" in err


def test_the_installed_command_loads_no_more_than_it_needs(toy: Path):
    program = (
        "import sys; from servetwin.experiments.cli.entry import _run; "
        "sys.argv[1:] = ['run', sys.argv[1]]; code = _run(); "
        "print(code, [m for m in ('matplotlib', 'pyarrow', 'joblib', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(toy)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


# -- figures --------------------------------------------------------------------------------------------


def test_the_demonstration_repeats_the_example(servetwin, tmp_path: Path, monkeypatch):
    chosen = demonstration.chosen_runs()
    assert 40 <= len(chosen) <= 60
    example = [r for r in chosen if (r.workload, r.rate) == ("dit-s2-256-rtx4090", 4.0)]
    assert {r.policy for r in example} == {"neustream", "clockwork"}
    monkeypatch.setattr(demonstration, "chosen_runs", lambda: example)
    code, out, err = servetwin("demo", "--out", tmp_path / "demo", "--jobs", 1)
    assert (code, err) == (0, "")
    assert "simulated" in out
    assert "measured" in out
    assert f"figure: {tmp_path / 'demo' / 'demo.png'}" in out
    for s in demonstration.demo(tmp_path / "demo", jobs=1).scored:
        assert abs(s.gap_finished) <= 2.0  # the seed example: simulated within 2 points


def test_a_full_disk_is_told_in_one_line(monkeypatch, capsys, tmp_path):
    """/dev/full takes no byte, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    real = Path.open

    def full(path, *arguments, **options):
        return real(Path("/dev/full") if path.name == "batches.jsonl" else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    arguments = ["servetwin", "run", "dit-s2-256-rtx4090", "--requests", "50", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", arguments)
    assert entry._run() == 1
    captured = capsys.readouterr()
    file = tmp_path / "run" / "batches.jsonl"
    assert captured.err == f"servetwin: {file}: No space left on device; what was being written is not whole\n"
    assert captured.out == ""
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--rate", 2, "--set", "rate=3"], "--set rate=3: --rate 2.0 sets workload.arrivals.rate as well"),
        (["--policy", "edf", "--set", "policy={name: fcfs}"], "--policy edf sets policy.name as well"),
        (["--set", "slo=2", "--set", "slo.factor=3"], "--set slo.factor=3: --set slo=2 sets slo.factor as well"),
    ],
)
def test_a_key_is_set_once(servetwin, toy: Path, more, expected):
    code, out, err = servetwin("run", toy, *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert "one of the two" in err


def test_different_keys_of_one_mapping_are_set(servetwin, toy: Path):
    code, _, _ = servetwin("run", toy, "--rate", 2, "--set", "workload.arrivals.cv=1.5", "--set", "requests=5")
    assert code == 0


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--rate", 12], "they come at other times"),
        (["--requests", 40], "60 and 40 requests"),
        (["--seed", 1], "they ask for other work"),
        (["--policy", "fcfs", "--slo", 2], None),
    ],
)
def test_runs_of_other_requests_have_no_same_outcomes(servetwin, toy: Path, tmp_path: Path, more, why):
    servetwin("run", toy, "--out", tmp_path / "a")
    servetwin("run", toy, "--out", tmp_path / "b", *more)
    _, out, _ = servetwin("compare", tmp_path / "a", tmp_path / "b")
    found = json.loads(servetwin("compare", tmp_path / "a", tmp_path / "b", "--json")[1])
    assert "(toy, edf, simulated): 60 requests, rate 4, cv 2, seed 0" in out
    assert found["other_requests"] == why
    assert (found["same_outcome"] is None) == (why is not None)
    assert ("not the same requests in A and B" in out) == (why is not None)
    if why is not None:
        assert re.search(r"requests with the same outcome, % +- *\n", out)


def test_the_version_is_told(servetwin):
    code, out, err = servetwin("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"servetwin \d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize("arguments", [("workloads",), ("run", "--help"), ("--help",), ("workloads", "--json")])
def test_where_nobody_reads_on_it_ends_quietly(arguments):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "servetwin.experiments.cli", *arguments]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (entry.UNREAD, "")


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
def test_a_policy_that_ends_the_process_does_not_pass_a_check(end, tmp_path: Path, servetwin):
    text = "import os\nimport sys\nfrom servetwin.core import Policy\n\n\nclass Mine(Policy):\n"
    (tmp_path / "mine.py").write_text(text + f"    def decide(self, view, now):\n        {end}\n")
    code, out, problem = servetwin("check", tmp_path / "mine.py")
    assert code == 2
    assert "no fault found" not in out
    assert problem.startswith("servetwin: policy Mine (mine.py:8)")
