"""Who takes part in each step of an engine.

A step's record names those that prefill and, where not all that can decode do, those that do. Otherwise all do that
can: whose prompt has been computed, until their last token or a preemption. That follows from the records, and the
number of those that decode, which stands in each step, says whether it was followed rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from typing import Any


class _State:
    """A request at an engine, as far as steps tell."""

    __slots__ = ("computed", "generated", "stays")

    def __init__(self) -> None:
        #: (queued, prompt, tokens had before, tokens generated at its end, ended before its time)
        self.stays: list[tuple[float, int, int, int, float | None]] = []
        self.generated = self.computed = 0


class StepMembers:
    """The members of each step of one engine. Give it all visits there, then the steps as they are recorded."""

    def __init__(self) -> None:
        self._states: dict[int, _State] = {}
        self._decoding: dict[int, None] = {}
        self._leaving: dict[int, float] = {}  # those that end before their last token, and when
        self._handed: list[tuple[float, int, int, float | None]] = []
        # (A heap: when, who, tokens, ended before its time.)
        self.steps = 0
        self.unsure = 0  #: steps of which it is not known for sure who decodes

    def visit(self, number: int, stay: Mapping[str, Any], ended: float | None, had: int = 0) -> None:
        """Request *number* was here; it did not finish and *ended* then, or did (None). It *had* so many tokens when
        it came, from visits that were lost."""
        state = self._states.setdefault(number, _State())
        state.stays.append((stay["queued"], stay["prompt"], had, stay.get("generated", 0), ended))
        state.stays.sort(key=lambda s: s[0], reverse=True)  # the next one last
        state.generated = state.stays[-1][2]
        told = stay.get("handover")
        if told is not None and told["from"] != stay["worker"] and told["handed"] is not None:
            first = stay["first_token"]
            tokens = int(first is not None and first <= told["prefilled"])
            heappush(self._handed, (told["handed"], number, tokens, ended))

    def members(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids of all that take part in the step of *record*: those that prefill, then those that decode."""
        self.steps += 1
        self._join(record["start"], record["decode"])
        for number in record.get("preempted", ()):
            self._decoding.pop(number, None)
        for number in [n for n, ended in self._leaving.items() if ended <= record["start"]]:
            self._leave(number)
        self._join(record["start"], record["decode"], just=True)
        prefill = {piece[0]: None for piece in record["prefill"]}
        chosen = [n for n in record["requests"] if n not in prefill]
        decode = chosen or (list(self._decoding) if record["decode"] else [])
        if len(decode) != record["decode"]:
            self.unsure += 1
        found = (*prefill, *decode)
        self._generated(decode, len(record.get("ends") or (0,)))
        for number, tokens, before in record["prefill"]:
            self._prefilled(number, before + tokens, record["start"])
        return found

    def _join(self, start: float, decode: int, just: bool = False) -> None:
        """Those whose KV had come when a step of so many that decode began, also *just* then, if it has more."""
        while self._handed and self._handed[0][0] <= start:
            if self._handed[0][0] == start and not (just and len(self._decoding) < decode):
                break
            _, number, tokens, ended = heappop(self._handed)
            self._states[number].generated = tokens
            self._decoding[number] = None
            if ended is not None:
                self._leaving[number] = ended

    def _generated(self, decode: Iterable[int], count: int) -> None:
        for number in decode:
            state = self._states.get(number)
            if state is None or not state.stays:
                continue
            state.generated += count
            self._over(number, state)

    def _prefilled(self, number: int, computed: int, start: float) -> None:
        state = self._states.get(number)
        if state is None or not state.stays:
            return
        while len(state.stays) > 1 and state.stays[-1][-1] is not None and state.stays[-1][-1] <= start:
            self._leave(number)  # it was lost before it decoded
        _, prompt, _, _, ended = state.stays[-1]
        state.computed = computed
        pending = prompt + state.generated - computed
        if pending > 1 or (pending == 1 and computed < prompt):
            self._decoding.pop(number, None)
            return
        if pending <= 0:
            state.generated += 1
        self._decoding[number] = None
        if ended is not None:
            self._leaving[number] = ended
        self._over(number, state)

    def _over(self, number: int, state: _State) -> None:
        _, _, _, whole, ended = state.stays[-1]
        if ended is None and state.generated >= whole:
            self._leave(number)

    def _leave(self, number: int) -> None:
        self._leaving.pop(number, None)
        self._decoding.pop(number, None)
        state = self._states[number]
        if state.stays:
            state.stays.pop()
        state.generated, state.computed = state.stays[-1][2] if state.stays else 0, 0
