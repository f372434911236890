"""aiconfigurator's tables, asked through the package: what it is asked, and what is said when it has no answer. (The
package itself is an extra; with it these tests' last one runs.)"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from servetwin.core import BadInput
from servetwin.profiles import load
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile


class Asked:
    def __init__(self, batch_size: int, isl: int, osl: int, prefix: int) -> None:
        self.batch, self.isl, self.prefix = batch_size, isl, prefix
        assert osl == 2


class Session:
    """Milliseconds by a formula, of the model, the tables and the engine that were asked for."""

    def __init__(self, model: Any, tables: Any, engine: Any) -> None:
        assert model == ("meta-llama/Meta-Llama-3.1-8B", 2, "vllm")
        assert (tables, engine) == (("h200_sxm", "vllm", "0.9"), "vllm")

    def run_static_latency_only(self, asked: Asked, mode: str) -> float:
        if mode == "static_gen":
            assert not asked.prefix
            return 5.0 + asked.batch + 1e-4 * asked.batch * asked.isl
        new = asked.isl - asked.prefix
        assert new > 0
        return 4.0 + asked.batch * new * (0.01 + 1e-6 * (new / 2 + asked.prefix))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    modules = {
        "": {"__version__": "0.12.0"},
        ".sdk": {},
        ".sdk.perf_database": {
            "get_latest_database_version": lambda system, backend: "0.9" if system == "h200_sxm" else None,
            "get_database_view": lambda *key: key,
        },
        ".sdk.config": {
            "RuntimeConfig": Asked,
            "ModelConfig": lambda tp_size: tp_size,
        },
        ".sdk.models": {"get_model": lambda model, config, backend: (model, config, backend)},
        ".sdk.backends": {},
        ".sdk.backends.factory": {"get_backend": lambda backend: backend},
        ".sdk.inference_session": {"InferenceSession": Session},
    }
    made = {}
    for name, content in modules.items():
        module = made[name] = types.ModuleType(f"aiconfigurator{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


MINE = {"device": "h200", "tensor_parallel_size": 2, "max_num_batched_tokens": 1024, "max_model_len": 8192}


def test_what_the_tables_say_the_profile_says(imported, package):
    profile = imported("aiconfigurator", "llama-3.1-8b", **MINE)
    times = profile.tokens("measured")
    assert times.prefill(1024) == pytest.approx(1e-3 * (4 + 1024 * (0.01 + 1e-6 * 512)), rel=1e-5)
    assert times.prefill(1024, 4 * 256.0**2) == pytest.approx(1e-3 * (4 + 1024 * (0.01 + 1e-6 * 128)), rel=1e-5)
    chunk = 1e-3 * (4 + 256 * (0.01 + 1e-6 * (128 + 2048)))
    assert times.prefill(256, 256.0**2, 256.0 * 2048) == pytest.approx(chunk, rel=1e-5)
    assert times.decode(8, 8 * 2048) == pytest.approx(1e-3 * (5 + 8 + 1e-4 * 8 * 2048), rel=1e-5)
    assert "aiconfigurator 0.12.0's tables" in profile.data.basis.source
    assert "vllm 0.9" in profile.data.basis.source
    assert profile.data.device.count == 2


def test_it_is_an_extra(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "aiconfigurator"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiconfigurator", None)
    with pytest.raises(BadInput, match=r"not installed .*servetwin\[import\]"):
        import_profile("aiconfigurator", "llama-3.1-8b", Settings(**MINE))


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        ("llama-3.1-8b", {"device": "a100"}, "no tables of vllm on a100_sxm"),
        ("llama-3.1-8b", {"device": "rtx4090"}, "rtx4090 is not known to it"),
        ("opt-13b", {}, "opt-13b is not known to it"),
        ("llama-3.1-8b", {"device": None}, "--device"),
        ("llama-3.1-8b", {"model": "opt-13b"}, "the source is the model"),
    ],
)
def test_what_it_has_not_is_told(package, model, change, said):
    with pytest.raises(BadInput, match=said):
        import_profile("aiconfigurator", model, Settings(**{**MINE, **change}))


def test_what_the_package_raises_is_one_line(package, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("no rows\nfor this model")

    monkeypatch.setattr(package[".sdk.models"], "get_model", broken)
    with pytest.raises(BadInput) as caught:
        import_profile("aiconfigurator", "llama-3.1-8b", Settings(**MINE))
    assert "no rows" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_itself_gives_what_is_shipped(imported):
    pytest.importorskip("aiconfigurator")
    mine = imported("aiconfigurator", "llama-3.1-8b", device="h200").tokens("measured")
    shipped = load("h200/llama-3.1-8b-tp1-imported").tokens("measured")
    assert mine.decode(64, 64000) == pytest.approx(shipped.decode(64, 64000), rel=1e-3)
