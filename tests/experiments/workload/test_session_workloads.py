"""Sessions and closed loops from an experiment file to results: what is sent, what is refused, and that they are the
same whichever way a simulation goes."""

from __future__ import annotations

import json

import pytest
from servetwin.core import BadInput, Recorder
from servetwin.core.invariants.checker import InvariantChecker, check_records
from servetwin.core.records import request_record
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.cli.output.run_output import input_lines
from servetwin.experiments.spec.loading import load
from servetwin.experiments.sweeps.point import results_of
from servetwin.experiments.validation.comparison.compare_llm_runs import figures, rows_of
from servetwin.experiments.validation.replay import folder

OPT = {
    "extends": "tiny-opt-cpu",
    "workload": {
        "requests": 120,
        "arrivals": {"process": "poisson", "rate": 5.0},
        "lengths": {
            "llm": {
                "prompt": {"draw": "uniform", "low": 5, "high": 60},
                "output": {"draw": "uniform", "low": 4, "high": 32},
                "prefix": {"draw": "shared", "groups": 2, "tokens": 80},
            }
        },
        "sessions": {
            "turns": {"draw": "uniform", "low": 1, "high": 6},
            "think": {"draw": "exponential", "mean": 0.2},
            "tools": {"share": 0.5, "seconds": {"draw": "uniform", "low": 1.0, "high": 2.0}},
        },
    },
}
CLOSED = ("workload.arrivals", {"process": "closed", "clients": 5, "think": {"draw": "constant", "seconds": 0.5}})
ALONE = [("workload.sessions", None), ("workload.lengths.llm.prefix", None)]
CACHING = ("deployment.workers.0.engine.enable_prefix_caching", True)
DIT = {"extends": "tiny-dit-cpu", "workload": {"requests": 60, "arrivals": {"process": "closed", "clients": 4}}}


class Kept(Recorder):
    def __init__(self):
        super().__init__()
        self.lines = []

    def ended(self, request, now):
        super().ended(request, now)
        self.lines.append(request_record(request, now=now))


def played(experiment, *, check=True, columns=True):
    kept = Kept()
    checker = InvariantChecker(kept) if check else None
    made = build(experiment, checker or kept)
    if checker is not None:
        checker.watch(made.loop)
    made.play(columns=columns)
    if checker is not None:
        checker.finish()
    return sorted(kept.lines, key=lambda r: r["id"]), made


def test_turns_come_after_thoughts_or_tools_with_all_that_was_said():
    lines, _ = played(load(OPT, [CACHING]))
    assert [r["id"] for r in lines] == list(range(120))
    waits, firsts = [], []
    for before, r in zip([None, *lines], lines, strict=False):
        stay = r["stages"][0]
        if r["turn"] == 0:
            firsts.append(r["arrival"])
            assert 80 + 5 <= stay["prompt"] <= 80 + 60  # beside what is drawn, whichever is longer
            continue
        assert (before["session"], before["turn"]) == (r["session"], r["turn"] - 1)
        waits.append(r["arrival"] - before["finished"])
        had = before["stages"][0]
        new = stay["prompt"] - had["prompt"] - had["generated"]
        assert 5 <= new <= 60
        # All full blocks of what was computed before are found: memory is large.
        assert stay["cached"] == (had["prompt"] + had["generated"] - 1) // 16 * 16
    assert firsts == sorted(firsts)
    tools = [w for w in waits if w >= 1.0]
    assert 0.3 < len(tools) / len(waits) < 0.7
    assert max(tools) <= 2.0
    assert {r["turn"] for r in lines} == set(range(6))


def test_when_sessions_begin_and_what_they_say_is_the_same_however_fast_they_are_served():
    fast, slow = load(OPT), load(OPT, [("deployment.workers.0.limit", 1), ("seed", 0)])
    one, other = played(fast)[0], played(slow)[0]
    assert [r["finished"] for r in one] != [r["finished"] for r in other]
    for a, b in zip(one, other, strict=True):
        assert a["turn"] or a["arrival"] == b["arrival"]
        assert a["stages"][0]["prompt"] == b["stages"][0]["prompt"]
    # A seed of one's own draws all anew.
    assert [r["turn"] for r in played(load(OPT, [("seed", 1)]))[0]] != [r["turn"] for r in one]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("sets", [[], [CLOSED], [CLOSED, *ALONE], ALONE], ids=["open", "both", "closed", "neither"])
def test_the_same_whichever_way_it_is_simulated(sets, asynchronous):
    whole = [*sets, CACHING, ("deployment.workers.0.engine.asynchronous", asynchronous)]
    # Few blocks, so that turns are preempted and blocks taken again.
    experiment = load(OPT, [*whole, ("deployment.workers.0.engine.blocks", 60)])
    checked, _ = played(experiment, columns=False)
    assert played(experiment, check=False)[0] == checked
    assert len(checked) == 120


def test_a_closed_loop_has_so_many_in_flight():
    lines, made = played(load(OPT, [CLOSED, *ALONE, ("workload.arrivals.think", None)]))
    events = sorted([(r["arrival"], 1) for r in lines] + [(r["finished"], -1) for r in lines])
    flying, most = 0, 0
    for _, step in events:
        flying += step
        most = max(most, flying)
    assert most == 5
    assert all("session" not in r for r in lines)
    assert made.recorder.summary.requests == 120


