"""These tests need vllm-omni's own classes: without them they are skipped, unless SERVETWIN_REAL=1 says that they
must run.

vllm-omni changes vLLM as it is imported, and tells vLLM of itself wherever it is installed: it lies in a folder of
its own (``.venv-omni``, on PYTHONPATH), and these tests run in a process of their own (``make test-real``).
"""

import os
import warnings
from importlib.util import find_spec

import pytest

MISSING = [name for name in ("torch", "vllm", "vllm_omni") if find_spec(name) is None]
if MISSING and os.environ.get("SERVETWIN_REAL") == "1":
    raise pytest.UsageError(f"SERVETWIN_REAL=1, but {', '.join(MISSING)} cannot be imported")
if not MISSING:
    with warnings.catch_warnings():  # those of vllm-omni and of what it imports are not ours
        warnings.simplefilter("ignore")
        import vllm_omni.diffusion.diffusion_engine

        assert vllm_omni.diffusion.diffusion_engine is not None
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_collection_modifyitems(items):
    for item in items:
        if "real/omni" in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("default"))
