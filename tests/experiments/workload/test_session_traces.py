"""Traces that say which requests are turns of a session, and how long after an answer each is sent."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.experiments.assembly.build import build
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.seed_effect import depends_on_seed

OWN = """arrival,input_tokens,tokens,session,delay
0.0,100,20,a,
0.5,50,10,b,
,30,10,a,2.0
,20,10,a,1.5
,10,5,b,0.25
9.0,40,4,c,
"""
#: The same as AIPerf takes it: in milliseconds, session by session.
AIPERF = [
    {"session_id": "a", "timestamp": 0, "input_length": 100, "output_length": 20},
    {"session_id": "a", "delay": 2000, "input_length": 30, "output_length": 10},
    {"session_id": "a", "delay": 1500, "input_length": 20, "output_length": 10},
    {"session_id": "b", "timestamp": 500, "input_length": 50, "output_length": 10},
    {"session_id": "b", "delay": 250, "input_length": 10, "output_length": 5},
    {"session_id": "c", "timestamp": 9000, "input_length": 40, "output_length": 4},
]


class Kept(Recorder):
    def __init__(self):
        super().__init__()
        self.found = {}

    def ended(self, request, now):
        super().ended(request, now)
        task = request.tasks[0]
        self.found[request.session] = request.arrival, now, task.prompt, task.generated


def experiment(path, *sets):
    return load(
        {
            "extends": "tiny-opt-cpu",
            "workload": {
                "requests": None,
                "arrivals": {"process": "trace", "file": str(path)},
                "lengths": {"llm": {"prompt": {"draw": "trace"}, "output": {"draw": "trace"}, "limit": 100}},
                "sessions": {"turns": {"draw": "trace"}},
            },
        },
        sets,
    )


def sent(path, *sets):
    kept = Kept()
    build(experiment(path, *sets), kept).play()
    return kept.found


@pytest.mark.parametrize("kind", ["own", "aiperf"])
def test_turns_are_sent_so_long_after_the_answer_before(tmp_path, kind):
    path = tmp_path / ("talks.csv" if kind == "own" else "talks.jsonl")
    path.write_text(OWN if kind == "own" else "".join(json.dumps(line) + "\n" for line in AIPERF))
    found = sent(path)
    assert {k: v[2:] for k, v in found.items()} == {
        (0, 0): (100, 20),
        (0, 1): (150, 10),
        (0, 2): (180, 10),
        (1, 0): (50, 10),
        (1, 1): (70, 5),
        (2, 0): (40, 4),
    }
    assert [found[k, 0][0] for k in range(3)] == [0.0, 0.5, 9.0]
    assert found[0, 1][0] == found[0, 0][1] + 2.0
    assert found[0, 2][0] == found[0, 1][1] + 1.5
    assert found[1, 1][0] == found[1, 0][1] + 0.25


def test_sessions_of_a_trace_begin_when_clients_come_to_them(tmp_path):
    (tmp_path / "talks.csv").write_text(OWN)
    closed = [
        ("workload.arrivals", {"process": "closed", "clients": 1}),
        ("workload.trace", {"file": str(tmp_path / "talks.csv")}),
    ]
    found = sent(tmp_path / "talks.csv", *closed)
    assert found[1, 0][0] == found[0, 2][1]
    assert found[2, 0][0] == found[1, 1][1]
    faster = sent(tmp_path / "talks.csv", ("workload.arrivals.rate", 10.0))
    assert faster[2, 0][0] == pytest.approx(0.5)  # six requests, the last of which has a time


@pytest.mark.parametrize(
    ("text", "sets", "what"),
    [
        (OWN, [("workload.sessions", None)], "3 of its requests say how long after an answer they come (delay)"),
        (OWN.replace("2.0", "-2.0"), [], "talks.csv:4: delay: '-2.0' is no time"),
        (OWN.replace(",30,10,a,2.0", "1.0,30,10,a,"), [], "does not say how long after the answer before it is sent"),
        (OWN.replace(",30,10,a,2.0", ",30,10,d,2.0"), [], "talks.csv:4: session 'd' begins with a delay"),
        (OWN.replace("9.0,40,4,c,", "9.0,40,4,,"), [], "talks.csv:7: it belongs to no session"),
        (OWN, [("workload.sessions.think", {"draw": "constant", "seconds": 1.0})], "the trace says how long after"),
        (OWN, [("workload.arrivals.windows", 2)], "a part of a trace has no whole sessions"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tmp_path, text, sets, what):
    (tmp_path / "talks.csv").write_text(text)
    with pytest.raises(BadInput) as error:
        sent(tmp_path / "talks.csv", *sets)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_of_that_name_changes_nothing_without_sessions(tmp_path):
    (tmp_path / "talks.csv").write_text("arrival,input_tokens,tokens,session\n0.0,10,5,a\n1.0,10,5,a\n")
    found = Kept()
    build(experiment(tmp_path / "talks.csv", ("workload.sessions", None)), found).play()
    assert found.summary.requests == 2


def test_whether_a_seed_changes_anything():
    closed = {"process": "closed", "clients": 2}
    fixed = [("workload.arrivals", closed), ("workload.lengths.llm.prompt", {"draw": "constant", "tokens": 9})]
    fixed += [("workload.lengths.llm.output", {"draw": "constant", "tokens": 9}), ("time.noise", False)]
    assert not depends_on_seed(load("tiny-opt-cpu", fixed))
    drawn = ("workload.arrivals.think", {"draw": "exponential", "mean": 1.0})
    assert depends_on_seed(load("tiny-opt-cpu", [("workload.arrivals", {**closed, "think": drawn[1]}), *fixed[1:]]))
    assert depends_on_seed(
        load("tiny-opt-cpu", [*fixed, ("workload.sessions", {"turns": {"draw": "geometric", "mean": 2.0}})])
    )
