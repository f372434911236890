"""Which branches of core, policies, profiles and sim the tests take, and which tests those are.

    make coverage                       # everything, a quarter of an hour of two idle cores; the table of packages
    python tests/covered.py --missing core/serving    # and the lines and branches that nothing takes

Each file of tests is run by itself and what it took is kept in ``build/coverage``: what was begun goes on, and
``tests/mutants.py`` asks there which tests reach a line. `make clean` forgets it. The exit code is 1 under `LEAST`.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import coverage

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build/coverage"

#: Packages of which the branches count, and the share of them (with lines) that tests are to take, in %.
PACKAGES = ("core", "policies", "profiles", "sim")
LEAST = 95.0

#: Tests that are run: of these packages, and those that go through them by the command line and by Python.
TESTS = (*PACKAGES, "api", "cases", "experiments")

SETTINGS = """
[run]
branch = True
source = {packages}
dynamic_context = test_function
parallel = True
data_file = {kept}/data
[report]
exclude_also =
    if TYPE_CHECKING:
    @overload
    raise NotImplementedError
"""


def record(folders: Iterable[str] = TESTS) -> None:
    """Run each file of tests in *folders* that was not run before."""
    KEPT.mkdir(parents=True, exist_ok=True)
    settings = KEPT / "settings.ini"
    settings.write_text(SETTINGS.format(packages=",".join(PACKAGES), kept=KEPT))
    for folder in folders:
        for file in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
            name = file.relative_to(ROOT).as_posix().replace("/", "_")
            log = KEPT / f"{name}.log"
            if (KEPT / f"{name}.done").exists():
                continue
            tests = ["-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--durations=0"]
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", *tests, str(file)]
            with log.open("w") as told:
                code = subprocess.run(command, cwd=ROOT, check=False, stdout=told, stderr=told).returncode
            if code not in (0, 5):  # 5: it has slow tests only
                raise SystemExit(f"{file.relative_to(ROOT)} fails: see {log.relative_to(ROOT)}")
            (KEPT / f"{name}.done").touch()


def found() -> coverage.Coverage:
    """What was recorded, of all files together."""
    one = coverage.Coverage(data_file=str(KEPT / "all"), config_file=str(KEPT / "settings.ini"))
    one.combine([str(file) for file in KEPT.glob("data.*")], keep=True)
    return one


def seconds() -> dict[str, float]:
    """How long each function of tests takes, all its parameters together, by `FILE::NAME`."""
    took: dict[str, float] = defaultdict(float)
    for log in KEPT.glob("*.log"):
        for line in re.finditer(r"^([\d.]+)s (?:call|setup|teardown) +([^\s\[]+)", log.read_text(), re.MULTILINE):
            took[line[2]] += float(line[1])
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
