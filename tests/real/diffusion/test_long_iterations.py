"""A profile of a model whose iterations are long: fewer of them are measured, and say the same."""

import time
from pathlib import Path

import pytest
from servetwin.real import Options, Server, take_profile
from servetwin.real.diffusion.model_registry import class_of, find

#: Seconds that the network and the VAE take at least; iterations that all measurements together may take, which
#: were 482 when as many of long ones were measured as of short ones.
NETWORK, VAE, ITERATIONS = 0.022, 0.021, 330

MODEL = """
import time

import torch
from servetwin.real import DiffusionModel, Kind


class Slow(DiffusionModel):
    calls = 0
    kinds = (
        Kind(
            "slow", "Slow, 8x8", chain=(("unet", True), ("vae", False)), image=8, latent=(3, 8, 8), largest=1,
            networks={"unet": {}},
        ),
    )

    def build(self, name, config):
        return torch.nn.Identity()

    def predict(self, slots, index, x, t, guidance):
        Slow.calls += 1
        time.sleep(NETWORK)
        return x

    def vae(self, slots, index):
        time.sleep(VAE)
        slots["image"].index_fill_(0, index, 7)
"""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    file = tmp_path / "slow.py"
    file.write_text(MODEL.replace("(NETWORK)", f"({NETWORK})").replace("(VAE)", f"({VAE})"))
    return Server(find(str(file)), Options(device="cpu"))


def test_long_iterations_are_measured_of_fewer(server: Server) -> None:
    began = time.monotonic()
    content = take_profile(server, "cpu/slow", seconds=0.02, brief=True)
    wall = time.monotonic() - began
    slow = class_of(server.kind)
    assert slow.calls < ITERATIONS
    assert content["modules"]["unet"]["tables"]["scheduler"]["seconds"][0] == pytest.approx(NETWORK, rel=0.15)
    assert content["modules"]["vae"]["tables"]["scheduler"]["seconds"][0] == pytest.approx(VAE, rel=0.15)
    assert content["costs"]["whole.ratio"]["value"] == pytest.approx(1.0, abs=0.15)
    for name in ("unet.device_beside.vae", "vae.device_beside.unet"):  # who sleeps takes nothing from the other
        assert content["costs"][name]["value"] == pytest.approx(1.0, abs=0.15)
    took = content["took"]
    assert list(took) == ["plain", "modules", "running", "arrivals", "whole", "contention", "client", "policies"]
    assert 0.8 * wall < sum(took.values()) <= wall
