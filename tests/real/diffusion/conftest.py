"""These tests need torch and diffusers: without them they are left out, unless SERVETWIN_REAL=1 says that they must
run.
"""

import os
from importlib.util import find_spec

import pytest

MISSING = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
if MISSING and os.environ.get("SERVETWIN_REAL") == "1":
    raise pytest.UsageError(f"SERVETWIN_REAL=1, but {', '.join(MISSING)} cannot be imported")
collect_ignore_glob = ["test_*.py"] if MISSING else []


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads of torch's own only get into each other's way on two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def servetwin(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output, standard error."""
    from servetwin.experiments.cli import entry

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["servetwin", *map(str, arguments)])
        capsys.readouterr()  # what was said before
        code = entry._run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
