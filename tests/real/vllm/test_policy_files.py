"""Policies of a user's own on real engines: files, modules and classes are found in the engine's process."""

from __future__ import annotations

import multiprocessing

import pytest
from servetwin.core.llm import ALL, Step, TokenPolicy
from servetwin.experiments.backends.pipeline import AgentsBackend
from servetwin.experiments.cli import entry
from servetwin.experiments.spec.loading import load
from servetwin.real.vllm.scheduler import find

import servetwin

MINE = """from neighbour import LOG
from servetwin.core.llm import ALL, Step, TokenPolicy


class Mine(TokenPolicy):
    def __init__(self, word: str = "plain"):
        with open(LOG, "a") as log:
            log.write(word + " " + __file__ + "\\n")

    def decide(self, view, now):
        new = view.admissible([(task, task.pending) for task in view.waiting], decode=view.decoding)
        return Step(new, ALL)
"""
SMALL = ["tiny-opt-cpu", "--any-device", "--requests", "4", "--rate", "40"]


class Here(TokenPolicy):
    def decide(self, view, now):
        return Step(view.admissible([(t, t.pending) for t in view.waiting], decode=view.decoding), ALL)


def write(folder, file="mine.py"):
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(MINE)
    (folder / "neighbour.py").write_text(f"LOG = {str(folder / 'log')!r}\n")
    return folder / file


@pytest.mark.parametrize("backend", ["vllm", "real"])
def test_a_file_in_another_folder_from_the_command_line(tmp_path, monkeypatch, capsys, backend):
    path = write(tmp_path / "a", "my-policy.py")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    given = ["--policy", "../a/my-policy.py:Mine", "--set", "policy.params.word=said"]
    monkeypatch.setattr("sys.argv", ["servetwin", "run", *SMALL, "--backend", backend, *given])
    assert entry._run() == 0, capsys.readouterr().err
    assert set((tmp_path / "a" / "log").read_text().splitlines()) == {f"said {path}"}


def test_one_engine_serves_files_of_one_name_and_modules(tmp_path, monkeypatch):
    changes = [("requests", 4), ("rate", 40.0)]
    paths = [write(tmp_path / name) for name in ("a", "b")]
    write(tmp_path / "c", "mine_of_c.py")
    backend = AgentsBackend()
    pids = set()
    try:
        for policy in (*map(str, paths), "mine_of_c:Mine"):
            if policy == "mine_of_c:Mine":
                monkeypatch.syspath_prepend(tmp_path / "c")
            served = backend.run(load("tiny-opt-cpu", [*changes, ("policy", policy)]))
            assert served.summary.finished == 4
            pids.add(backend.engines["llm"].process.pid)
    finally:
        backend.close()
    assert len(pids) == 1
    for name, path in (("a", paths[0]), ("b", paths[1]), ("c", tmp_path / "c" / "mine_of_c.py")):
        assert set((tmp_path / name / "log").read_text().splitlines()) == {f"plain {path}"}


def test_a_class_is_found_or_refused_before_anything_starts(tmp_path):
    given = {"requests": 4, "rate": 40.0, "real": {"any_device": True}}
    served = servetwin.run("tiny-opt-cpu", policy=Here, backend="real", **given)
    assert served.finished == 4
    notebook = type("Notebook", (Here,), {"__module__": "__main__"})
    with pytest.raises(servetwin.Error, match="an engine's process cannot find the class Notebook"):
        servetwin.run("tiny-opt-cpu", policy=notebook, backend="real", folder=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    assert multiprocessing.active_children() == []
    assert servetwin.run("tiny-opt-cpu", policy=notebook, backend="vllm", **given).finished == 4


def test_vllm_s_server_takes_files(tmp_path, monkeypatch):
    path = write(tmp_path / "a", "my-policy.py")
    found = find(str(path))
    assert found.__name__ == "Mine"
    assert find(f"{path}:Mine").__name__ == "Mine"
    monkeypatch.chdir(path.parent)
    assert find("./my-policy.py").__name__ == "Mine"
    with pytest.raises(servetwin.core.BadInput, match="there is no such policy file"):
        find(str(tmp_path / "none.py"))
    with pytest.raises(servetwin.core.BadInput, match="has Mine"):
        find(f"{path}:Other")
