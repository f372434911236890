"""Invariant 8 across processes: the same seed gives the same bytes whatever the Python and its NumPy, the hash seed,
the time zone, the locale, optimisation, or the number of jobs.

What is run, of every family of workload, is in ``tests/same_runs.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import same_runs
from servetwin.core.arithmetic import float_sum

SURROUNDINGS: dict[str, dict[str, str]] = {
    "another hash seed": {"PYTHONHASHSEED": "99"},
    "time zone": {"TZ": "Pacific/Kiritimati"},
    "locale": {"LC_ALL": "C", "LANG": "tr_TR.UTF-8"},
    "without assertions": {"PYTHONOPTIMIZE": "1"},
}


def hashes(folder: Path, python: str = sys.executable, *, jobs: int = 1, **surroundings: str) -> dict[str, str]:
    """What the runs come to in a process of their own: a hash of each file."""
    folder.mkdir()
    own = {"PYTHONHASHSEED": "1", "TZ": "UTC", "SERVETWIN_CACHE": str(folder.with_suffix(".cache"))}
    command = [python, same_runs.__file__, str(folder), str(jobs)]
    given = {**os.environ, **own, **surroundings}
    done = subprocess.run(command, env=given, check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hashes(tmp_path_factory.mktemp("usual") / "runs")


def test_the_same_bytes_with_another_hash_seed_time_zone_locale_and_two_jobs(
    usual: dict[str, str], tmp_path: Path
) -> None:
    """All of these at once: each of them is one process, and costs seconds."""
    assert {f"{name}/requests.jsonl" for name in same_runs.RUNS} < set(usual)
    assert len(set(usual.values())) > len(usual) / 2
    others = {name: value for given in SURROUNDINGS.values() for name, value in given.items()}
    assert hashes(tmp_path / "runs", jobs=2, **others) == usual


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_same_bytes_with_each_of_them_alone(
    surroundings: dict[str, str], usual: dict[str, str], tmp_path: Path
) -> None:
    assert hashes(tmp_path / "runs", **surroundings) == usual


@pytest.mark.parametrize("python", os.environ.get("SERVETWIN_PYTHONS", "").split())
def test_the_same_bytes_on_another_python(python: str, usual: dict[str, str], tmp_path: Path) -> None:
    """SERVETWIN_PYTHONS names interpreters that have ServeTwin installed, of other versions of Python or NumPy."""
    assert hashes(tmp_path / "runs", python) == usual


def test_floats_are_added_one_after_the_other() -> None:
    """`sum` of Python 3.12 and later gives 2.0 here, and 0.3 for the second."""
    assert float_sum([1.0, 1e100, 1.0, -1e100]) == 0.0
    assert float_sum(x for x in (0.1, 0.1, 0.1)) == 0.1 + 0.1 + 0.1 != 0.3
    assert str(float_sum([])) == "0"


@pytest.mark.checkout
def test_mypy_refuses_sums_of_floats(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    root = Path(__file__).parents[2]
    plugin = root / "tests/float_sums.py"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nplugins = {plugin}\ncache_dir = {tmp_path}\n")
    lines = {
        "sum(floats)": True,
        "sum([2.0 * x for x in floats])": True,
        "sum(floats, 1.0)": True,
        "sum(row['a'] for row in rows)": True,
        "sorted([floats], key=lambda line: sum(line))": True,
        "sum(counts)": False,
        "sum(x > 1.0 for x in floats)": False,
        "floats[0] / sum(len(line) for line in [floats])": False,
        "max(counts, key=lambda n: sum([n, 2]))": False,
    }
    head = (
        "from typing import Any\ndef f(floats: list[float], counts: list[int], rows: list[dict[str, Any]]) -> None:\n"
    )
    (tmp_path / "sums.py").write_text(head + "".join(f"    {line}\n" for line in lines))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--strict", "sums.py"]
    told = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True).stdout
    found = {int(line.split(":")[1]) - 3 for line in told.splitlines() if "float_sum" in line}
    assert found == {number for number, refused in enumerate(lines.values()) if refused}, told
