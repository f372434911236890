"""How the modules that are started with ``python -m`` end: what is wrong is one line, as everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from servetwin.core import ServeTwinError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call *main* with the arguments of the command line. An error is a line on standard error, and its exit code."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except ServeTwinError as error:
        sys.stderr.write(f"servetwin: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever reads has read enough: the exit code of `cli.entry`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
