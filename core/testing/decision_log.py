"""A log of what a policy decided in a scenario, and its replay: whether the policy still decides the same.

    log = record(MyPolicy, [Job(5), Job(2, at=0.05)], seconds=0.03)
    log.save("decisions.json")
    ...
    DecisionLog.load("decisions.json").replay(MyPolicy)  # raises AssertionError where it decides otherwise

The file is JSON: the scenario, the arguments of `play`, and of each decision the time, the ids that waited and ran,
and the answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..llm.policy import TokenPolicy
from .jobs import Job, Prompt, jobs, prompts
from .promises import Asked, Observed, readable
from .timeline import Play, books, chain

#: The version of the file.
FORMAT = 1


@dataclass(frozen=True)
class DecisionLog:
    """What a policy was asked and answered: *asked*, in the scenario *given*, served by *system* (arguments of
    `play`); *tokens*: by an engine of a language model."""

    given: Sequence[Job | Prompt]
    system: Mapping[str, Any]
    asked: Sequence[Asked]
    tokens: bool

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the log. Raises `BadInput` if its system has functions, which a file cannot hold."""
        told = {
            "format": FORMAT,
            "tokens": self.tokens,
            "system": dict(self.system),
            "scenario": [asdict(job) for job in self.given],
            "asked": self.asked,
        }
        try:
            text = json.dumps(told, indent=1)
        except TypeError as error:
            right = "numbers and tables as seconds"
            raise BadInput(f"this log cannot be written: {error}", where=os.fspath(file), right=right) from None
        Path(file).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> DecisionLog:
        """The log of that *file*. Raises `BadInput` if there is none."""
        where = os.fspath(file)
        try:
            told = json.loads(Path(file).read_text(encoding="utf-8"))
            if told["format"] != FORMAT:
                raise BadInput(f"the log has format {told['format']!r}", where=where, right=str(FORMAT))
            tokens = told["tokens"]
            kind: Any = Prompt if tokens else Job
            names = {field.name for field in fields(kind)}
            given = [kind(**{name: job[name] for name in names & job.keys()}) for job in told["scenario"]]
            system = {key: tuple(v) if key == "slo" and v is not None else v for key, v in told["system"].items()}
            return cls(given, system, [_asked(each) for each in told["asked"]], tokens)
        except OSError as error:
            raise BadInput(
                error.strerror or "cannot be read", where=where, right="a log by DecisionLog.save"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput("this is no log of decisions", where=where, right="a file by DecisionLog.save") from None

    def replay(self, policy: Callable[[], Any]) -> None:
        """Ask *policy* (a class, or what makes one) again. Raises `AssertionError`, with the schedule drawn as text,
        at the first decision that is another one; `InvariantBroken` if it decides what it must not."""
        __tracebackhide__ = True
        asked, play = _played(policy, self.given, self.system, self.tokens)
        for number, (before, now) in enumerate(zip([*self.asked, None], [*asked, None], strict=False)):
            if before == now:
                continue
            if before is None or now is None:
                what = f"{len(self.asked)} decisions are in the log, and {len(asked)} were asked for"
            else:
                what = f"the log has {_told(before)}\n   but now it is {_told(now)}"
            raise AssertionError(f"decision {number} is another one: {what}\n\n{play.played.drawn()}")


def record(
    policy: Callable[[], Any], scenario: Sequence[int | tuple[int, int] | Job | Prompt], **system: Any
) -> DecisionLog:
    """Serve *scenario* as `play` does, and give the log of what *policy* (a class, or what makes one) decided."""
    tokens = isinstance(policy(), TokenPolicy)
    given: Sequence[Job | Prompt] = prompts(scenario) if tokens else jobs(scenario)  # type: ignore[arg-type]
    return DecisionLog(given, system, _played(policy, given, system, tokens)[0], tokens)


def _played(
    policy: Callable[[], Any], given: Sequence[Job | Prompt], system: Mapping[str, Any], tokens: bool
) -> tuple[list[Asked], Play]:
    watched: list[Observed] = []

    def make() -> Observed:
        watched.append(Observed(policy()))
        return watched[-1]

    with books():
        run = Play(dict(system) if tokens else chain(**system), make, given, checked=True)
        while run.step():
            pass
        run.finish()
    return [asked for observed in watched for asked in observed.asked], run


def _asked(told: Sequence[Any]) -> Asked:
    """A decision as JSON has it, with tuples for its lists."""
    now, waiting, running, answer = told
    return now, tuple(waiting), tuple(running), tuple([_tuples(part) for part in answer])


def _tuples(part: Any) -> Any:
    return tuple([_tuples(each) for each in part]) if isinstance(part, list) else part


def _told(asked: Asked) -> str:
    now, waiting, running, answer = asked
    return f"at {now:g} s, of {[*running]} that run and {[*waiting]} that wait: {readable(answer)}"


__all__ = ["DecisionLog", "record"]
