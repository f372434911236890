"""Records of a run: the same four files from a simulated and from a measured run.

``meta.json``
    the resolved experiment, versions, device, seed and profile digests
``requests.jsonl``
    one line per request, in the order in which they ended: raw time stamps, nothing derived; *class*, *tenant*,
    *priority* and *weight* where they are not the usual ones ("", "", 0, 1.0); *session* and *turn*, its place there
    from 0 on, where there are sessions; *shape*, where requests have one (of diffusion models: *height*, *width*,
    *frames*, *guidance*, *images*); *ended*, when it was dropped or failed; at a stage its *deadline* there,
    where it has one of its own; *steps_asked*, *steps_run* and *steps_skipped* where its policy may leave steps out;
    at an LLM stage also *arrival* (as the engine saw it), *prompt*, *limit*,
    *predicted* (where there is a predictor) and *generated* tokens, *first_token*, *last_token*, *preemptions*,
    *cached* and *cached_again* (tokens found in a prefix cache), *handover* (*from* which worker its KV came, when it
    was *prefilled*, *sent* and *handed*), *due* or *limits* (what its tokens are promised),
    and the times of all *tokens* if they were kept; *attempts* are visits that were lost with their workers: *stage*,
    *worker*, when it was *queued*, *admitted*, *started* and *lost*, when it was in a worker's queue *again* (None:
    it never was), and the *iterations* or *generated* tokens that it had got
``batches.jsonl``
    one line per batch: start, end, worker, modules, request ids, the ends of its iterations if it ran several, and
    those whose network stood still (*reused*); *lost* if it was cut off at its end by a fault: *ends* then has those
    iterations that were over, if any were;
    for a step of an LLM engine the ids are of the requests that prefill or were chosen one by one, *prefill* holds
    [id, tokens, tokens before] of each chunk, *decode* how many requests decode, *context* the sum of their computed
    tokens, *preempted* who lost the memory for it, and *free* the KV blocks that were free when it was launched
``summary.json``
    written last; a folder without it is of a run that did not finish
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from .files import make, remove_empty
from .json_lines import JsonLines
from .metrics import Summary
from .policy import Batch
from .request import Place, Request, Task

NONE: Mapping[str, Any] = MappingProxyType({})
NO_ATTEMPTS: Mapping[int, Sequence[Mapping[str, Any]]] = MappingProxyType({})


class Promise(Protocol):
    """What the tokens of an LLM stage are held to (`servetwin.core.llm.slo.TokenDeadlines`)."""

    def told(self, task: Any) -> dict[str, Any]:
        """What a record says of it for *task*."""


class Recorder:
    """Hears what happens in a run and keeps a `Summary` of it. Subclasses keep more."""

    #: Whether the end of every iteration is wanted, also where a simulator takes several as one event.
    wants_batches = False
    #: Whether `TokenTask.times` is wanted: when each token of an LLM came out.
    wants_token_times = False

    def __init__(self) -> None:
        self.summary = Summary()
        #: Of live requests, by id, the visits that were lost with their workers (`servetwin.core.faults`).
        self.attempts: Mapping[int, Sequence[Mapping[str, Any]]] = NO_ATTEMPTS

    def arrived(self, request: Request) -> None:
        self.summary.arrived(request)

    def ended(self, request: Request, now: float) -> None:
        self.summary.ended(request, now)

    def batch(self, batch: Batch) -> None:
        self.summary.batch(batch)

    def failed(self, place: Place, now: float) -> None:
        """The worker at *place* has failed: nothing is there any more. Its batches that were cut off have been heard
        of."""

    def batch_failed(self, batch: Batch, now: float) -> None:
        """*batch*, which had not begun to compute, has failed alone; its worker goes on."""

    def again(self, lost: Task, task: Task) -> None:
        """*task* takes up the visit *lost*, which was lost with its worker."""

    def of_arrivals(self) -> Callable[[Request], None]:
        """What to call with each request that arrives: `arrived`, or the summary's where that only goes on to it."""
        return self.summary.arrived if type(self).arrived is Recorder.arrived else self.arrived

    def of_ends(self) -> Callable[[Request, float], None]:
        """What to call with each request that has ended, and when: `ended`, or the summary's where that only goes on
        to it."""
        return self.summary.ended if type(self).ended is Recorder.ended else self.ended

    def of_batches(self) -> Callable[[Batch], None]:
        """What to call with each batch that has ended: `batch`, or the summary's where that only goes on to it."""
        return self.summary.batch if type(self).batch is Recorder.batch else self.batch


def _stay(task: Task, tokens: bool, promises: Mapping[str, Promise]) -> dict[str, Any]:
    request = task.request
    record: dict[str, Any] = {
        "stage": task.stage.name,
        "worker": task.worker.name if task.worker else None,
        "queued": task.queued,
        "admitted": task.admitted,
        "started": task.started,
        "finished": task.finished,
    }
    if task.deadline != request.deadline and task.deadline < float("inf"):
        record["deadline"] = task.deadline
    record.update(task.details(tokens))
    promise = promises.get(record["stage"]) if promises else None
    if promise is not None:
        record.update(promise.told(task))
    return record


