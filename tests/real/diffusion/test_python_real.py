"""`servetwin.run` for real: the same call and the same result, with what was real beside it."""

import pytest
from servetwin.core import Decision, Policy

import servetwin

CPU = {"devices": "cpu", "any_device": True, "slots": 16}


class Urgent(Policy):
    """The nearest deadline first."""

    def decide(self, view, now):
        tasks = sorted([*view.running, *view.waiting], key=lambda task: (task.deadline, task.id))
        return Decision(tasks[: view.limit])


def test_the_same_call_serves_for_real_and_in_simulation(tmp_path):
    heard = []
    real = servetwin.run(
        "tiny-dit-cpu",
        backend="real",
        real=CPU,
        policy=Urgent,
        requests=4,
        folder=tmp_path / "real",
        say=heard.append,
    )
    simulated = servetwin.run("tiny-dit-cpu", policy=Urgent, requests=4)
    assert real.finished == simulated.finished == 4
    assert real.real is not None
    assert set(real.real) >= {"lateness_ms", "gap_ms"}
    assert real.meta["kind"] == "real"
    assert "class Urgent" in real.meta["policy_texts"]["Urgent"]
    assert real.requests.columns == simulated.requests.columns
    assert real.requests["steps.dit"] == simulated.requests["steps.dit"]
    assert any("4 requests" in line for line in heard)
    gaps = {row["metric"]: row["gap"] for row in servetwin.compare(real, simulated)}
    assert gaps["finished"] == 0.0
    assert servetwin.load(tmp_path / "real").real == real.real


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ({**CPU, "model": "tiny-sd"}, r"^real\['model'\]: tiny-sd does not have the modules of tiny-dit-cpu"),
        ({**CPU, "devices": ["gpu1=cpu"]}, r"^real\['devices'\]: the experiment has no device 'gpu1'"),
        ({**CPU, "weights": "nowhere"}, r"^real=\{'weights': 'nowhere'\}: there is no such folder"),
    ],
)
def test_what_the_real_side_refuses_is_said_in_python(tmp_path, real, message):
    with pytest.raises(servetwin.Error, match=message):
        servetwin.run("tiny-dit-cpu", backend="real", real=real, requests=2, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
