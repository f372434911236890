"""What the tests of imports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servetwin.profiles import Profile
from servetwin.profiles.importing.settings import Settings
from servetwin.profiles.importing.write import import_profile
from servetwin.profiles.yaml_writer import text


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Profile]:
    """Imports a source, writes the profile and reads it again: what a user gets."""
    from servetwin.profiles import load

    def made(source_format: str, source: Any, **settings: Any) -> Profile:
        path = tmp_path / "profile.yaml"
        path.write_text(text(import_profile(source_format, str(source), Settings(**settings)), "a test"))
        return load(path)

    return made
