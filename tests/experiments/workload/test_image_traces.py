"""Traces of image and video requests: sizes, steps and images as their publishers write them; SLOs by request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servetwin.core import BadInput, Shape
from servetwin.experiments.assembly.build import build, run
from servetwin.experiments.spec.experiment import Experiment
from servetwin.experiments.spec.loading import load
from servetwin.experiments.workload.traces import entries

GENTD = (
    "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,negative_prompt_length,"
    "num_images_per_prompt,num_inference_steps,checkpoint_model_version_id,num_lora\n"
)
LINE = (
    "Request(request_id={}, timestamp={}, height={}, width={}, num_frames={}, prompt='x', num_inference_steps={})\n"
)


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def replayed(path: Path, **more: Any) -> Experiment:
    workload = {
        "requests": None,
        "arrivals": {"process": "trace", "file": str(path)},
        "steps": {"unet": {"draw": "trace"}},
        "shape": {"draw": "trace"},
    }
    return load({"extends": "sdxl-shapes-synthetic", "workload": {**workload, **more}})


def test_gentd26(tmp_path: Path) -> None:
    text = (
        "2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,32.0,G0000,63.0,26.0,1.0,30.0,M0000,0\n"
        "2024-11-17 04:44:00,TXT_2_IMG,FAILED,3.0,G0019,67.0,,2.0,30.0,M0013,0\n"
        "2024-12-03 04:48:28,TXT_2_IMG,PENDING,0.0,G3185,,,,,,0\n"
        "2024-12-03 04:48:55,IMG_2_IMG,SUCCEED,43.0,G0001,93.0,,8.0,40.0,M0001,1\n"
    )
    path, left_out = written(tmp_path, "g.csv", GENTD + text), []
    first, second = entries(path, failed=left_out.append)
    assert (first.work, second.work, left_out) == ({"steps": 30}, {"steps": 40}, [3, 4])
    assert second.arrival == 18 * 86_400 - 12 * 3600 - 8 * 60 - 55
    with pytest.raises(BadInput, match=r"does not say of which size .*size: \.\.\."):
        build(replayed(path))
    sent = [*build(replayed(path, shape={"draw": "trace", "size": "512x512"})).source]
    assert [r.shape for r in sent] == [Shape(512, 512), Shape(512, 512, images=8)]


def test_katz(tmp_path: Path) -> None:
    """Two services; steps and sizes are the experiment's. The list need not be in order."""
    rows: list[dict[str, Any]] = [
        {"timestamp": 7.5, "ip": "a", "scene_id": "B", "base_model_id": "m", "controlnets": None, "loras": ["x"]},
        {"timestamp": 5.0, "ip": "b", "scene_id": "A", "base_model_id": "n", "controlnets": [], "loras": None},
    ]
    path = written(tmp_path, "katz.json", json.dumps(rows))
    first, second = entries(path)
    assert (first.line, first.arrival, first.work, first.said) == (2, 0.0, {}, {"tenant": "A"})
    assert (second.arrival, second.said) == (2.5, {"tenant": "B"})
    drawn = {"draw": "constant", "steps": 20}
    shape = {"draw": "trace", "size": "512x512"}
    sent = [*build(replayed(path, steps={"unet": drawn}, shape=shape)).source]
    assert [(r.work["unet"], r.shape, r.tenant) for r in sent] == [(20, Shape(512, 512), t) for t in "AB"]
    with pytest.raises(BadInput, match="steps"):
        build(replayed(path, shape=shape))
    digits = json.dumps(rows).replace("7.5", "7" * 5000)
    with pytest.raises(BadInput, match=r"katz\.json: no valid JSON: "):
        [*entries(written(tmp_path, "katz.json", digits))]
    rows[1]["timestamp"] = "2024-11-15"
    with pytest.raises(BadInput, match=r"katz\.json:2: timestamp: '2024-11-15' is no time"):
        [*entries(written(tmp_path, "katz.json", json.dumps(rows)))]


def test_lists_of_requests(tmp_path: Path) -> None:
    text = LINE.format(0, 0.0, 512, 512, 1, 28) + "\n" + LINE.format(1, 0.666667, 1024, 768, 1, 50)
    path = written(tmp_path, "flux_trace.txt", text.replace("steps=50)", "steps=50, slo_ms=1500)"))
    first, second = entries(path)
    assert (first.shape, second.shape) == (Shape(512, 512), Shape(1024, 768))
    assert (second.line, second.arrival, second.work, second.said) == (3, 0.666667, {"steps": 50}, {"slo": 1.5})
    sent = [*build(replayed(path)).source]
    assert [r.work["unet"] for r in sent] == [28, 50]
    assert sent[1].slo == pytest.approx(1.5)
    video = written(tmp_path, "video.txt", LINE.format(0, 0.0, 480, 720, 49, 50))
    assert next(entries(video)).shape == Shape(480, 720, frames=49)


