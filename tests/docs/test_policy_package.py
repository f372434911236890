"""The package of policies in the documentation works as one that is installed (`.ci/wheel-test` installs it)."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="it is installed there, beside the wheel"),
]

PACKAGE = Path(__file__).parents[2] / "docs" / "guides" / "policy-package"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Python finds the package, with the entry points that its pyproject.toml names."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    text = "\n".join(f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in groups)
    (info / "entry_points.txt").write_text(text + "\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PACKAGE)]), "PYTHONDONTWRITEBYTECODE": "1"}


def call(beside: dict[str, str], folder: Path, *command: str) -> tuple[int, str]:
    path = f"{Path(sys.executable).parent}:{beside['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**beside, "PATH": path}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_its_policies_are_known_by_name(beside, tmp_path) -> None:
    code, told = call(beside, tmp_path, "servetwin", "policies", "example-slack")
    assert code == 0, told
    assert "  margin: float = 0.0\n      seconds that a request must have left over" in told
    run = ("servetwin", "run", "dit-s2-256-rtx4090", "--policy", "example-slack", "--requests", "20", "--set")
    assert call(beside, tmp_path, *run, "policy.params.margin=0.1")[0] == 0
    code, told = call(beside, tmp_path, *run, "policy.params.magin=0.1")
    assert code == 2
    assert "policy.params has no key 'magin' (right would be: margin)" in told
    code, told = call(beside, tmp_path, *run, "policy.params.margin=soon")
    assert code == 2
    assert "'soon' does not fit parameter 'margin' (right would be: float)" in told


def test_its_tests_pass_and_its_policies_are_checked(beside, tmp_path) -> None:
    options = ("-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    code, told = call(beside, tmp_path, sys.executable, "-m", "pytest", *options, str(PACKAGE / "tests"))
    assert code == 0, told
    assert "4 passed" in told
    for name in ("example-prompts", "example-least-work"):
        code, told = call(beside, tmp_path, "servetwin", "check", name)
        assert code == 0, told
        assert "no fault found" in told
