"""Which branches of core, policies, profiles and sim the tests take, and which tests those are.

    make coverage                       # everything, a quarter of an hour of two idle cores; the table of packages
    python tests/covered.py --missing core/serving    # and the lines and branches that nothing takes

Each file of tests is run by itself and what it took is kept in ``build/coverage`` until that file or one of the
packages changes: what was begun goes on, and ``tests/mutants.py`` asks there which tests reach a line. The exit code
is 1 under `LEAST`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterable
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build/coverage"

#: Packages of which the branches count, and the share of them (with lines) that tests are to take, in %.
PACKAGES = ("core", "policies", "profiles", "sim")
LEAST = 95.0

#: Tests that are run: of these packages, and those that go through them by the command line and by Python.
TESTS = (*PACKAGES, "api", "cases", "experiments")

#: Names the file in which a process that records tells what its tests took.
SECONDS = "SERVETWIN_TESTS_SECONDS"

SETTINGS = """
[run]
branch = True
source = {packages}
parallel = True
[report]
exclude_also =
    if TYPE_CHECKING:
    @overload
    raise NotImplementedError
"""


#: Seconds of the processor that each function of tests took, all its parameters together, in a process that records.
_took: dict[str, float] = defaultdict(float)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note by which test lines are taken, as `FILE::NAME`. (coverage's own `test_function` looks for the outermost
    function whose name begins so, and finds Hypothesis' instead of that of a property.)"""
    if (measuring := coverage.Coverage.current()) is None:
        return (yield)
    name = item.nodeid.partition("[")[0]
    measuring.switch_context(name)
    began = time.process_time()
    try:
        return (yield)
    finally:
        _took[name] += time.process_time() - began
        measuring.switch_context("")


def pytest_sessionfinish() -> None:
    if (told := os.environ.get(SECONDS)) is not None:
        Path(told).write_text(json.dumps(_took))


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(str(file).encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()


def record(folders: Iterable[str] = TESTS) -> None:
    """Run each file of tests in *folders* that was not run before with what there is now."""
    # Shells let what they start in the background ignore Ctrl-C; the tests of it need what processes have else.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    KEPT.mkdir(parents=True, exist_ok=True)
    code = _digest(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    settings = KEPT / "settings.ini"
    settings.write_text(SETTINGS.format(packages=",".join(PACKAGES)))
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    for folder in folders:
        for file in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
            name = file.relative_to(ROOT).as_posix().replace("/", "_")
            log = KEPT / f"{name}.log"
            done, of = KEPT / f"{name}.done", f"{code} {_digest([file])}"
            if done.exists() and done.read_text() == of:
                continue
            for old in KEPT.glob(f"data.{name}.*"):
                old.unlink()
            options = ["-p", "covered", "-p", "no:cacheprovider", "-p", "no:xdist"]
            tests = ["-m", "pytest", *options, "-m", "not slow and not gpu"]
            kept = [f"--data-file={KEPT / 'data'}.{name}"]
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", *kept, *tests, str(file)]
            env[SECONDS] = str(KEPT / f"{name}.json")
            with log.open("w") as told:
                ended = subprocess.run(command, cwd=ROOT, env=env, check=False, stdout=told, stderr=told).returncode
            if ended not in (0, 5):  # 5: it has slow tests only
                raise SystemExit(f"{file.relative_to(ROOT)} fails: see {log.relative_to(ROOT)}")
            done.write_text(of)


def found() -> coverage.Coverage:
    """What was recorded, of all files together."""
    one = coverage.Coverage(data_file=None, config_file=str(KEPT / "settings.ini"))
    one.combine([str(file) for file in KEPT.glob("data.*")], keep=True)
    return one


def seconds() -> dict[str, float]:
    """How many seconds of the processor each function of tests takes, by `FILE::NAME`."""
    took: dict[str, float] = {}
    for file in KEPT.glob("*.json"):
        took |= json.loads(file.read_text())
    return took


def table(one: coverage.Coverage, missing: str | None) -> dict[str, float]:
    """Print the share of each package, and what is missing in the file or folder *missing*."""
    shares = {}
    for package in PACKAGES:
        out = io.StringIO()
        shares[package] = one.report(include=[f"{ROOT}/{package}/**"], file=out)
        sys.stdout.write(f"{package}: {shares[package]:.1f} % of lines and branches\n")
    if missing is not None:
        one.report(
            include=[f"{ROOT}/{missing}", f"{ROOT}/{missing}/**"],
            show_missing=True,
            skip_covered=True,
            file=sys.stdout,
        )
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--missing", metavar="PATH", help="tell also what nothing takes, in these files")
    given = parser.parse_args()
    record()
    shares = table(found(), given.missing)
    return 1 if min(shares.values()) < LEAST else 0


if __name__ == "__main__":
    sys.exit(main())
