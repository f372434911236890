"""Seconds of an engine step of a language model: prefill, decode, and both at once.

>>> from servetwin.profiles import load
>>> opt = load("a6000/opt-13b-tp1").tokens("measured")
>>> opt.prefill(512) == opt.prefill(490)  # a staircase of 32 tokens
True
>>> round(opt.decode(8, 2000), 6)
0.045978
>>> opt.straight(8, 2000)[1]  # seconds that each further token of context adds
1.0530766871910861e-06
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from servetwin.core.arithmetic import float_sum

from ..tables.cost import Cost
from ..tables.costs import STEP_BETWEEN
from ..tables.latency_table import OutOfRange, interpolate
from .decode_surface import Pieces, Surface, rule
from .schema import DecodeLine, DecodeSurface, PrefillData, TokenModel

#: What to do where a step is beyond what a profile knows.
BEYOND = "a profile that goes further, a smaller limit of the worker or its engine, or time.hold: true"


class TokenTable:
    """How long the steps of an engine take. Asked once per step: everything is looked up in lists.

    *largest_prefill* (tokens in a step) and *largest_batch* (sequences) bound what may be asked; beyond, `OutOfRange`
    is raised or, with *hold*, the value at the end given. *between_cost* is the time that the engine takes between
    two steps, where it is not part of them. Instances are not to be changed.
    """

    def __init__(
        self, model: TokenModel, *, name: str = "tokens", hold: bool = False, between_cost: Cost | None = None
    ) -> None:
        self.model, self.name, self.hold, self.between_cost = model, name, hold, between_cost
        data = model.prefill
        self._rows = [_dense(data, i) for i in range(len(data.prompts))]
        self._row = self._rows[0]
        self._first = 1 if data.between == "up" or hold else data.tokens[0]
        self._last = data.tokens[-1]
        self._shares = [1.0 / n for n in reversed(data.prompts)]  # increasing, for squares / tokens^2
        self._beyond = data.beyond
        self.largest_prefill = data.beyond.until if data.beyond else self._last
        c2 = data.beyond.c2 if data.beyond else 0.0
        self.per_pair = max(0.0, 2.0 * c2) if data.per_pair is None else data.per_pair
        self._over_context: Callable[[float, float], float] | None = data.over_context
        self._per_square = data.per_square
        decode = model.line or model.surface
        assert decode is not None
        self._decode = decode
        self.largest_batch = decode.until_batch if isinstance(decode, DecodeLine) else decode.batch[-1]
        self._pieces: dict[int, Pieces] = {}
        self._highest: dict[int, Pieces] = {}
        if isinstance(decode, DecodeSurface):
            self.surface = rule(decode.per_sequence, decode.seconds, decode.batch)
        self._one_pass = model.mixed.rule == "one_pass"
        self._factor = model.mixed.factor
        self._attention = self._factor if model.mixed.attention is None else model.mixed.attention
        self._per_sequence = model.mixed.per_sequence
        self._beside: Callable[[float, float, float, float], float] | None = model.mixed.beside
        self._decoding = model.mixed.decoding
        self._terms: dict[int, tuple[float, float]] = {}  # of those who decode, by the length of chunks beside them
        self._between = _between(between_cost, max(self.largest_batch, 1), name, hold)

    # -- prefill ---------------------------------------------------------------------------------------------

    def prefill(self, tokens: int, squares: float | None = None, context: float = 0.0) -> float:
        """Seconds of a step that computes *tokens* prompt tokens and nothing else.

        *squares* is the sum of the squared lengths of the prompts (or chunks); None: it is one. *context* is the sum
        over chunks of length times the tokens that stood before: 0 for whole prompts.
        """
        if self._first <= tokens <= self._last:
            if squares is None:
                seconds = self._row[tokens]
            elif self._per_square is not None:
                seconds = self._row[tokens] - self._per_square * (tokens * tokens - squares)
            elif len(self._rows) == 1:
                seconds = self._row[tokens]
            else:
                seconds = self._by_prompts(tokens, squares)
        else:
            seconds = self._outside(tokens, squares)
        if not context:
            return seconds
        if self._over_context is not None:
            return seconds + self._over_context(tokens, context / tokens)
        return seconds + self.per_pair * context

    def _by_prompts(self, tokens: int, squares: float) -> float:
        """Between rows along 1 / prompts, of which squares / tokens^2 is the measure: attention goes with it."""
        column = [row[tokens] for row in reversed(self._rows)]
        return interpolate(squares / (tokens * tokens), self._shares, column)

    def _outside(self, tokens: int, squares: float | None) -> float:
        if self._beyond is not None and self._last < tokens <= self.largest_prefill:
            return self._beyond(tokens, tokens * tokens if squares is None else squares)
        if self.hold and tokens > 0:
            largest = self.largest_prefill
            return self.prefill(largest, None if squares is None else squares * (largest / tokens) ** 2)
        raise OutOfRange(
            f"no value for a prefill of {tokens} tokens",
            where=self.name,
            right=f"{self._first} to {self.largest_prefill} as measured, {BEYOND}",
        )

    # -- decode ----------------------------------------------------------------------------------------------

    def decode(self, batch: int, context: float) -> float:
        """Seconds of a step in which *batch* sequences get a token each; *context* is the tokens whose keys and
        values stand before it, in all."""
        pieces = self._pieces.get(batch) or self.pieces(batch)
        if context > pieces.last:
            context = self._too_long(batch, context, pieces.last)
        starts = pieces.starts
        i = bisect_right(starts, context) - 1 if len(starts) > 1 else 0
        return pieces.constants[i] + pieces.slopes[i] * context

    def straight(self, batch: int, context: float) -> tuple[float, float, float]:
        """(constant, slope, until): a decode step takes ``constant + slope * x`` for all x from *context* up to but
        without *until*. So the time of many steps of one batch is a sum in closed form."""
        pieces = self.pieces(batch)
        if context > pieces.last:
            held = self.decode(batch, context)
            return held, 0.0, math.inf
        i = bisect_right(pieces.starts, context) - 1
        until = pieces.starts[i + 1] if i + 1 < len(pieces.starts) else math.nextafter(pieces.last, math.inf)
        return pieces.constants[i], pieces.slopes[i], until

    def pieces(self, batch: int) -> Pieces:
        """The straight pieces of which decode steps of *batch* sequences consist."""
        found = self._pieces.get(batch)
        if found is None:
            asked = batch
            if not 1 <= batch <= self.largest_batch or batch < self._smallest:
                if not self.hold or batch < 1:
                    raise OutOfRange(
                        f"no value for decoding a batch of {batch}",
                        where=self.name,
                        right=f"{self._smallest} to {self.largest_batch} as measured, {BEYOND}",
                    )
                batch = min(max(batch, self._smallest), self.largest_batch)
            decode = self._decode
            found = (
                _line(decode, batch)
                if isinstance(decode, DecodeLine)
                else _surface(decode, self.surface, batch, self._highest)
            )
            self._pieces[asked] = found
        return found

    @property
    def _smallest(self) -> int:
        decode = self._decode
        return 1 if isinstance(decode, DecodeLine) or decode.between == "up" else decode.batch[0]

    def _too_long(self, batch: int, context: float, last: float) -> float:
        if self.hold:
            return last
        raise OutOfRange(
            f"no value for decoding a batch of {batch} with {context:g} tokens of context",
            where=self.name,
            right=f"{last:g} at most, {BEYOND}",
        )

    # -- both ------------------------------------------------------------------------------------------------

    def mixed(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        """Seconds of a step that computes *tokens* of prompts and gives *batch* sequences a token each."""
        decode = self.decode(batch, decode_context)
        if not self._one_pass:
            return self._factor * (self.prefill(tokens, squares, context) + decode)
        whole = self.prefill(tokens + batch, None if squares is None else squares + batch, context)
        if self._decoding is not None:
            length = tokens if squares is None else int(squares / tokens)
            each, per_context = self._terms.get(length) or self._decoding_terms(length)
            per_context += self._decoding.per_both * batch
            return max(whole + each * batch + per_context * decode_context, decode)
        if self._beside is not None:
            return max(whole + self._beside(tokens, context / tokens, batch, decode_context / batch), decode)
        beside = self._attention * (decode - self.decode(batch, 0)) if self._attention else 0.0
        return max(self._factor * whole + beside + self._per_sequence * batch, decode)

    def _decoding_terms(self, length: int) -> tuple[float, float]:
        """Seconds per sequence, and per token of context, of those who decode beside chunks of such a length."""
        data = self._decoding
        assert data is not None
        knots = [math.log(n) for n in data.tokens]
        at = math.log(max(length, 1))
        found = interpolate(at, knots, data.per_sequence), interpolate(at, knots, data.per_context)
        self._terms[length] = found
        return found

    def step(self, tokens: int, squares: float | None, context: float, batch: int, decode_context: float) -> float:
        """Seconds of a step, whichever it is; 0 if it does nothing."""
        if not tokens:
            return self.decode(batch, decode_context) if batch else 0.0
        if not batch:
            return self.prefill(tokens, squares, context)
        return self.mixed(tokens, squares, context, batch, decode_context)

    def between(self, sequences: int) -> float:
        """Seconds between the end of a step and the start of the next, by the sequences of the step that ended."""
        return self._between(sequences)

    # -- alone -----------------------------------------------------------------------------------------------

    def solo_decode(self) -> tuple[float, float]:
        """(d0, d1): alone, the k-th decode step after a prompt of n tokens takes d0 + d1 (n + k), offsets apart.

        Its context is then n + k - 1 tokens, and the one being computed. Of a surface, the least squares line through
        the row of the smallest batch.
        """
        decode = self._decode
        if isinstance(decode, DecodeLine):
            return decode.d0 + decode.per_sequence - decode.d1, decode.d1
        xs = [m * decode.batch[0] for m in decode.per_sequence[: len(decode.seconds[0])]]
        constant, slope = fit(xs, decode.seconds[0])
        return constant - slope, slope

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.model, self.name, self.hold, self.between_cost))

    def __repr__(self) -> str:
        return f"<TokenTable {self.name}>"


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Constant and slope of the least squares line through points; level through one."""
    x, y = float_sum(xs) / len(xs), float_sum(ys) / len(ys)
    spread = float_sum((a - x) ** 2 for a in xs)
    slope = float_sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 0.0
    return y - slope * x, slope


