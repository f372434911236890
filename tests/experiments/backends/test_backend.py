"""Real runs from the command line, as far as it goes without torch: what is said, and what fits what.

The runs themselves are in tests/real.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.experiments.backends.diffusion import Setup, device_names, same_device
from servetwin.experiments.backends.profile import slug
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as load_profile

#: The command line of a machine without torch, wherever this runs.
WITHOUT_TORCH = (
    "import importlib.util as u, sys; f = u.find_spec;"
    "u.find_spec = lambda n, *a: None if n == 'torch' else f(n, *a);"
    "from servetwin.experiments.cli import main; main()"
)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "tiny-dit-cpu", "--backend", "real", "--device", "cpu", "--out", "made"],
        ["profile", "tiny-dit", "--device", "cpu", "--out", "made.yaml"],
        ["sweep", "figure11", "--backend", "real", "--out", "made"],
    ],
)
def test_without_torch_one_line_says_what_to_install(command, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("servetwin: real execution needs torch")
    assert "pip install 'servetwin[diffusion]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        *(["--device", "cpu"], ["--model", "tiny-dit"], ["--weights", "w"], ["--eager"], ["--processes"]),
        *(["--slots", 3], ["--sampler", "euler"], ["--any-device"], ["--url", "http://x"], ["--synchronous"]),
        ["--compile", "blocks"],
    ],
)
def test_what_only_real_runs_take_is_refused_elsewhere(servetwin, option):
    code, out, err = servetwin("run", "tiny-dit-cpu", *option)
    assert (code, out) == (2, "")
    assert err == f"servetwin: {option[0]}: only real runs take this (right would be: --backend real)\n"


def test_profiles_of_servers_take_no_options_of_devices(servetwin, tmp_path):
    command = ("profile", "cpu/tiny-dit", "--url", "http://127.0.0.1:9", "--out", tmp_path / "served.yaml")
    code, _, err = servetwin(*command)
    assert (code, "is of no language model" in err) == (2, True), err
    for option in (["--sampler", "ddim"], ["--compile", "none"], ["--without", "safety"], ["--limit", 3]):
        code, _, err = servetwin(*command, *option)
        assert (code, "a server is as it is" in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_sweeps_refuse_what_is_of_the_other_kind(servetwin, tmp_path):
    for option in (["--device", "cpu"], ["--processes"], ["--repeats", 2], ["--slots", 3], ["--any-device"]):
        code, out, err = servetwin("sweep", "figure11", "--out", tmp_path / "out.csv", *option)
        assert (code, out) == (2, "")
        assert f"{option[0]}: only real runs take this" in err
    for option in (["--until", "1pp"], ["--versus", "edf"], ["--cluster", "ray"]):
        code, out, err = servetwin("sweep", "figure11", "--out", tmp_path / "out", "--backend", "real", *option)
        assert (code, out) == (2, "")
        assert f"{option[0]}: only simulations take this" in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sampler():
    with pytest.raises(BadInput, match="ddim or euler"):
        Setup(sampler="heun")


PROFILES = {name: load_profile("cpu/tiny-dit") for name in ("a", "b")}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((), {"a": "cuda:0", "b": "cuda:1"}),
        (("cpu",), {"a": "cpu", "b": "cpu"}),
        (("cuda:1", "cuda:0"), {"a": "cuda:1", "b": "cuda:0"}),
        (("b=cpu",), {"b": "cpu"}),
        (("b=cuda:3", "cpu"), {"a": "cpu", "b": "cuda:3"}),
    ],
)
def test_which_device_is_which(asked, found):
    if len(found) == 1:
        with pytest.raises(BadInput, match="1 devices for the 2 of the experiment"):
            device_names(PROFILES, asked)
    else:
        assert device_names(PROFILES, asked) == found


def test_devices_that_the_experiment_does_not_have():
    with pytest.raises(BadInput, match="no device 'c'"):
        device_names(PROFILES, ("c=cpu",))
    with pytest.raises(BadInput, match="3 devices for the 2"):
        device_names(PROFILES, ("cpu", "cpu", "cpu"))


def test_a_profile_is_of_a_device_if_all_it_says_of_its_name_is_true():
    assert same_device("NVIDIA H100", "NVIDIA H100 80GB HBM3")
    assert same_device("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090")
    assert not same_device("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe")
    assert not same_device("NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3")
    assert not same_device("AMD EPYC", "NVIDIA H100")


def test_devices_as_part_of_a_name():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("Intel(R) Xeon(R) Processor @ 2.60GHz") == "intel-xeon-processor"
    assert slug("???") == "device"


@pytest.mark.parametrize("policy", ["neustream", "clockwork", "edf", "fcfs"])
@pytest.mark.parametrize("name", ["tiny-sd-cpu", "tiny-dit-cpu", "tiny-palette-cpu"])
def test_the_workloads_for_a_cpu_run_in_simulation_too(servetwin, name, policy):
    code, out, _ = servetwin("run", name, "--policy", policy)
    assert code == 0
    assert f"{name}, {policy}, rate {load(name).workload.arrivals.rate:g}, slo_factor 4: 100 requests" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--backend", "real", "--url", "http://x"], "--url: only --backend vllm takes this"),
        (["--backend", "real", "--asynchronous"], "--asynchronous: only --backend vllm takes this"),
        (["--backend", "vllm", "--device", "cpu"], "--device: vLLM does not take this"),
        (["--backend", "vllm", "--weights", "w"], "--weights: vLLM does not take this"),
        (["--backend", "vllm", "--slots", 3], "--slots: vLLM does not take this"),
    ],
)
def test_no_backend_ignores_what_it_does_not_take(servetwin, options, told):
    code, out, err = servetwin("run", "tiny-opt-cpu", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"servetwin: {told}")


def test_the_most_seeds_are_for_until(servetwin, tmp_path):
    code, out, err = servetwin("sweep", "figure11", "--out", tmp_path / "out.csv", "--most", 5)
    assert (code, out) == (2, "")
    assert err.startswith("servetwin: --most: there is nothing that would take more seeds")
