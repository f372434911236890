"""The formula: what binds where, what each efficiency does, and how far off it is."""

from __future__ import annotations

from statistics import median

import pytest
from servetwin.core import BadInput
from servetwin.profiles import architecture, load
from servetwin.profiles.importing.devices import device
from servetwin.profiles.importing.formats import roofline
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile

FREE = {"layer_us": "0", "reduce_us": "0"}
IDEAL = {"compute": "1", "attention": "1", "bandwidth": "1", "link": "1", **FREE}


def test_one_sequence_takes_what_reading_the_weights_takes(imported):
    times = imported("roofline", "llama-3.1-8b", device="h100", options=IDEAL).tokens("measured")
    shape = architecture("llama-3.1-8b")
    read = 2 * (shape.parameters - shape.vocabulary * shape.hidden)  # the embedding is looked up, not read
    assert times.decode(1, 16) == pytest.approx(read / device("h100").bandwidth, rel=0.01)


def test_a_long_prompt_takes_what_its_arithmetic_takes(imported):
    times = imported("roofline", "llama-3.1-8b", device="h100", options=IDEAL, enforce_eager=True).tokens("measured")
    shape = architecture("llama-3.1-8b")
    dense = 2 * 8192 * (shape.parameters - 2 * shape.vocabulary * shape.hidden)
    attention = 4 * shape.layers * shape.heads * shape.head * 8192**2 / 2
    found = times.prefill(8192)
    assert found == pytest.approx((dense + attention) / device("h100").flops, rel=0.15)
    assert found > (dense + attention) / device("h100").flops


@pytest.mark.parametrize("option", ["compute", "attention", "bandwidth"])
def test_less_efficiency_takes_longer(imported, option):
    def seconds(**options: str) -> float:
        times = imported("roofline", "llama-3.1-8b", device="h100", options=options).tokens("measured")
        return times.prefill(8192, 8192.0**2) + times.decode(64, 64 * 8192)

    assert seconds(**{option: "0.3"}) > 1.02 * seconds()


def test_devices_share_the_work_and_pay_for_what_they_exchange(imported):
    one, four = (
        imported("roofline", "llama-3.1-8b", device="h100", options=FREE, tensor_parallel_size=n).tokens("measured")
        for n in (1, 4)
    )
    assert one.decode(1, 1000) / 4 < four.decode(1, 1000) < one.decode(1, 1000) / 3
    assert four.prefill(8192) > one.prefill(8192) / 4


def test_it_says_its_efficiencies_and_that_it_is_estimated(imported):
    basis = imported("roofline", "qwen3-8b", device="h200", options={"compute": "0.55"}).data.basis
    assert basis.kind == "estimated"
    assert "compute 0.55" in basis.source
    assert "bandwidth 0.8" in basis.source


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("llama-3.1-8b", {}, "--device"),
        ("llama-3.1-8b", {"device": "tpu"}, "unknown device 'tpu'"),
        ("llama-9", {"device": "h100"}, "unknown model 'llama-9'"),
        ("llama-3.1-8b", {"device": "h100", "options": {"compute": "1.5"}}, "--set compute: is 1.5"),
        ("llama-3.1-8b", {"device": "h100", "options": {"compute": "fast"}}, "--set compute: is 'fast'"),
        ("llama-3.1-8b", {"device": "h100", "options": {"flops": "1"}}, "unknown option"),
        ("llama-3.1-8b", {"device": "h100", "tensor_parallel_size": 3}, "32 heads on 3 devices"),
        ("llama-3.1-70b", {"device": "h100"}, "no KV block fits"),
    ],
)
def test_what_does_not_fit_is_told(model, settings, said):
    with pytest.raises(BadInput) as caught:
        import_profile("roofline", model, Settings(**settings))
    assert said in str(caught.value)


#: Profiles that were measured here: device, and in percent how far decode steps and prompts are off in the median.
MEASURED = {
    ("h200-long/opt-13b-tp1-1", "opt-13b", 1): (17, 16),
    ("h200-long/opt-30b-tp1", "opt-30b", 1): (8, 5),
    ("h200-long/opt-66b-tp2", "opt-66b", 2): (16, 13),
}


@pytest.mark.parametrize(("name", "model", "devices"), MEASURED)
def test_how_far_it_is_off(imported, name, model, devices):
    """What `roofline.KNOWN_ERROR` says."""
    guess = imported("roofline", model, device="h200", tensor_parallel_size=devices).tokens("measured", hold=True)
    real = load(name).tokens("measured", hold=True)
    places = [(n, n * k) for n in (1, 4, 16, 32, 64, 128) for k in (100, 300, 1000)]
    decode = median(abs(guess.decode(*at) / real.decode(*at) - 1) for at in places)
    prefill = median(abs(guess.prefill(n) / real.prefill(n) - 1) for n in (32, 64, 128, 256, 512, 1024, 2000))
    assert (round(100 * decode), round(100 * prefill)) == MEASURED[name, model, devices]
    assert "8 to 17 %" in roofline.KNOWN_ERROR
    assert "5 to 16 %" in roofline.KNOWN_ERROR