def _dense(data: PrefillData, index: int) -> list[float]:
    """Seconds by tokens from 0 (nan) to the end of the table, for row *index*; gaps take the row before's values."""
    row = data.seconds[index]
    begin = next(i for i, value in enumerate(row) if value is not None)
    values = [value for value in row if value is not None]
    knots = data.tokens[begin:]
    largest = data.tokens[-1]
    if data.between == "up":
        dense = [math.nan, *(values[bisect_left(knots, n)] for n in range(1, largest + 1))]
    else:
        dense = [math.nan, *(interpolate(n, knots, values) for n in range(1, largest + 1))]
    if begin:
        fewer = _dense(data, index - 1)
        below = data.tokens[begin - 1] if data.between == "up" else knots[0] - 1
        dense[1 : below + 1] = fewer[1 : below + 1]
    return dense


def _line(data: DecodeLine, batch: int) -> Pieces:
    constant = data.d0 + data.per_sequence * batch
    starts, constants = [0.0], [constant]
    for offset in data.offsets:
        start = (offset.above - constant) / data.d1
        if start > 0.0:
            starts.append(start)
            constants.append(constant + offset.add)
        else:
            constants[0] = constant + offset.add
    return Pieces(tuple(starts), tuple(constants), (data.d1,) * len(starts), float(data.until_context))