def request_record(
    request: Request,
    *,
    tokens: bool = True,
    now: float | None = None,
    promises: Mapping[str, Promise] = NONE,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """One line of ``requests.jsonl``; with *tokens* it has the time of each token of an LLM, where that was kept.

    The request has ended *now* (None: that is not told of those that did not finish). *promises* has what the tokens
    of LLM stages are held to, by the stage's name. *attempts* are visits that were lost with their workers.
    """
    terms = {
        "class": (request.class_name, ""),
        "tenant": (request.tenant, ""),
        "priority": (request.priority, 0),
        "weight": (request.weight, 1.0),
    }
    session = request.session
    return {
        "id": request.id,
        "arrival": request.arrival,
        "deadline": request.deadline if request.deadline < float("inf") else None,
        "work": dict(request.work),
        **{name: value for name, (value, usual) in terms.items() if value != usual},
        **({"session": session[0], "turn": session[1]} if session is not None else {}),
        **({"shape": request.shape._asdict()} if request.shape is not None else {}),
        "outcome": request.outcome.value if request.outcome else None,
        "reason": request.reason,
        "finished": request.finished,
        **({"ended": now} if now is not None and request.finished is None else {}),
        "stages": [_stay(t, tokens, promises) for t in request.tasks],
        **({"attempts": [*attempts]} if attempts else {}),
    }


def sent_at(record: Mapping[str, Any], stay: Mapping[str, Any]) -> float:
    """Since when somebody waits for the tokens of *stay*, one of the stages of a request's *record*, in seconds: as
    `servetwin.core.llm.slo.sent_at` has it of a task, so that times to the first token are those of the summary. The
    record's own *arrival* of a stay is when the engine saw it, from which its deadlines count."""
    sent: float = record["arrival"] if stay is record["stages"][0] else stay["queued"]
    return sent


def batch_record(batch: Batch) -> dict[str, Any]:
    """One line of ``batches.jsonl``."""
    record: dict[str, Any] = {
        "id": batch.id,
        "worker": batch.worker.name,
        "modules": list(batch.worker.stage.modules),
        "start": batch.start,
        "end": batch.end,
        "iterations": batch.iterations,
        "requests": [t.id for t in batch.tasks],
    }
    if batch.thread >= 0:
        record["thread"] = batch.thread
    if batch.lost:
        record["lost"] = True
    if batch.count > 1 or (batch.lost and batch.ends):
        record["ends"] = batch.ends
    record.update(batch.details())
    return record


class RunFolder(Recorder):
    """Streams a run's records into *folder*, which is made; raises `FileExistsError` if it holds a run already.

    What ended is in the files when the run is over, however it ends; a process that is killed outright may lose the
    last lines (`servetwin.core.json_lines`), some hundred where requests go as numbers (`servetwin.sim.llm.columns`).
    The summary is written last, whole or not at all, so a folder without one is of no whole run. A run that fails
    before anything was recorded leaves nothing.
    """

    wants_batches = True
    #: Whether the time of each token of an LLM is written; they also follow from the batches.
    writes_tokens = False

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        super().__init__()
        self.folder = folder
        self.promises: Mapping[str, Promise] = NONE  # of LLM stages that have one, by name
        self._made = make(folder)
        self._files: list[Path] = []
        file = (folder / "meta.json").open("x")  # of two runs into one folder, one is refused
        self._files.append(folder / "meta.json")
        try:
            with file:
                file.write(json.dumps(meta, indent=2) + "\n")
            self._requests, self._batches = self._lines("requests.jsonl"), self._lines("batches.jsonl")
        except OSError:
            self._remove()
            raise

    def _lines(self, name: str) -> JsonLines:
        self._files.append(self.folder / name)
        return JsonLines(self.folder / name)

    def add_file(self, name: str, text: str) -> None:
        """Write a file beside the records, that says what the run is; raises `OSError`, and then leaves nothing."""
        self._files.append(self.folder / name)
        try:
            self._files[-1].write_text(text, encoding="utf-8")
        except OSError:
            self._requests.close()
            self._batches.close()
            self._remove()
            raise

    def _remove(self) -> None:
        """Leave nothing of what was written."""
        for path in self._files:
            path.unlink(missing_ok=True)
        remove_empty(self._made)

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        lost, tokens = self.attempts.get(request.id, ()), self.writes_tokens
        self._requests.add(request_record(request, tokens=tokens, now=now, promises=self.promises, attempts=lost))

    def batch(self, batch: Batch) -> None:
        super().batch(batch)
        self._batches.add(batch_record(batch))

    def ended_together(self, lines: Sequence[bytes]) -> None:
        """Write requests that the summary has, given as lines (`servetwin.core.json_lines.lines_of`)."""
        self._requests.add_lines(lines)

    def batches_together(self, lines: Sequence[bytes]) -> None:
        """Likewise of batches."""
        self._batches.add_lines(lines)

    def close(self, *, complete: bool = True) -> None:
        """Close the files and, if the run came to its end, write the summary; if not, and nothing was recorded, leave
        nothing."""
        try:
            self._requests.close()
        finally:
            self._batches.close()
        if complete:
            beside = self.folder / "summary.json.new"
            try:
                beside.write_text(json.dumps(self.summary.as_dict(), indent=2) + "\n", encoding="utf-8")
                beside.replace(self.folder / "summary.json")
            except OSError:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
                raise
        elif not any((self.folder / name).stat().st_size for name in ("requests.jsonl", "batches.jsonl")):
            self._remove()
