"""What a policy may not do, it may not do on a real backend either."""

import pytest
from servetwin.experiments.cli import entry

HEAD = "from servetwin.core import Decision, Policy\n\n\nclass Mine(Policy):\n    def decide(self, view, now):\n"
RUN = "        return Decision([*view.running, *view.waiting][: view.limit])\n"
FAULTS = {
    "writing": ("        for task in view.running:\n            task.left = 1\n" + RUN, "it wrote left of task"),
    "leaving": ("        raise SystemExit(0)\n", "SystemExit: 0"),
    "changing us": (
        "        import servetwin.core.serving.loop as L\n\n        L.latest = lambda d: d + 99\n" + RUN,
        "it wrote servetwin.core.serving.loop.latest",
    ),
    "never finishing": ("        return Decision()\n", "never ended, though nothing was left to happen; held by dit"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_a_policy_at_fault_is_named(case, monkeypatch, capsys, tmp_path):
    body, word = case
    (tmp_path / "mine.py").write_text(HEAD + body)
    command = ["run", "tiny-dit-cpu", "--backend", "real", "--device", "cpu", "--requests", "4", "--rate", "20"]
    monkeypatch.setattr("sys.argv", ["servetwin", *command, "--policy", str(tmp_path / "mine.py")])
    try:
        code = entry._run()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert word in captured.err
    assert "policy Mine (mine.py:" in captured.err
