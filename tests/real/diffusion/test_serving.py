"""Tiny models served for real: images, devices, what breaks, and a client that is on time.

That every policy serves as it does in simulation is in test_command_line.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from servetwin.core import BadInput, Outcome, Recorder, Request, RunFolder, ServeTwinError
from servetwin.core.invariants.record_checker import check_records
from servetwin.profiles import load as load_profile
from servetwin.real import Options, Server
from servetwin.real.client import END, PACKET, Client
from twin import LIMIT, Twin, twin_of


@pytest.fixture(params=["tiny-sd", "tiny-dit", "tiny-palette"])
def shipped(request):
    """With the profile that comes along: for runs in which time does not matter."""
    server = Server(request.param, Options(device="cpu"))
    return Twin(server, load_profile(f"cpu/{request.param}"), LIMIT, (6, 10))


@pytest.fixture(scope="module")
def small():
    """With a profile just taken."""
    return twin_of("tiny-dit")


def test_overload_is_overload_in_both(small):
    """Far beyond what the device can do, a policy that drops what is late meets some, and not nearly all."""
    requests = small.requests(8.0, count=60)
    real, simulated = small.serve("edf", requests).summary, small.simulate("edf", requests)
    assert real.attainment < 0.8
    assert simulated.attainment < 0.8


def test_images_do_not_depend_on_the_company(shipped):
    """Served all at once or one after the other, a request's image is the same to rounding."""
    work = {shipped.kind.loop: 6}
    images = []
    for gap in (0.0, 0.3):
        made = {}
        shipped.serve(
            "edf",
            [Request(i, i * gap, 60.0, work) for i in range(4)],
            sink=lambda number, image, made=made: made.setdefault(number, image.int()),
        )
        assert sorted(made) == [0, 1, 2, 3]
        images.append(made)
    for number in range(4):
        assert int((images[0][number] - images[1][number]).abs().max()) <= 1


def test_a_lane_goes_on_before_its_leavers_are_handed_over(shipped, tmp_path):
    """The device would stand still while the host launches what comes after the loop."""
    if len(shipped.kind.placement) == 1:
        pytest.skip("one stage")
    loop = shipped.kind.loop
    recorder = RunFolder(tmp_path / "run", {})
    shipped.serve("edf", [Request(i, 0.0, 60.0, {loop: 6 + 3 * i}) for i in range(3)], recorder)
    recorder.close()
    batches = [json.loads(line) for line in (tmp_path / "run" / "batches.jsonl").read_text().splitlines()]
    last = {number: b for b in batches if b["worker"] == loop for number in b["requests"]}
    after = shipped.kind.placement[-1][0]
    for number in (0, 1):  # others go on
        leaving = last[number]
        following = min(b["start"] for b in batches if b["worker"] == loop and b["start"] >= leaving["end"])
        (handed,) = [b["start"] for b in batches if after in b["modules"] and number in b["requests"]]
        assert leaving["end"] <= following <= handed


def test_records_are_in_the_order_in_which_requests_ended(small, tmp_path):
    """Also if many are dropped, some of them while a batch has them."""
    recorder = RunFolder(tmp_path / "run", {})
    small.serve("neustream", small.requests(6.0, count=80), recorder)
    recorder.close()
    check_records(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(80))
    assert {"met", "dropped"} <= {line["outcome"] for line in lines}
    ended = [line["finished"] for line in lines if line["finished"] is not None]
    assert ended == sorted(ended)


def test_two_devices(small):
    """The stages on devices of their own: requests are copied from one to the other."""
    server = Server("tiny-dit", Options(device="cpu", devices={"gpu0": "cpu", "gpu1": "cpu"}))
    stages, workers = small.system("edf")
    workers[1].device = "gpu1"
    made = {}
    report = server.serve(
        stages,
        workers,
        [Request(i, i * 0.02, 60.0, {"dit": 5}) for i in range(8)],
        sink=lambda number, image: made.setdefault(number, image),
    )
    assert report.summary.met == 8
    assert len(made) == 8
    assert len(server.by_device) == 2
    assert all(not slots.progress for slots in server.by_device.values())


def test_a_broken_lane_ends_the_run_with_its_records(small, tmp_path, monkeypatch):
    slots = small.server.device_slots("gpu0")
    calls = []
    step = slots.step

    def breaks(*batch):
        calls.append(1)
        if len(calls) > 20:
            raise torch.OutOfMemoryError("no memory")
        step(*batch)

    monkeypatch.setattr(slots, "step", breaks)
    recorder = RunFolder(tmp_path / "run", {})
    with pytest.raises(ServeTwinError, match="out of memory"):
        small.serve("edf", small.requests(0.5), recorder)
    recorder.close(complete=False)
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    assert lines
    assert recorder.summary.outcomes[Outcome.FAILED] >= 1
    assert recorder.summary.outcomes.total() == recorder.summary.requests == len(lines)
    monkeypatch.undo()
    assert small.serve("edf", small.requests(0.6, count=5)).summary.requests == 5  # and the server serves on


def test_ctrl_c_ends_the_run_with_its_records(small):
    recorder = Recorder()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            small.serve("edf", [Request(i, i * 0.2, 60.0, {"dit": 4}) for i in range(200)], recorder)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert recorder.summary.outcomes.total() == recorder.summary.requests
    assert 0 < recorder.summary.requests < 200


def test_stop_after(small):
    """What is live so long after the last request was sent fails."""
    requests = [Request(i, 0.0, 60.0, {"dit": 900}) for i in range(6)]
    report = small.serve("fcfs", requests, stop_after=0.1)
    assert report.summary.outcomes[Outcome.FAILED] == 6


def test_the_client_is_on_time_and_says_when_it_is_not():
    due = [0.01 * i for i in range(50)]
    client = Client(due)
    try:
        begin = time.monotonic() + 0.05
        client.begin(begin)
        sent = []
        while (packet := PACKET.unpack(client.channel.recv(PACKET.size)))[0] != END:
            sent.append(packet)
    finally:
        client.close()
    assert [number for number, _ in sent] == list(range(50))
    late = sorted(at - begin - due[number] for number, at in sent)
    assert late[0] >= 0
    assert late[25] < 0.005


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (Options(device="cuda:0"), "torch sees no GPU"),
        (Options(device="tpu"), "unknown device 'tpu'"),
        (Options(device="meta"), "not supported"),
    ],
)
def test_devices_that_are_not_there(options, line):
    if torch.cuda.is_available() and options.device == "cuda:0":
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=line):
        Server("tiny-dit", options).device_slots("gpu0")


def test_unknown_models():
    with pytest.raises(BadInput, match=r"'quiet' has another name now \(right would be: pinned_core\)"):
        Options.of({"quiet": False})
    with pytest.raises(BadInput, match="unknown option 'eagre'"):
        Options.of({"eagre": True})
    assert Options.of({"device": "cpu", "pinned_core": False}) == Options(device="cpu", pinned_core=False)
    with pytest.raises(BadInput, match="unknown model 'dalle'"):
        Server("dalle")


def test_without_torch():
    """One line that says what to install."""
    code = (
        "import importlib.util as u; f = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'torch' else f(n, *a)\n"
        "import servetwin.core\n"
        "try:\n from servetwin.real import Server\nexcept servetwin.core.BadInput as e:\n print(e)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [
        "real execution needs torch, which is not installed (right would be: pip install 'servetwin[diffusion]')"
    ]
