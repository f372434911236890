"""Which part of a trace is replayed, and at which rate; what is cut, counted and refused on the way."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly import build
from servetwin.experiments.spec import loading
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload import trace_reader
from servetwin.experiments.workload.requests import read_trace, requests
from servetwin.experiments.workload.traces import entries, lines
from small_trace import EXPERIMENT, PROFILE, plain

GAPS = np.random.default_rng(3).exponential(1.0, 200).cumsum().round(3).tolist()


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    (tmp_path / "llm.yaml").write_text(EXPERIMENT)
    plain(tmp_path / "t.csv", GAPS)
    return tmp_path / "llm.yaml"


FORMATS = {
    "plain.csv": ("arrival,input_tokens,tokens\n", lambda t: f"{t:.3f},100,20\n"),
    "plain.jsonl": ("", lambda t: json.dumps({"arrival": round(t, 3), "input_tokens": 100, "tokens": 20}) + "\n"),
    "burstgpt.csv": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
        lambda t: f"{t:.3f},ChatGPT,100,20,120,API log\n",
    ),
    "mooncake.jsonl": (
        "",
        lambda t: json.dumps({"timestamp": round(1000 * t), "input_length": 100, "output_length": 20}) + "\n",
    ),
}


def sent(experiment):
    contexts = build.contexts(experiment, loading.load_profiles(experiment))
    return list(requests(experiment, lambda work: 1.0, read_trace(experiment), contexts=contexts))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("later", [3600.0, 604800.0, 1_700_000_000.0])
@pytest.mark.parametrize("rate", [None, 1.0])
def test_when_a_trace_was_taken_changes_nothing(llm: Path, name: str, later: float, rate: float | None):
    """Case 01: the same gaps, an hour or a week later, or at the time since 1970."""
    header, line = FORMATS[name]
    found = []
    for shift in (0.0, later):
        (llm.parent / name).write_text(header + "".join(line(t + shift) for t in GAPS))
        arrivals = {"process": "trace", "file": str(llm.parent / name), "rate": rate}
        summary = build.run(load(llm, [("workload.arrivals", arrivals)])).as_dict()
        found.append(summary)
    assert found[0] == found[1]
    if rate is not None:
        assert 199 / found[0]["arrival_span"] == pytest.approx(rate)


@pytest.mark.parametrize("count", [2, 3, 50, 199, None])
@pytest.mark.parametrize("part", [{}, {"start": 20.0}, {"start": 20.0, "end": 90.0}, {"windows": 2}])
def test_the_rate_is_that_of_what_is_replayed(llm: Path, count: int | None, part: dict):
    arrivals = {"process": "trace", "file": str(llm.parent / "t.csv"), "rate": 2.5, **part}
    held = len(sent(load(llm, [("workload.arrivals", arrivals)])))
    if count is not None and count > held:
        with pytest.raises(BadInput, match=f"{count} requests are wanted, but .* holds {held}"):
            sent(load(llm, [("workload.arrivals", arrivals), ("requests", count)]))
        return
    times = [r.arrival for r in sent(load(llm, [("workload.arrivals", arrivals), ("requests", count)]))]
    assert times[0] == 0.0
    assert (len(times) - 1) / times[-1] == pytest.approx(2.5)
    assert len(times) == (count or held)


def test_two_requests_at_a_rate(llm: Path):
    plain(llm.parent / "t.csv", [0.0, 5.0])
    assert [r.arrival for r in sent(load(llm, [("rate", 1.0)]))] == [0.0, 1.0]
    assert [r.arrival for r in sent(load(llm))] == [0.0, 5.0]


def test_start_and_end_are_seconds_of_the_traces_own_time(llm: Path):
    chosen = [t - GAPS[0] for t in GAPS if 30.0 <= t - GAPS[0] < 60.0]
    experiment = load(llm, [("workload.arrivals.start", 30.0), ("workload.arrivals.end", 60.0)])
    assert [r.arrival for r in sent(experiment)] == pytest.approx([t - chosen[0] for t in chosen])
    said = build.run(experiment).as_dict()["trace"]
    assert (said["requests"], said["requests_in_file"]) == (len(chosen), 200)
    assert said["first"] == pytest.approx(chosen[0])


def test_seeds_draw_different_windows_that_share_nothing(llm: Path):
    experiment = load(llm, [("workload.arrivals.windows", 8)])
    found = [read_trace(experiment.model_copy(update={"seed": seed})) for seed in range(8)]
    assert sorted(t.skip for t in found) == [25 * k for k in range(8)]
    assert [t.skip for t in found] != sorted(t.skip for t in found)
    assert {t.count for t in found} == {25}
    assert build.run(experiment).as_dict() == build.run(experiment).as_dict()


WRONG = {
    "after its end": ({"start": 500.0}, "no request comes from 500 s to inf s .*start and end within 0 and"),
    "backwards": ({"start": 5.0, "end": 5.0}, "5 is not after start, 5"),
    "too many windows": ({"windows": 201}, "200 requests make no 201 windows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_there_are_not(llm: Path, case: str):
    part, message = WRONG[case]
    with pytest.raises(BadInput, match=message) as error:
        sent(load(llm, [("workload.arrivals", {"process": "trace", "file": str(llm.parent / "t.csv"), **part})]))
    assert "\n" not in str(error.value)


# -- all at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.0, 3600.0, 1_700_000_000.0])
def test_an_offline_job_arrives_all_at_once(llm: Path, servetwin, at: float):
    plain(llm.parent / "t.csv", [at] * 30)
    code, out, _ = servetwin("run", llm)
    assert code == 0
    assert "all requests arrive at once: there is no rate" in out
    summary = build.run(load(llm)).as_dict()
    assert (summary["finished"], summary["arrival_span"]) == (30, 0.0)
    code, _, err = servetwin("run", llm, "--rate", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "all requests arrive at once, so there is no rate to stretch to" in err
    code, _, err = servetwin("search", llm, "--find", "rate", "--set", "rate=2.0", "--seeds", 1)
    assert (code, err.count("\n")) == (2, 1)


# -- what is cut ----------------------------------------------------------------------------------------

CUT = "arrival,input_tokens,tokens\n1,100,1000\n2,100,1000\n3,4090,500\n"


@pytest.mark.parametrize(
    ("limit", "message", "outputs", "tokens"),
    [
        (300, "request 0 generates 1000 tokens, but the limit is 300", 3, 700 + 700 + 494),
        (600, "request 0 generates 1000 tokens, but the limit is 600", 3, 400 + 400 + 494),
        (2048, "request 2 generates 500 tokens after a prompt of 4090, but the engine takes 4096", 1, 494),
    ],
)
def test_outputs_are_cut_only_if_that_is_asked_for_and_counted(
    llm: Path, servetwin, limit: int, message: str, outputs: int, tokens: int
):
    """Case 10."""
    (llm.parent / "t.csv").write_text(CUT)
    options = ("run", llm, "--set", f"workload.lengths.llm.limit={limit}")
    code, _, err = servetwin(*options, "--out", llm.parent / "folder")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (llm.parent / "folder").exists()
    options += ("--set", "workload.lengths.llm.truncate=true")
    _, out, _ = servetwin(*options, "--out", llm.parent / "folder")
    assert f"cut at llm: 0 prompts by 0 tokens, {outputs} outputs by {tokens}" in out
    summary = json.loads((llm.parent / "folder" / "summary.json").read_text())
    assert summary["total_output_tokens"] == 2500 - tokens
    assert summary["cut"]["llm"]["outputs"] == outputs
    assert json.loads((llm.parent / "folder" / "meta.json").read_text())["input"]["cut"] == summary["cut"]


def test_prompts_that_are_cut_are_counted(llm: Path):
    plain(llm.parent / "t.csv", [0.0, 1.0, 2.0], prompt=5000)
    with pytest.raises(BadInput, match="request 0 has a prompt of 5000 tokens"):
        build.run(load(llm))
    cut = build.run(load(llm, [("workload.lengths.llm.truncate", True)])).as_dict()["cut"]["llm"]
    assert (cut["prompts"], cut["prompt_tokens"]) == (3, 3 * (5000 - 2048))
    options = [("workload.lengths.llm.truncate", True), ("workload.lengths.llm.limit", 4096)]
    with pytest.raises(
        BadInput, match=r"5000 tokens to be cut, but the limit of 4096 leaves none .* a limit below 4096"
    ):
        build.run(load(llm, options))


def test_drawn_outputs_are_not_cut_either(llm: Path):
    lengths = {"prompt": {"draw": "constant", "tokens": 10}, "output": {"draw": "uniform", "low": 1, "high": 500}}
    drawn = [("requests", 50), ("workload.arrivals", {"process": "poisson", "rate": 1.0})]
    with pytest.raises(BadInput, match=r"generates \d+ tokens, but the limit is 300"):
        build.run(load(llm, [*drawn, ("workload.lengths.llm", {**lengths, "limit": 300})]))
    cut = load(llm, [*drawn, ("workload.lengths.llm", {**lengths, "limit": 300, "truncate": True})])
    assert 0 < build.run(cut).as_dict()["cut"]["llm"]["outputs"] < 50


def test_requests_that_failed_are_left_out_and_counted(llm: Path, servetwin):
    header, line = FORMATS["burstgpt.csv"]
    (llm.parent / "t.csv").write_text(header + line(5.0) + line(6.0).replace(",20,", ",0,") * 3 + line(7.0))
    _, out, _ = servetwin("run", llm)
    assert "trace: 3 requests had failed when it was taken, and are left out" in out


def test_a_prompt_of_no_token_is_said(llm: Path, servetwin):
    row = "2023-11-16 18:15:{},0,20\n"
    (llm.parent / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + row.format(46) + row.format(47))
    _, out, _ = servetwin("run", llm)
    assert "trace: 2 prompts of no token count as one token" in out


# -- times ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "name"), [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds")], ids=["ms", "us", "ns"]
)
def test_an_epoch_in_another_unit_is_refused_by_name(llm: Path, servetwin, unit: float, name: str):
    """Case 11."""
    plain(llm.parent / "t.csv", [int(1_700_000_000 * unit) + k for k in range(3)])
    code, _, err = servetwin("run", llm)
    assert (code, err.count("\n")) == (2, 1)
    assert f"far too large for seconds: it is probably an epoch in {name}" in err
    assert "t.csv:2: arrival" in err


def test_an_epoch_in_seconds_is_no_column_of_milliseconds(tmp_path: Path):
    """Found beside case 11: all came a thousand times too fast."""
    path = tmp_path / "m.jsonl"
    row = '{{"timestamp": {}, "input_length": 1, "output_length": 1}}\n'
    path.write_text(row.format(1_700_000_000) + row.format(1_700_000_001))
    with pytest.raises(BadInput, match=r"m.jsonl:1: timestamp.*probably an epoch in seconds") as told:
        list(entries(path))
    assert "milliseconds since the trace began" in str(told.value)


def test_a_column_of_milliseconds_takes_an_epoch_in_milliseconds_only(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    row = '{{"timestamp": {}, "input_length": 1, "output_length": 1}}\n'
    path.write_text(row.format(1_700_000_000_000) + row.format(1_700_000_000_250))
    assert [e.arrival for e in entries(path)] == [0.0, 0.25]
    path.write_text(row.format(1_700_000_000_000_000))
    with pytest.raises(BadInput, match="far too large for milliseconds: it is probably an epoch in microseconds"):
        list(entries(path))


def drawn(llm: Path, rate: float, **process):
    lengths = {"prompt": {"draw": "constant", "tokens": 100}, "output": {"draw": "constant", "tokens": 20}}
    arrivals = {"process": "poisson", "rate": rate, **process}
    return load(llm, [("requests", 300), ("workload.arrivals", arrivals), ("workload.lengths.llm", lengths)])


@pytest.mark.parametrize("rate", [1e-8, 1e-9, 1e-12, 1e-13, 1e-300])
def test_times_that_are_not_known_well_enough_are_refused(llm: Path, rate: float):
    with pytest.raises(BadInput, match=r"where times are known .* a step takes .* a higher rate") as error:
        build.run(drawn(llm, rate))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [1e-4, 3e-5, 1e-5])
def test_times_that_are_known_well_enough_are_right(llm: Path, rate: float):
    assert build.run(drawn(llm, rate)).as_dict()["mean_tpot_ms"] == pytest.approx(20.0, rel=1e-6)


def test_a_trace_stretched_too_far_is_refused(llm: Path):
    with pytest.raises(BadInput, match="where times are known"):
        build.run(load(llm, [("rate", 1e-9)]))


def test_no_infinite_or_endless_numbers(tmp_path: Path):
    for value in ("1e999", "NaN", "1e400", "Infinity", "[1]", "true", '"x"'):
        path = tmp_path / "t.jsonl"
        path.write_text('{"arrival": ' + value + ', "steps": 3}\n')
        with pytest.raises(BadInput, match=r"t\.jsonl:1"):
            list(entries(path))
    path.write_text('{"arrival": 1, "steps": 1e999}\n')
    with pytest.raises(BadInput, match="no number of steps"):
        list(entries(path))
    long = tmp_path / "long.csv"
    long.write_text('arrival,steps\n1,"' + "2" * 200_000 + '"\n')
    with pytest.raises(BadInput, match=r"long\.csv"):
        list(entries(long))


# -- packed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_packed_traces_are_read(llm: Path, name: str):
    header, line = FORMATS[name]
    text = header + "".join(line(t) for t in GAPS)
    (llm.parent / name).write_text(text)
    with gzip.open(llm.parent / f"{name}.gz", "wt") as file:
        file.write(text)
    first, second = (list(entries(llm.parent / n)) for n in (name, f"{name}.gz"))
    assert first == second
    assert len(first) == 200


def test_a_packed_trace_has_a_bound(tmp_path: Path, monkeypatch):
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("arrival,steps\n" + "1,3\n" * 500_000)
    assert (tmp_path / "t.csv.gz").stat().st_size < 10_000
    monkeypatch.setattr(lines.opened.__wrapped__, "__defaults__", (1 << 20,))
    with pytest.raises(BadInput, match="unpacks to more than 1 MiB"):
        list(entries(tmp_path / "t.csv.gz"))


def test_what_is_no_gzip_file(tmp_path: Path):
    whole = gzip.compress(b"arrival,steps\n" + b"1,3\n" * 5000)
    for name, content in (("a", b"arrival,steps\n1,3\n"), ("b", whole[:-40]), ("c", whole[:20] + b"x" * 40)):
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"csv\.gz: the file is no gzip file, or not whole"):
            list(entries(path))


# -- made-up arrivals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrivals",
    [
        {"process": "gamma", "rate": 3.0, "cv": 2.0},
        {"process": "poisson", "rate": 3.0},
        {"process": "constant", "rate": 3.0},
        {"process": "bursty", "rate": 3.0},
    ],
    ids=lambda a: a["process"],
)
def test_lengths_of_a_trace_with_arrivals_that_are_drawn(llm: Path, arrivals: dict):
    rows = [(100 + k, 10 + k) for k in range(50)]
    text = "arrival,input_tokens,tokens\n" + "".join(f"{i},{p},{o}\n" for i, (p, o) in enumerate(rows))
    (llm.parent / "t.csv").write_text(text)
    settings = [("workload.arrivals", arrivals), ("workload.trace", {"file": str(llm.parent / "t.csv")})]
    made = sent(load(llm, settings))
    assert [(r.tokens["llm"][0], r.outputs["llm"]) for r in made] == rows
    settings[1] = ("workload.trace", {"file": str(llm.parent / "t.csv"), "start": 10})
    part = sent(load(llm, [*settings, ("requests", 5)]))
    assert [r.outputs["llm"] for r in part] == [20, 21, 22, 23, 24]
    summary = build.run(load(llm, settings)).as_dict()
    assert summary["total_output_tokens"] == sum(o for _, o in rows[10:])


def test_steps_of_a_trace_with_arrivals_that_are_drawn(toy: Path):
    (toy.parent / "s.csv").write_text("arrival,steps\n0,21\n1,22\n2,23\n")
    child = toy.with_name("child.yaml")
    child.write_text(
        "extends: toy.yaml\nworkload: {requests: null, trace: {file: s.csv}, steps: {denoise: {draw: trace}}}\n"
    )
    made = list(requests(load(child), lambda work: 1.0, read_trace(load(child))))
    assert [r.work["denoise"] for r in made] == [21, 22, 23]


def test_a_trace_that_nothing_is_taken_from(llm: Path):
    with pytest.raises(BadInput, match="the arrivals come from a trace already"):
        load(llm, [("workload.trace", {"file": str(llm.parent / "t.csv")})])
    constant = {"draw": "constant", "tokens": 5}
    drawn = [
        ("workload.arrivals", {"process": "poisson", "rate": 1.0}),
        ("workload.trace", {"file": str(llm.parent / "t.csv")}),
    ]
    with pytest.raises(BadInput, match="no steps, lengths, shapes or classes are taken"):
        load(llm, [*drawn, ("requests", 5), ("workload.lengths.llm", {"prompt": constant, "output": constant})])


def test_a_trace_is_read_once_for_all_its_windows(llm: Path, monkeypatch):
    experiment = load(llm, [("workload.arrivals.windows", 4)])
    trace_reader._overview.cache_clear()
    for seed in range(4):
        read_trace(experiment.model_copy(update={"seed": seed}))
    assert trace_reader._overview.cache_info().misses == 1


def test_lengths_that_are_not_used_are_said(llm: Path, servetwin):
    constant = "{prompt: {draw: constant, tokens: 50}, output: {draw: trace}, limit: 2048}"
    code, out, _ = servetwin("run", llm, "--set", f"workload.lengths.llm={constant}", "--out", llm.parent / "r")
    key = "workload.lengths.llm.prompt"
    assert code == 0
    assert f"trace: column input_tokens is not used: {key} does not say {{draw: trace}}, which uses it" in out
    assert "output_tokens is" not in out
    meta = json.loads((llm.parent / "r" / "meta.json").read_text())
    assert meta["input"]["trace"]["not_used"] == {"input_tokens": key}
    assert "is not used" not in servetwin("run", llm)[1]


def test_steps_that_are_not_used_are_said(toy: Path, servetwin):
    (toy.parent / "s.csv").write_text("arrival,steps,denoise,input_tokens\n0,21,31,5\n1,22,32,5\n")
    arrivals = f"workload.arrivals={{process: trace, file: {toy.parent / 's.csv'}}}"
    _, out, _ = servetwin("run", toy, "--set", arrivals, "--set", "requests=2")
    for column in ("steps", "denoise"):
        assert f"trace: column {column} is not used: workload.steps.denoise does not say {{draw: trace}}" in out
    _, out, _ = servetwin(
        "run", toy, "--set", arrivals, "--set", "requests=2", "--set", "workload.steps.denoise.draw=trace"
    )
    assert "column denoise" not in out
    assert "trace: column steps is not used: nothing here takes it" in out