def test_a_closed_loop_of_images():
    lines, _ = played(load(DIT))
    sent = sorted(r["arrival"] for r in lines)
    ended = sorted(r["finished"] for r in lines)
    assert sent == [0.0] * 4 + ended[:-4]


def test_all_turns_of_a_session_are_of_one_class():
    tree = json.loads(json.dumps(OPT))
    tree["workload"]["classes"] = {"chat": {"share": 1.0, "tenant": "a"}, "code": {"share": 1.0, "tenant": "b"}}
    lines, _ = played(load(tree))
    classes: dict = {}
    for r in lines:
        classes.setdefault(r["session"], set()).add(r["class"])
    assert {len(own) for own in classes.values()} == {1}
    assert set.union(*classes.values()) == {"chat", "code"}


def test_sessions_end_before_what_does_not_fit_where_lengths_may_be_cut():
    longer = [("workload.sessions.turns", {"draw": "constant", "turns": 60})]
    with pytest.raises(BadInput, match=r"turn \d+ of its session, has a prompt of .* but the engine takes 2048"):
        build(load(OPT, longer))
    lines, made = played(load(OPT, [*longer, ("workload.lengths.llm.truncate", True)]))
    cut = made.recorder.summary.input["sessions"]
    assert len(lines) + cut["turns"] == 120
    assert cut["sessions"] == 2
    assert max(r["stages"][0]["prompt"] + r["stages"][0]["generated"] for r in lines) <= 2048
    told = f"sessions that ended before what does not fit: 2; {cut['turns']} turns not sent"
    assert told in input_lines(made.recorder.summary.as_dict())


def test_a_run_is_repeated_with_the_arrivals_that_it_had(tmp_path):
    experiment = load(OPT, [CLOSED, CACHING])
    run(experiment, tmp_path / "run")
    check_records(tmp_path / "run")
    folder.replay(tmp_path / "run", experiment, tmp_path / "again")
    first, again = [(tmp_path / name / "requests.jsonl").read_text() for name in ("run", "again")]
    assert first == again


def test_sweeps_and_comparisons_tell_what_caches_hold(tmp_path):
    rates = []
    for name, draws in (("a", [CACHING]), ("b", [CACHING, ("seed", 1)])):
        experiment = load(OPT, draws)
        row = results_of(experiment, run(experiment, tmp_path / name))
        rates.append(row["prefix_cache_hit_rate"])
    assert 0.0 < rates[0] < 1.0
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("a", "b"))
    assert figures(first, second, lambda a, b: [a, b])["llm"]["prefix_cache_hit_rate"] == rates
    assert ("prefix cache hit rate", "prefix_cache_hit_rate", 4) in rows_of(["prefix_cache_hit_rate"])


def test_experiments_without_say_nothing_of_it():
    plain = load("tiny-opt-cpu").as_dict()
    assert "sessions" not in plain["workload"]
    assert load(load(OPT).as_dict()) == load(OPT)


THINK = {"draw": "lognormal", "median": 2.0, "p90": 1.0, "high": 9.0}


@pytest.mark.parametrize(
    ("sets", "what"),
    [
        ([CLOSED, ("workload.arrivals.rate", 3.0)], "workload.arrivals has no key 'rate'"),
        ([("workload.arrivals", {**CLOSED[1], "rate": 3.0})], "3.0 does not fit (right would be: none: in a closed"),
        ([("workload.sessions.think", {"draw": "constant", "seconds": -1.0})], "-1.0 does not fit"),
        ([("workload.sessions.think", {"draw": "constant", "seconds": 1e300})], "less than or equal to 10000000"),
        ([("workload.sessions.think", {"draw": "exponential", "mean": 1e308})], "less than or equal to 10000000"),
        ([("workload.arrivals", {**CLOSED[1], "ramp": 1e9})], "less than or equal to 10000000"),
        ([("workload.sessions.turns", {"draw": "constant", "turns": 0})], "0 does not fit"),
        ([("workload.sessions.turns", {"draw": "uniform", "low": 3, "high": 2})], "3 is above high, 2"),
        ([("workload.sessions.turns", {"draw": "choice", "values": [1, 2], "weights": [1.0]})], "the weights do not"),
        ([("workload.sessions.think", THINK)], "median 2, p90 1 and high 9 do not rise"),
        ([("workload.sessions.tools.seconds", {"draw": "uniform", "low": 3.0, "high": 2.0})], "3 is above high, 2"),
        ([("workload.sessions.tools.share", 1.5)], "1.5 does not fit"),
        ([("system.client_delay", 0.001)], "not by a schedule that a client falls behind"),
        ([("workload.sessions.after_drop", "retry")], "'retry' does not fit"),
        ([("workload.arrivals", {"process": "closed"})], "key 'clients' is missing"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(sets, what):
    with pytest.raises(BadInput) as error:
        load(OPT, sets)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", [("search",), ("bound",), ("league", "--policy", "vllm-v1")], ids=lambda c: c[0])
def test_what_has_no_meaning_is_refused_by_name(servetwin, tmp_path, command):
    path = tmp_path / "closed.yaml"
    path.write_text(json.dumps({**DIT, "policy": {"name": "fcfs"}}))
    code, _, err = servetwin(command[0], path, *[c.replace("vllm-v1", "fcfs") for c in command[1:]])
    assert code == 2
    assert "closed loop has no rate" in err or "so on the schedule that is to be bounded" in err
    assert err.count("\n") == 1
