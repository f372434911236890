"""A server as its users start it: vLLM's, with our scheduler by its path, asked over HTTP."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from urllib.request import urlopen

import pytest
from servetwin.core import BadInput
from servetwin.experiments.assembly.build import run
from servetwin.experiments.cli.entry import main
from servetwin.experiments.spec.loading import load as load_experiment
from servetwin.profiles import load
from servetwin.real.vllm.http_client import serve_url
from servetwin.real.vllm.plan import Planned

pytestmark = pytest.mark.skipif(find_spec("fastapi") is None, reason="vLLM's server needs fastapi")

SETTINGS = {"servetwin": {"policy": "neustream-llm", "profile": "cpu/tiny-opt", "slo": "500+500"}}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(folder, log):
    """vLLM's server with our scheduler, and its URL."""
    port = free_port()
    options = "--load-format dummy --skip-tokenizer-init --enforce-eager --dtype float32 --max-model-len 512"
    options += " --max-num-seqs 32 --no-enable-prefix-caching --kv-cache-memory-bytes 67108864 --block-size 32"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options.split()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    command += ["--scheduler-cls", "servetwin.real.vllm.scheduler.PolicyScheduler"]
    command += ["--additional-config", json.dumps(SETTINGS)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with server(folder, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def test_a_server_with_our_policy_is_asked_over_http(url):
    run = serve_url(url, [Planned(i, 0.02 * i, 20 + i, 5 + i % 7, 40) for i in range(30)])
    assert [r.outcome for r in run.requests] == ["finished"] * 30
    for i, r in enumerate(run.requests):
        assert len(r.times) == 5 + i % 7
        assert r.times == sorted(r.times)
        assert r.arrival <= r.times[0]


def test_what_a_client_says_wrongly_does_no_harm(url):
    from urllib.request import Request

    for said in ("x", '{"limit": "many"}', "[1]"):
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "ignore_eos": True}
        body |= {"return_token_ids": True, "vllm_xargs": {"servetwin": said}}
        asked = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(asked, timeout=60) as answer:
            assert len(json.load(answer)["choices"][0]["token_ids"]) == 2


def test_from_the_command_line(url, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    command = f"servetwin run tiny-opt-cpu --backend vllm --url {url} --requests 20 --out {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "tokens of llm" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["requests"] == summary["completed"] == 20
    assert summary["mean_ttft_ms"] > 0


def test_what_a_server_takes_before_its_engine(url, tmp_path, monkeypatch, capsys):
    """Measured on the idle server; requests one by one are then predicted later by that, and by no more."""
    out = tmp_path / "served.yaml"
    monkeypatch.setattr(sys, "argv", f"servetwin profile cpu/tiny-opt --url {url} --out {out}".split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "before the engine" in capsys.readouterr().out
    line = load(str(out)).cost("server.before_engine").line
    assert 0.0 < line.constant + 256 * line.per_request < 0.2

    command = (
        f"servetwin run tiny-opt-cpu --backend vllm --url {url} --requests 20 --rate 4 --out {tmp_path / 'real'}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        main()
    measured = json.loads((tmp_path / "real" / "summary.json").read_text())["mean_ttft_ms"]
    with_it, without = (simulated_ttft(profile) for profile in (str(out), "cpu/tiny-opt"))
    assert with_it == pytest.approx(without + 1e3 * (line.constant + 105 * line.per_request), rel=0.2)
    assert abs(with_it - measured) < abs(without - measured)


def simulated_ttft(profile):
    spec = load_experiment("tiny-opt-cpu", [("workload.arrivals.rate", 4.0), ("deployment.devices.gpu0", profile)])
    return run(spec).as_dict()["mean_ttft_ms"]


def test_two_servers_behind_a_router_of_ours(url, folder, tmp_path, monkeypatch):
    """Two engines on one CPU, each with our scheduler, and requests that go where the fewest are."""
    command = "servetwin run tiny-opt-cpu --backend vllm --requests 40 --rate 40 --set deployment.replicas=2"
    command += f" --set deployment.router=jsq --out {tmp_path / 'run'}"
    with server(folder, tmp_path / "log") as other:
        monkeypatch.setattr(sys, "argv", [*command.split(), "--url", url, "--url", other])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["requests"] == summary["completed"] == 40
    real = json.loads((tmp_path / "run" / "real.json").read_text())
    assert sorted(real["engine"]["urls"].values()) == sorted([url, other])
    assert sum(real["engine"]["requests"].values()) == 40
    assert min(real["engine"]["requests"].values()) >= 8
    lines = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    by = {name: sum(line["stages"][0]["worker"] == name for line in lines) for name in real["engine"]["urls"]}
    assert by == real["engine"]["requests"]


def test_no_server(url):
    with pytest.raises(BadInput, match="no server answers"):
        serve_url(f"http://127.0.0.1:{free_port()}", [])
    with pytest.raises(BadInput, match="no address"):
        serve_url("ftp://127.0.0.1", [])
    with pytest.raises(BadInput, match=r"no model 'opt'.*tiny"):
        serve_url(url, [], model="opt")
