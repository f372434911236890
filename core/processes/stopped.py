"""Whether another process was stopped (SIGSTOP, a debugger): it is there, and nothing will ever come from it."""

from __future__ import annotations

import time
from pathlib import Path

#: Seconds for which a process may be stopped before whoever waits for it gives it up.
LONGEST = 20.0


def is_stopped(process: int) -> bool:
    """Whether the process of this number is stopped. False where the system does not tell (outside Linux)."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in "Tt"  # the name, in brackets, may hold anything


class StopWatch:
    """Looks whether the process of this *number* is stopped, and for how long it has been."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._since: float | None = None

    def too_long(self) -> bool:
        """Whether it was stopped at each look for more than `LONGEST` seconds; ask about once a second."""
        if not is_stopped(self.number):
            self._since = None
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since > LONGEST

    def heard(self) -> None:
        """Something came from it, so it was not stopped all the time: it is looked at only while nothing comes."""
        self._since = None

    def told(self, whose: str) -> str:
        """What to say of it: *whose* process it is, and for how long it has been stopped."""
        return f"the process of {whose} has been stopped for {LONGEST:g} s (SIGSTOP?), so that nothing comes from it"
