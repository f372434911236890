"""Tools for real: a pool of threads whose calls run scripts in the sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

from servetwin.core import BadInput, Batch
from servetwin.core.arithmetic import float_sum
from servetwin.core.serving.pool import Pool

from .sandbox import ALL, Limits, Result, run_script

Done = Callable[[Batch], None]


class ScriptTool:
    """A code executor: the call of request *i* runs script *i* of those in *folder* (by name; then it begins again).

    A script that fails fails nobody but itself: like an agent that shows what it has, the request goes on. How often
    that happened is in `told`.
    """

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.scripts = sorted(folder.glob("*.py")) if folder.is_dir() else []
        if not self.scripts:
            raise BadInput("there are no scripts", where=str(folder), right="a folder of Python files")
        self.results: list[Result] = []

    def call(self, request: int) -> Result:
        """Run the script of *request*."""
        script = self.scripts[request % len(self.scripts)]
        try:
            result = run_script(script, self.limits)
        except OSError as error:  # no room, say, for which a script may be to blame: it fails nobody but itself
            what = f"{script.name} could not be run: {error.strerror or error}"
            result = Result(what, 0.0, "", (), ())
        self.results.append(result)
        return result

    def seconds(self, rounds: int = 3) -> list[float]:
        """What each script takes with nothing else going on, in the median of so many *rounds*: for a simulation."""
        return [median(run_script(s, self.limits).seconds for _ in range(rounds)) for s in self.scripts]

    def told(self) -> dict[str, Any]:
        """How the calls ended."""
        reasons = Counter(r.reason for r in self.results if not r.ok)
        seconds = [r.seconds for r in self.results]
        enforced = set.intersection(*(set(r.enforced) for r in self.results)) if self.results else set()
        return {
            "calls": len(self.results),
            "failed": reasons.total(),
            "reasons": dict(reasons.most_common(10)),
            "mean_seconds": float_sum(seconds) / len(seconds) if seconds else None,
            "enforced": sorted(enforced),
            "not_enforced": sorted(set(ALL) - enforced),
        }


class Call:
    """One call under way; put into *heard* when it is over."""

    def __init__(self, batch: Batch, done: Done) -> None:
        self.batch = batch
        self.done = done

    def finish(self) -> None:
        self.done(self.batch)


class ToolLane:
    """Makes the calls of *pool*, each on a thread of its own."""

    def __init__(self, pool: Pool, tool: ScriptTool, heard: SimpleQueue[tuple[object, object]]) -> None:
        self.tool = tool
        self.heard = heard
        self.threads = ThreadPoolExecutor(pool.threads, thread_name_prefix=f"tool {pool.name}")

    def start(self, batch: Batch, done: Done) -> None:
        """Make the call of *batch*."""
        self.threads.submit(self._make, Call(batch, done))

    def _make(self, call: Call) -> None:
        try:
            self.tool.call(call.batch.tasks[0].id)
        except BaseException as error:  # the executor ends the run with it
            self.heard.put((call, error))
        else:
            self.heard.put((call, None))

    def close(self) -> None:
        self.threads.shutdown()
