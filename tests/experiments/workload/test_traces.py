"""Trace files: every format read as its publishers write it, every fault told with its line."""

from __future__ import annotations

import tracemalloc
from itertools import islice, pairwise
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload import trace_reader
from servetwin.experiments.workload.traces import FORMATS, entries, sample, samples

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("name", samples())
def test_samples_are_read(name: str):
    trace = list(entries(sample(name)))
    assert len(trace) == {"burstgpt.csv": 23, "vllm-bench.json": 40}.get(name, 24)
    assert all(a.arrival <= b.arrival for a, b in pairwise(trace))
    assert all(e.work for e in trace) or name == "katz.json"  # which says nothing of it


def test_there_is_a_sample_of_every_format():
    assert {name.split(".")[0] for name in samples()} == {*FORMATS, "diffusion"}


def test_azure(tmp_path: Path):
    rows = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    first, second = entries(written(tmp_path, "a.csv", AZURE + rows))
    assert first[:3] == (2, 0.0, {"input_tokens": 374, "output_tokens": 44})
    assert second.arrival == pytest.approx(4.314579, abs=1e-6)
    zoned = written(tmp_path, "b.csv", AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n")
    assert next(entries(zoned)).work["output_tokens"] == 5


def test_burstgpt_without_what_failed(tmp_path: Path):
    text = (
        BURST + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    )
    assert [(e.line, e.arrival, e.work["output_tokens"]) for e in entries(written(tmp_path, "b.csv", text))] == [
        (2, 0.0, 18),  # times count from the first request
        (4, 113.0, 276),
    ]


def test_mooncake_counts_milliseconds(tmp_path: Path):
    text = '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    text += text.replace("27482", "28982.5")
    first, second = entries(written(tmp_path, "m.jsonl", text))
    assert first[:7] == (1, 0.0, {"input_tokens": 6955, "output_tokens": 52}, None, {}, (46, 47), None)
    assert second.arrival == 1.5005


WRONG = {
    "azure time": ("a.csv", AZURE + "yesterday,1,2\n", "a.csv:2: TIMESTAMP: 'yesterday' is no date and time"),
    "azure tokens": (
        "a.csv",
        AZURE + "2023-11-16 18:15:46,1,0\n",
        "a.csv:2: GeneratedTokens: '0' is no number of tokens",
    ),
    "azure order": (
        "a.csv",
        AZURE + "2023-11-16 18:15:46,1,2\n2023-11-16 18:15:45,1,2\n",
        "a.csv:3: TIMESTAMP: -1 comes after 0",
    ),
    "burst tokens": ("b.csv", BURST + "5,x,a,3,3,y\n", "b.csv:2: Request tokens: 'a' is no number of tokens"),
    "burst line": ("b.csv", BURST + "5,x,1\n", "b.csv:2: the line does not fit the header"),
    "mooncake json": (
        "m.jsonl",
        '{"timestamp": 1, "input_length": 1, "output_length": 1}\n{',
        "m.jsonl:2: no valid JSON",
    ),
    "mooncake hashes": (
        "m.jsonl",
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": "x"}',
        "m.jsonl:1: hash_ids is no list",
    ),
    "mooncake truths": (
        "m.jsonl",
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [true]}',
        "m.jsonl:1: hash_ids is no list",
    ),
    "mooncake negative": (
        "m.jsonl",
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [0, -1]}',
        "m.jsonl:1: hash_ids is no list",
    ),
    "no object": ("m.jsonl", '{"arrival": 1, "steps": 2}\n[1]\n', "m.jsonl:2: the line is no object"),
    "no column": ("m.jsonl", '{"arival": 1}\n', "m.jsonl:1: the first object names no column 'arrival'"),
    "a size of many digits": (
        "d.csv",
        f"arrival,steps,size\n1,20,{'9' * 5000}x5\n",
        f"d.csv:2: size: '{'9' * 40}' is no size (right would be: 512x512)",
    ),
    "size": ("d.csv", "arrival,steps,size\n1,20,512\n", "d.csv:2: size: '512' is no size (right would be: 512x512)"),
    "height": ("d.csv", "arrival,steps,height,width\n1,20,512,0\n", "d.csv:2: width: '0' is no number of pixels"),
    "other work": ("p.jsonl", '{"arrival": 1, "steps": 2}\n{"arrival": 2}\n', "p.jsonl:2: the line holds other work"),
    "not text": ("p.csv", None, "p.csv: this is not a text file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_faults_are_told_with_their_line(tmp_path: Path, case: str):
    name, text, expected = WRONG[case]
    path = tmp_path / name
    path.write_bytes(text.encode() if text is not None else b"arrival,steps\n\xff\xfe\x00")
    with pytest.raises(BadInput) as caught:
        trace_reader.read(path, ["decode"])
    message = str(caught.value)
    assert expected in message, message
    assert "\n" not in message


def test_a_format_can_be_asked_for(tmp_path: Path):
    path = written(tmp_path, "a.csv", "arrival,steps\n1,2\n")
    with pytest.raises(BadInput, match="TIMESTAMP: None is no date"):
        list(entries(path, form="azure"))


def test_of_several_sizes_one_is_picked():
    with pytest.raises(BadInput, match=r"several sizes .*size: one of 512x512 \(1\d\), 768x768"):
        trace_reader.read(sample("diffusion.csv"), [])
    large = trace_reader.read(sample("diffusion.csv"), [], size="768x768")
    small = trace_reader.read(sample("diffusion.csv"), [], size="512x512")
    assert large.count + small.count == 24
    with pytest.raises(BadInput, match="no image of 64x64"):
        trace_reader.read(sample("diffusion.csv"), [], size="64x64")


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_any_trace_can_be_scaled_to_a_rate(rate: float):
    trace = trace_reader.read(sample("azure.csv"), [])
    first, *_, last = trace.arrivals_at(rate)
    assert (trace.count - 1) / (last - first) == pytest.approx(rate)


def test_long_traces_are_not_held_in_memory(tmp_path: Path):
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("arrival,steps\n")
        file.writelines(f"{i * 0.01:.2f},30\n" for i in range(20_000))
    tracemalloc.start()
    try:
        trace = trace_reader.read(path, [])
        assert sum(1 for _ in islice(trace.work_of("denoise"), 15_000)) == 15_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert trace.count == 20_000
    assert peak < 450_000  # 270,000 whatever the length; the arrivals alone would be 640,000 more


@pytest.mark.parametrize("name", ["azure.csv", "burstgpt.csv", "mooncake.jsonl", "plain.csv", "plain.jsonl"])
def test_traces_drive_experiments(toy: Path, name: str):
    child = toy.with_name("traced.yaml")
    child.write_text(
        "extends: toy.yaml\nworkload:\n  requests: null\n"
        f"  arrivals: {{process: trace, file: {sample(name)}, rate: 2.0}}\n"
        "  steps: {denoise: {draw: trace}}\n"
    )
    summary = run(load(child))
    assert summary.requests == len(list(entries(sample(name))))
    assert summary.met > 0


def test_the_size_of_a_diffusion_trace_is_a_key_of_the_experiment(toy: Path):
    child = toy.with_name("traced.yaml")
    arrivals = f"{{process: trace, file: {sample('diffusion.csv')}, size: 512x512}}"
    child.write_text(
        f"extends: toy.yaml\nworkload:\n  requests: null\n  arrivals: {arrivals}\n"
        "  steps: {denoise: {draw: trace}}\n"
    )
    assert run(load(child)).requests == trace_reader.read(sample("diffusion.csv"), [], size="512x512").count


def test_a_column_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "twice.csv"
    file.write_text("arrival,steps,arrival\n0,3,5\n")
    with pytest.raises(BadInput, match=r"twice\.csv:1: column 'arrival' stands twice"):
        list(entries(file))