@pytest.mark.parametrize(
    "line",
    [
        "Request(1, 2)",
        "Reply(timestamp=0.0)",
        "Request(timestamp=open('x'))",
        "Request(**{'timestamp': 0})",
        "Request(timestamp=0.0, timestamp=1.0)",
        "timestamp=0.0",
        "Request(" * 3000,
    ],
)
def test_what_is_no_list_of_requests(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, "t.txt", LINE.format(0, 0.0, 512, 512, 1, 28) + line + "\n")
    with pytest.raises(BadInput, match=r"t.txt:2: .*the line is no request"):
        list(entries(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,20.5,512,512", "steps: '20.5' is no number of steps"),
        ("0,20,512.5,512", "height: '512.5' is no number of pixels"),
        ("0,0.0,512,512", "steps: '0.0' is no number of steps"),
        ("0,inf,512,512", "steps: 'inf' is no number of steps"),
    ],
)
def test_counts_with_a_point_are_whole(tmp_path: Path, row: str, message: str) -> None:
    head = "arrival,steps,height,width\n"
    (entry,) = entries(written(tmp_path, "a.csv", f"{head}0,30.0,512.0,512\n"))
    assert (entry.work, entry.size) == ({"steps": 30}, "512x512")
    assert next(entries(written(tmp_path, "a.jsonl", '{"arrival": 0, "steps": 30.0}\n'))).work == {"steps": 30}
    with pytest.raises(BadInput, match=message):
        list(entries(written(tmp_path, "b.csv", f"{head}{row}\n")))


def test_an_slo_may_be_a_factor_of_its_own(tmp_path: Path) -> None:
    rows = (
        "arrival,steps,size,slo_factor,slo\n0,20,512x512,2.0,\n1,20,2048x2048,3.0,\n2,20,512x512,,\n3,20,512x512,,9\n"
    )
    sent = [*build(replayed(written(tmp_path, "s.csv", rows))).source]
    small, large = 0.015 + 20 * 0.024 + 0.016, 0.015 + 20 * 0.290 + 0.240
    assert [r.slo for r in sent] == pytest.approx([2.0 * small, 3.0 * large, 4.0 * small, 9.0])
    fixed = replayed(tmp_path / "s.csv").model_dump(mode="json", by_alias=True, exclude_unset=True)
    source = build(load({**fixed, "slo": {"seconds": 5.0}})).source
    with pytest.raises(BadInput, match="slo_factor: the trace says factors"):
        next(source)
    for text, message in (("1,2,512x512,2.0,3.0", "slo and slo_factor"), ("1,2,512x512,0,", "slo_factor: '0' is no")):
        with pytest.raises(BadInput, match=message):
            list(entries(written(tmp_path, "b.csv", f"arrival,steps,size,slo_factor,slo\n{text}\n")))
    with pytest.raises(BadInput, match="to call it slo_factor"):
        list(entries(written(tmp_path, "c.csv", "arrival,steps,slo_scale\n1,2,3\n")))


def test_a_run_of_such_a_trace(tmp_path: Path) -> None:
    from servetwin.experiments.workload.traces import sample

    run(replayed(sample("requests.txt")), tmp_path / "run")
    lines = (tmp_path / "run/requests.jsonl").read_text().splitlines()
    assert {json.loads(line)["shape"]["height"] for line in lines} == {512, 1024, 2048}


def sizes_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "t.csv").write_text(text)
    sets = {
        "workload.requests": None,
        "workload.arrivals": {"process": "trace", "file": str(tmp_path / "t.csv")},
        "workload.shape": {"draw": "trace", "size": "1024x1024"},
    }
    made = build(load("sdxl-shapes-synthetic", list(sets.items())))
    return [str(request.shape) for request in made.planned()]


@pytest.mark.parametrize(
    "text", ["arrival,size\n0,512x512\n1,\n", "arrival,height,width\n0,512,512\n1,,\n"], ids=["size", "sides"]
)
def test_a_size_that_is_left_empty_is_the_one_that_the_experiment_gives(tmp_path: Path, text: str) -> None:
    assert sizes_of(tmp_path, text) == ["512x512", "1024x1024"]


def test_a_size_and_sides_that_differ_are_refused(tmp_path: Path) -> None:
    assert sizes_of(tmp_path, "arrival,size,height,width\n0,512x512,512,512\n") == ["512x512"]
    with pytest.raises(BadInput, match="its size is 512x512, and its height and width are 1024x1024"):
        sizes_of(tmp_path, "arrival,size,height,width\n0,512x512,1024,1024\n")
