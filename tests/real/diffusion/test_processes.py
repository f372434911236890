"""Workers in processes of their own: the same images and records, and no process is left whatever happens."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from servetwin.core import BadInput, Outcome, Request, RunFolder, ServeTwinError
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.cli import entry
from servetwin.profiles import load
from servetwin.real import Options, Server
from twin import LIMIT, Twin


def twin(name, device="cpu", **options):
    server = Server(name, Options(device=device, slots=16, **options))
    return Twin(server, load(f"cpu/{name}"), LIMIT, (6, 10))


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


#: On a GPU processes share their slots by CUDA IPC.
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.mark.parametrize("device", DEVICES)
def test_the_images_are_those_of_one_process(tmp_path, device):
    """Three processes, whose slots are one another's: what a stage leaves is what the next one finds."""
    images = []
    for processes in (False, True):
        made = {}
        here = twin("tiny-sd", device, processes=processes)
        recorder = RunFolder(tmp_path / str(processes), here.server.describe())
        report = here.serve(
            "edf",
            # Two waves of ten for sixteen slots.
            [Request(i, i * 0.02 + i // 10 * 0.8, 60.0, {"unet": 5 + i % 2}) for i in range(20)],
            recorder,
            sink=lambda number, image, made=made: made.setdefault(number, image.int()),
        )
        recorder.close()
        check_records(tmp_path / str(processes))
        assert report.summary.met == 20
        assert sorted(made) == list(range(20))
        assert set(report.summary.sizes) == {"clip", "unet", "vae+safety"}
        images.append(made)
    for number in range(20):
        assert int((images[0][number] - images[1][number]).abs().max()) <= 1


def test_a_worker_that_is_killed_ends_the_run_with_its_records(tmp_path):
    here = twin("tiny-dit", processes=True)

    def kill():
        while not (found := [p for p in multiprocessing.active_children() if p.name == "dit"]):
            time.sleep(0.05)
        while not (tmp_path / "run" / "requests.jsonl").stat().st_size:  # some are served
            time.sleep(0.05)
            recorder._requests.flush()
        os.kill(found[0].pid, signal.SIGKILL)

    recorder = RunFolder(tmp_path / "run", {})
    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ServeTwinError, match=r"the process of worker dit has ended \(signal 9\)"):
        here.serve("edf", [Request(i, i * 0.02, 60.0, {"dit": 40}) for i in range(400)], recorder)
    thread.join()
    recorder.close(complete=False)
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    outcomes = recorder.summary.outcomes
    assert outcomes[Outcome.MET] >= 1
    assert outcomes[Outcome.FAILED] >= 1
    assert outcomes.total() == recorder.summary.requests == len(records) < 400


def test_what_is_wrong_in_a_process_is_told_as_elsewhere(tmp_path):
    with pytest.raises(BadInput, match="the checkpoint has no such folder"):
        twin("tiny-dit", processes=True, weights=tmp_path).serve("edf", [Request(0, 0.0, 60.0, {"dit": 2})])


def test_devices_that_are_one_cpu_share_its_slots():
    """A request goes on to a worker of another device: what the first left in its slot is there."""
    images = []
    for device in ("gpu0", "gpu1"):
        made = {}
        here = twin("tiny-dit", processes=True)
        stages, workers = here.system("edf")
        workers[1].device = device
        requests = [Request(i, i * 0.02, 60.0, {"dit": 4}) for i in range(3)]
        here.server.serve(
            stages, workers, requests, sink=lambda number, image, made=made: made.setdefault(number, image)
        )
        images.append(made)
    assert sorted(images[0]) == sorted(images[1]) == [0, 1, 2]
    assert all(int((images[0][i].int() - images[1][i].int()).abs().max()) <= 1 for i in range(3))


def test_from_the_command_line_until_ctrl_c(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "run"
    options = ["--backend", "real", "--device", "cpu", "--processes", "--any-device", "--requests", "2000"]
    monkeypatch.setattr("sys.argv", ["servetwin", "run", "tiny-dit-cpu", *options, "--out", str(folder)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without

    def interrupt():
        while not (folder / "batches.jsonl").is_file() or not (folder / "batches.jsonl").stat().st_size:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert entry._run() == 130
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == f"servetwin: interrupted; what was recorded is in {folder}\n"
    assert json.loads((folder / "meta.json").read_text())["options"]["processes"] is True
    records = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert 0 < len(records) < 2000
    assert not (folder / "summary.json").exists()
