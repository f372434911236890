"""Formats are files; what they have in common is said once."""

from __future__ import annotations

from pathlib import Path

import pytest
from servetwin.core import BadInput
from servetwin.profiles.importing import formats as package
from servetwin.profiles.importing import write
from servetwin.profiles.importing.devices import key_of
from servetwin.profiles.importing.settings import Option, Settings

OWN = '''"""Steps that take as long as somebody says."""
from servetwin.profiles.importing.formats import roofline
from servetwin.profiles.importing.grids import tables
from servetwin.profiles.importing.imported import Imported
from servetwin.profiles.importing.settings import Option
from servetwin.profiles.llm.hf_config import shape_of

OPTIONS = {"ms": Option(10.0, "of each step", 0.0)}


class Even:
    def __init__(self, seconds):
        self.seconds = seconds

    def whole(self, tokens, prompts):
        return self.seconds

    def chunk(self, tokens, context):
        return self.seconds

    def decode(self, batch, each):
        return self.seconds


def read(source, settings):
    name, shape = shape_of(source)
    steps = Even(settings.known(OPTIONS)["ms"] / 1000)
    return Imported(
        model=tables(steps, roofline.places(shape, settings), statistic="said", file="nowhere"),
        kind="estimated", source="a word", known_error="all of it", architecture=name, shape=shape,
        device="a device", memory_gib=80.0, origin={"repository": "here"}, engine="none", unlike="Everything.",
    )
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A format of one's own: a file in the folder, and nothing elsewhere."""
    (tmp_path / "even.py").write_text(OWN)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    write.formats.cache_clear()
    yield "even"
    write.formats.cache_clear()


def test_a_new_format_is_one_file(own, imported):
    assert own in write.formats()
    assert write.about(own) == "Steps that take as long as somebody says."
    profile = imported(own, "llama-3.1-8b", options={"ms": "7"})
    assert profile.tokens("measured").decode(5, 500) == pytest.approx(0.007)
    assert profile.name == "a-device/llama-3.1-8b-tp1-estimated"


def test_every_format_tells_what_it_reads_and_its_options():
    for name, module in write.formats().items():
        assert write.about(name).endswith((".", ")")), name
        assert all(isinstance(option, Option) for option in module.OPTIONS.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs: is 0"),
        ({"block_size": -1}, "--block-size: is -1"),
        ({"blocks": 0}, "--blocks: is 0"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization: is 1.5"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "512 requests may run at once"),
    ],
)
def test_settings_that_no_engine_has_are_refused(change, said):
    with pytest.raises(BadInput, match=said):
        Settings(**change)


@pytest.mark.parametrize(
    ("name", "key"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("h200_sxm", "h200"), ("a100-80gb", "a100"), ("L40S", "l40s"), ("l4", "l4")],
)
def test_devices_by_what_others_call_them(name, key):
    assert key_of(name) == key


@pytest.mark.parametrize("name", ["gh200", "h100_pcie", "H100 NVL", "a100-40gb", ""])
def test_a_device_that_only_sounds_alike_is_another(name):
    with pytest.raises(BadInput, match="unknown device"):
        key_of(name)
