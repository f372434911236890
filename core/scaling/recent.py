"""What came and ended in the last seconds."""

from __future__ import annotations

from collections import deque


class Recent:
    """Counts of the last *window* seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self._arrivals: deque[float] = deque()
        self._ends: deque[tuple[float, bool]] = deque()
        self._met = 0

    def arrived(self, now: float) -> None:
        self._arrivals.append(now)

    def ended(self, now: float, met: bool) -> None:
        self._ends.append((now, met))
        self._met += met

    def counts(self, now: float) -> tuple[int, int, int]:
        """(arrived, ended, met)"""
        since = now - self.window
        while self._arrivals and self._arrivals[0] <= since:
            self._arrivals.popleft()
        while self._ends and self._ends[0][0] <= since:
            self._met -= self._ends.popleft()[1]
        return len(self._arrivals), len(self._ends), self._met
