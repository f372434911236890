"""Case 22: links, pipes, devices and folders in the place of files, and disks that are full.

What is no plain file is refused in a line and left as it was; nothing is written through a link; what could not be
written whole is not there, and the line says which file it was.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from by_command import call, refused

SWEEP = "extends: dit-s2-256-rtx4090\nset: {requests: 20}\ngrid: {policy: [edf], rate: [2, 4]}\n"


@pytest.fixture
def spec(here: Path) -> Path:
    (here / "s.yaml").write_text(SWEEP)
    (here / "other").write_text("somebody's")
    return here


def sweep(*more: object) -> tuple[int, str, str]:
    return call("sweep", "s.yaml", "--out", "o.csv", "--jobs", 1, "--no-cache", *more)


def test_22_case_nothing_is_written_through_a_link_of_a_sweep(spec) -> None:
    for name in ("o.csv", "o.csv.spec.yaml"):
        (spec / name).symlink_to("other")
    code, _, err = sweep()
    assert code == 0, err
    assert (spec / "other").read_text() == "somebody's"
    assert not (spec / "o.csv").is_symlink()
    assert not (spec / "o.csv.spec.yaml").is_symlink()


@pytest.mark.parametrize("target", ["other", "nowhere"])
def test_22_case_a_partial_table_that_is_a_link_is_refused(target, spec) -> None:
    (spec / "o.csv.part").symlink_to(target)
    code, out, err = sweep()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "o.csv.part: this is a symbolic link" in err
    assert (spec / "other").read_text() == "somebody's"
    assert not (spec / "nowhere").exists()


def made(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/full", "/dev/zero"])
@pytest.mark.parametrize("name", ["o.csv", "o.csv.part"])
def test_22_no_plain_file_where_a_table_goes(name, kind, spec) -> None:
    """A link to a device is replaced by the table, as any link; a partial table that is one is refused."""
    made(spec / name, kind)
    code, _, err = sweep()
    if name == "o.csv" and kind.startswith("/"):
        assert code == 0, err
        return
    assert (code, err.count("\n")) == (2, 1), err
    assert name in err
    assert not (spec / name).is_file()


OUTPUTS = {
    "plot": ("plot", "t.csv", "--out", "o.svg"),
    "report": ("report", "t.csv", "--out", "o.html"),
    "trace": ("trace", "run", "--out", "o.json"),
    "score": ("score", "run", "--out", "o.csv", "--seeds", 1),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A table and a run folder."""
    top = tmp_path_factory.mktemp("results")
    (top / "s.yaml").write_text(SWEEP)
    for command in (
        ("sweep", top / "s.yaml", "--out", top / "t.csv", "--jobs", 1),
        ("run", "dit-s2-256-rtx4090", "--requests", 8, "--out", top / "run"),
    ):
        code, _, err = call(*command)
        assert code == 0, err
    return top


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("command", OUTPUTS.values(), ids=OUTPUTS)
def test_22_no_plain_file_where_a_result_goes(command, kind, results, here) -> None:
    made(here / command[3], kind)
    given = [results / c if c in ("t.csv", "run") else c for c in command]
    refused(*given, says=(command[3],))
    assert not (here / command[3]).is_file()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.dont_write_bytecode = True  # it would be cut off, too, and break whoever imports next
from servetwin.experiments.cli import entry
entry.main()
"""


@pytest.mark.parametrize("command", OUTPUTS.values(), ids=OUTPUTS)
def test_22_case_what_is_not_written_whole_is_not_there_and_is_named(command, results, here) -> None:
    """A limit on the size of files does what a full disk does."""
    given = [str(results / c) if c in ("t.csv", "run") else str(c) for c in command]
    (here / command[3]).write_text("before")
    done = subprocess.run([sys.executable, "-c", LIMITED, "100", *given], capture_output=True, text=True, cwd=here)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert command[3] in done.stderr
    assert (here / command[3]).read_text() == "before"
    assert [p.name for p in here.iterdir()] == [command[3]]


def test_22_case_a_run_names_the_file_for_which_there_is_no_room(here) -> None:
    run = ["run", "dit-s2-256-rtx4090", "--requests", "2000", "--out", "o"]
    done = subprocess.run([sys.executable, "-c", LIMITED, "20000", *run], capture_output=True, text=True, cwd=here)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "o/requests.jsonl" in done.stderr or "o/batches.jsonl" in done.stderr
    assert not (here / "o/summary.json").exists()


INPUTS = {
    "run": ("run", "{}.yaml"),
    "sweep": ("sweep", "{}.yaml", "--out", "o.csv"),
    "plan": ("plan", "{}.yaml"),
    "profiles": ("profiles", "{}.yaml"),
    "table of a profile": ("profiles", "{}.csv"),
    "score": ("score", "{}.csv", "--out", "o.csv"),
    "recording": ("score", "{}.json.gz", "--out", "o.csv"),
    "plot": ("plot", "{}.csv", "--out", "o.svg"),
    "compare": ("compare", "{}.csv", "{}.csv"),
    "report": ("report", "{}.csv", "--out", "o.html"),
}


def read(*arguments: str, here: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with little memory: what has no end must not fill that of this one."""
    start = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)\n"
    start += "from servetwin.experiments.cli import entry; entry.main()"
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=here, timeout=40, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero", "itself"])
@pytest.mark.parametrize("command", INPUTS.values(), ids=INPUTS)
def test_22_case_no_plain_file_where_one_is_read(command, kind, here) -> None:
    """Nothing waits for a pipe to which nobody writes, and nothing reads what has no end."""
    name = command[1].format("x")
    made(here / name, name if kind == "itself" else kind)
    given = [c.format("x") for c in command]
    done = read(*given, here=here)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (done.stdout, done.stderr)
    assert name in done.stderr, done.stderr
    assert {p.name for p in here.iterdir()} <= {name}


TRACE = """
extends: opt-13b-a6000
workload:
  requests: null
  draws: seeded
  arrivals: {process: trace, file: FILE}
  lengths: {llm: {prompt: {draw: constant, tokens: 5}, output: {draw: trace}, limit: 64}}
"""


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz"])
def test_22_no_plain_file_where_a_trace_is_read(ending, kind, here) -> None:
    made(here / f"t.{ending}", kind)
    (here / "e.yaml").write_text(TRACE.replace("FILE", f"t.{ending}"))
    done = read("run", "e.yaml", here=here)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"t.{ending}:" in done.stderr, done.stderr  # the name that the user wrote, also of a link


LOOPS = {
    "by another path": ("e.yaml", "extends: ../{here}/e.yaml\n"),
    "by a link": ("e.yaml", "extends: link.yaml\n"),
    "by two": ("e.yaml", "extends: sub/f.yaml\n"),
}


@pytest.mark.parametrize("case", LOOPS.values(), ids=LOOPS)
def test_22_case_an_experiment_that_extends_itself_by_another_path(case, here) -> None:
    name, text = case
    (here / name).write_text(text.format(here=here.name))
    (here / "link.yaml").symlink_to(name)
    (here / "sub").mkdir()
    (here / "sub/f.yaml").write_text("extends: ../e.yaml\n")
    said = refused("run", name, says=("extends",))
    assert "itself" in said or "circle" in said, said


def test_22_case_a_merge_key_of_yaml(here) -> None:
    (here / "e.yaml").write_text("base: &b {seed: 3}\nextends: dit-s2-256-rtx4090\n<<: *b\n")
    said = refused("run", "e.yaml", says=("e.yaml", "<<"))
    assert "constructor" not in said
