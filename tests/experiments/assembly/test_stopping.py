"""SIGTERM ends a simulation in one line, with exit code 143, as Ctrl-C does with 130; backends and models that are
not installed are one line too."""

import signal

import pytest
from harness_stop import stop
from servetwin.core.installed import not_installed
from servetwin.experiments.cli import entry


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_simulation_is_ended_in_one_line(tmp_path, number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
    try:
        run = ["run", "dit-s2-256-rtx4090", "--requests", "2000000", "--rate", "4", "--out", str(tmp_path / "run")]
        code, said = stop(run, tmp_path / "run", number=number)
    finally:
        signal.signal(signal.SIGINT, before)
    how = "terminated" if number == signal.SIGTERM else "interrupted"
    assert (code, said) == (128 + number, f"servetwin: {how}; what was recorded is in {tmp_path / 'run'}\n")
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.skipif(len(not_installed("torch", "vllm")) < 2, reason="they are installed")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "tiny-opt-cpu", "--backend", "vllm"], "language models need vllm and torch"),
        (["run", "tiny-opt-cpu", "--backend", "real"], "language models need vllm and torch"),
        (["profile", "tiny-opt"], "language models need vllm and torch"),
        (["profile", "opt-13b"], "language models need vllm and torch"),
        (["profile", "llama-3.1-8b"], "language models need vllm and torch"),
        (["profile", "lama-3"], "unknown model 'lama-3'"),
        (["run", "tiny-dit-cpu", "--backend", "real"], "real execution needs torch, diffusers, transformers"),
        (["run", "tiny-dit-cpu", "--backend", "vllm"], "vLLM cannot serve"),
        (["sweep", "figure11", "--backend", "real"], "real execution needs torch"),
        (["profile", "tiny-dit"], "real execution needs torch, diffusers, transformers"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(monkeypatch, capsys, tmp_path, arguments, says):
    out = tmp_path / ("out.yaml" if arguments[0] == "profile" else "out")
    monkeypatch.setattr("sys.argv", ["servetwin", *arguments, "--out", str(out)])
    assert entry._run() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err
    assert not out.exists()
