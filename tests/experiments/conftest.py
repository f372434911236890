"""Where the raw artifact data lies, and the few workloads that these tests serve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the NeuStream artifact's data, or skip."""
    named = os.environ.get("SERVETWIN_REFERENCE")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "reference" / "neustream-ae"
    if not (folder / "diffusion").is_dir():
        pytest.skip(f"the reference data is not at {folder} (set SERVETWIN_REFERENCE)")
    return folder
