"""Records of an engine whose requests are numbers: columns, made into the lines of a run's folder many at a time.

What a record holds is what `servetwin.core.records` makes of one request and of one step; what differs between those
of a block stands in it as columns.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from servetwin.core import Outcome, RunFolder
from servetwin.core.json_lines import Column, lines_of, texts_of
from servetwin.core.llm import TokenTask
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.metric_blocks import TokenBlock
from servetwin.core.llm.serving.engine import TokenEngine
from servetwin.core.records import batch_record, request_record

#: So many steps, or runs of decode steps, are written at once, or somewhat more.
AT_ONCE = 512

#: A step, or several on end in which all decode: begin and end (seconds), how many decode, their context, the blocks
#: that are free when it is launched; the ends of several (else None); the number of the first request that prefills,
#: the prompts of all that do, and how far the last of them is computed then, if in part.
Steps = tuple[float, float, int, int, int, "array[float] | None", int, Sequence[int], int]

_OUTCOMES = {met: f'"{(Outcome.MET if met else Outcome.LATE).value}"'.encode("ascii") for met in (True, False)}


class ColumnRecords:
    """Writes what *engine* does into *folder*; *steps* are those that are not written yet."""

    def __init__(self, engine: TokenEngine, folder: RunFolder) -> None:
        self.engine, self.folder = engine, folder
        self.number = 0  # of the first of *steps*
        self.part = 0  # tokens of the prompt that the step before it left in part
        self.steps: list[Steps] = []

    def open(self, flying: int) -> None:
        """The engine is left to itself: no prompt is begun, and so many steps are in flight."""
        self.number, self.part = self.engine.loop.batches + 1 - flying, 0

    def write(self, most: int = 0) -> None:
        """Write the steps that wait for it, if they are more than *most*."""
        if len(self.steps) <= most:
            return
        steps = self.steps[:]
        del self.steps[: len(steps)]
        numbers = texts_of(range(self.number, self.number + len(steps)))
        self.number += len(steps)
        single, several = (
            [(number, *step) for number, step in zip(numbers, steps, strict=True) if (step[5] is None) is alone]
            for alone in (True, False)
        )
        lines = iter(self._single(single)), iter(self._several(several))
        self.folder.batches_together([next(lines[step[5] is not None]) for step in steps])

    def _single(self, rows: Sequence[Any]) -> list[bytes]:
        """The lines of single steps, each given as (number, what `Steps` has)."""
        prefills, requests, before = [], [], self.part
        for *_, first, prompts, part in rows:
            if len(prompts) == 1:
                prefills.append(b"[[%d, %d, %d]]" % (first, (part or prompts[0]) - before, before))
                requests.append(b"[%d]" % first)
            elif prompts:
                chunks = [[number, prompt, 0] for number, prompt in enumerate(prompts, first)]
                if part:
                    chunks[-1][1] = part
                chunks[0][1:] = chunks[0][1] - before, before
                # Lists of whole numbers are the same in JSON as in Python.
                prefills.append(str(chunks).encode("ascii"))
                requests.append(str([chunk[0] for chunk in chunks]).encode("ascii"))
            else:
                prefills.append(b"[]")
                requests.append(b"[]")
                continue
            before = part
        self.part = before
        told = {"requests": Column(requests), "prefill": Column(prefills)}
        return self._lines(rows, TokenBatch(0, self.engine.worker.place, 0, 0, free=0), told)

    def _several(self, rows: Sequence[Any]) -> list[bytes]:
        """The lines of decode steps on end, given likewise."""
        like = TokenBatch(0, self.engine.worker.place, 0, 0, free=0)
        like.count, like.ends = 2, []
        return self._lines(rows, like, {"ends": _stretches([row[6] for row in rows])})

    def _lines(self, rows: Sequence[Any], like: TokenBatch, told: dict[str, Column]) -> list[bytes]:
        """Those of steps given likewise, which have in common what is told of *like*."""
        if not rows:
            return []
        number, *columns = zip(*rows, strict=True)
        names = ("start", "end", "decode", "context", "free")
        told |= {name: Column(texts_of(values)) for name, values in zip(names, columns, strict=False)}
        return lines_of(batch_record(like) | told | {"id": Column(number)})

    def ended(
        self,
        like: Mapping[str, TokenTask],
        block: TokenBlock,
        met: np.ndarray,
        columns: Mapping[str, np.ndarray],
    ) -> None:
        """Those of *block* have ended, some of which *met* their SLO. *columns* holds *id*, *deadline*, *admitted*,
        *started* and *limit* of each; *like* has one of each class, of which is told what these have in common."""
        made = np.empty(len(block), dtype=object)
        for name, places, part in block.by_class():
            own = {of: column[places] for of, column in columns.items()}
            made[places] = self._requests(like[name], part, met[places], own)
        self.folder.ended_together(made.tolist())

    def _requests(
        self, like: TokenTask, block: TokenBlock, met: np.ndarray, columns: Mapping[str, np.ndarray]
    ) -> list[bytes]:
        """The lines of those of one class."""
        folder, last = self.folder, block.last
        record = request_record(like.request, tokens=False)
        deadline = {"deadline": columns["deadline"]} if record["deadline"] is not None else {}
        outcome = Column([*map(_OUTCOMES.__getitem__, met.tolist())])
        record |= {"id": columns["id"], "arrival": block.sent, **deadline, "outcome": outcome, "finished": last}
        (stay,) = record["stages"]
        stay |= {"queued": block.sent, "admitted": columns["admitted"], "started": columns["started"]}
        stay |= {"finished": last, "arrival": block.arrival, "prompt": block.prompts, "limit": columns["limit"]}
        stay |= {"generated": block.counts, "first_token": block.first, "last_token": last}
        if folder.writes_tokens:
            ends, begins, more = block.ends.tolist(), block.begins.tolist(), (block.counts - 1).tolist()
            firsts, rows = block.first.tolist(), zip(begins, more, strict=True)
            stay["tokens"] = _stretches(
                [[first, *ends[b : b + n]] for first, (b, n) in zip(firsts, rows, strict=True)]
            )
        promise: Any = folder.promises.get(stay["stage"])
        if promise is not None:
            stay |= promise.for_class(like.request.class_name).told_of_block(block)
        return lines_of(record)


def promises_alone(folder: RunFolder, engine: TokenEngine) -> bool:
    """Whether *folder* tells of requests at *engine* just what they are held to there."""
    promise: Any = folder.promises.get(engine.stage.name)
    return promise is engine.view.slo


def _stretches(rows: Sequence[Sequence[float]]) -> Column:
    """A list of numbers in each record."""
    made, begin, texts = [], 0, texts_of([number for row in rows for number in row])
    for row in rows:
        made.append(b"[%b]" % b", ".join(texts[begin : begin + len(row)]))
        begin += len(row)
    return Column(made)
