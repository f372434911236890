"""What the tests of profiles share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WHERE = Path(os.environ.get("SERVETWIN_REFERENCE", Path(__file__).parents[3] / "shared/reference/neustream-ae"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The extract of the NeuStream artifact, which lies outside the repository."""
    if not (WHERE / "diffusion").is_dir():
        pytest.skip("no reference data: set SERVETWIN_REFERENCE to the folder that holds diffusion/")
    return WHERE


@pytest.fixture
def small() -> dict[str, Any]:
    """The content of a profile file as a user might write it after measuring a GPU."""
    source = {"file": "bench.py", "line": 3}
    return {
        "schema_version": 1,
        "name": "mine/toy",
        "description": "a toy model",
        "device": {"name": "some GPU", "kind": "gpu", "memory_gib": 16},
        "model": "toy",
        "precision": "fp32",
        "image": [64, 64],
        "batch_counts": "requests",
        "measured_when": "today",
        "origin": {"repository": "here"},
        "modules": {
            "unet": {
                "loop": True,
                "rows_per_request": 2,
                "tables": {
                    "scheduler": {
                        "batch": [1, 2, 4],
                        "seconds": [0.25, 0.5, 1.0],
                        "samples": [9, 9, 9],
                        "statistic": "median",
                        "source": source,
                    },
                },
            },
            "vae": {
                "tables": {"scheduler": {"batch": [1], "seconds": [0.125], "statistic": "median", "source": source}}
            },
        },
        "costs": {
            "transport.client.unet": {
                "meaning": "from one worker to the next",
                "unit": "seconds",
                "value": 0.0625,
                "quantiles": {"p": [0, 0.5, 1], "values": [0.03125, 0.0625, 0.25]},
                "samples": 3,
                "how": "time stamps",
                "source": source,
            },
            "unet.join_together": {
                "meaning": "a request begins",
                "unit": "seconds",
                "modules": ["unet"],
                "by_batch": {"batch": [1, 3], "values": [0.5, -0.5]},
                "how": "difference of two periods",
                "source": source,
            },
            "whole.session": {
                "meaning": "how slow the host was",
                "unit": "ratio",
                "value": 1,
                "sessions": [{"since": "2024-04-28 16:00", "until": "2024-04-28 20:00", "value": 1.0625}],
                "how": "against the table",
                "source": source,
            },
            "last_stage": {
                "meaning": "time of the last stage",
                "unit": "seconds",
                "line": {"constant": 0.5, "per_request": 0.25},
                "how": "a line through the means",
                "source": source,
            },
        },
    }


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a profile file; returns its path."""

    def write(content: Any, name: str = "toy.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write