def _surface(data: DecodeSurface, ruled: Surface, batch: int, highest: dict[int, Pieces]) -> Pieces:
    """The pieces of *batch*; *highest* keeps, by place of a measured size, the largest of all up to it."""
    at = bisect_left(data.batch, batch)
    if data.batch[at] == batch or data.between == "up":
        found = _row(data, ruled, data.batch[at], [(1.0, at)])
    else:
        low, high = data.batch[at - 1], data.batch[at]
        share = (batch - low) / (high - low)
        found = _row(data, ruled, batch, [(1.0 - share, at - 1), (share, at)])
    if not at:
        return found
    return found.above(_highest(data, ruled, at - 1, highest).scaled(data.batch[at - 1] / batch, 1.0 - ruled.noise))


def _highest(data: DecodeSurface, ruled: Surface, at: int, known: dict[int, Pieces]) -> Pieces:
    """At as many tokens each, the largest that a batch of the measured size at this place or a smaller one takes."""
    if at not in known:
        found = _row(data, ruled, data.batch[at], [(1.0, at)])
        if at:
            share = data.batch[at - 1] / data.batch[at]
            found = found.above(_highest(data, ruled, at - 1, known).scaled(share, 1.0))
        known[at] = found
    return known[at]


def _row(data: DecodeSurface, ruled: Surface, size: int, rows: Sequence[tuple[float, int]]) -> Pieces:
    """The pieces of a batch of *size*, made of *rows* by their (shares, places)."""
    values = [float_sum(share * ruled.seconds[i][k] for share, i in rows) for k in range(len(ruled.knots))]
    xs = [float(m * size) for m in ruled.knots]
    slopes = [(values[i + 1] - values[i]) / (xs[i + 1] - xs[i]) for i in range(len(xs) - 1)]
    slopes.append(float_sum(share * ruled.slopes[i] for share, i in rows) / size)
    constants = [value - slope * x for value, slope, x in zip(values, slopes, xs, strict=True)]
    shortest = min(len(data.seconds[i]) for _, i in rows)
    last = data.until_context or data.per_sequence[shortest - 1] * size
    return Pieces((0.0, *xs[1:]), tuple(constants), tuple(slopes), float(last))


def _between(cost: Cost | None, largest: int, name: str, hold: bool) -> Callable[[int], float]:
    if cost is None:
        return _nothing
    values = cost.upto(largest, name=f"{name}: {STEP_BETWEEN()}", hold=hold)
    return lambda sequences: values[sequences] if sequences < len(values) else values[-1]


def _rebuild(model: TokenModel, name: str, hold: bool, between_cost: Cost | None) -> TokenTable:
    return TokenTable(model, name=name, hold=hold, between_cost=between_cost)


def _nothing(sequences: int) -> float:
    return 0.0
