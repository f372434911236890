"""Whether a profile can be trusted: its verdict, when it is taken and whenever it is loaded.

A profile is clean if every point has enough samples, no value had to be left out, nothing gets faster as batches
grow by more than the noise, and neither a few slow samples nor a long tail move its means. What is not clean is used
all the same, by the rules that say how (`servetwin.profiles.llm.decode_surface`), but a run says so. Beside that
stands what a profile may be asked though nobody measured it.

>>> from servetwin.profiles import load
>>> of(load("h100-quiet/palette-256-graphs").data)
()
>>> of(load("h100-long/opt-13b-tp1-3").data)[3].text
'decode (measured): 1 of 98 values disturbed and left out: batch 48 at 40 tokens'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from servetwin.core import ServeTwinError

from .llm.decode_surface import rule
from .llm.schema import Blind, DecodeRegion, DecodeSurface, PrefillData
from .schema import ProfileFile, Table

#: What `measured_when` says of a profile that is made up.
NEVER = "never"
#: Samples that a point has at least.
SAMPLES = 5
#: The share by which seconds may fall as the batch, or the tokens, grow; how many times the median a mean, and the
#: 99th percentile, may be.
FALL, MEAN, TAIL = 0.05, 1.05, 2.0
#: How many times what the last measured prompt takes one more token may take, by the form beyond the table.
JUMP = 1.25
#: So many scaled median absolute deviations above the median a sample is disturbed, and so much above it at least.
DEVIATIONS, ABOVE = 6.0, 0.1


@dataclass(frozen=True)
class Finding:
    """What is not clean: the *kind* ("samples", "disturbed", "falls", "jump", "mean", "tail", "blind", "regions" or
    "kept"),
    and a *text* that says where."""

    kind: str
    text: str


def of(data: ProfileFile) -> tuple[Finding, ...]:
    """All that is not clean in a profile, whatever its own file says of it."""
    found: list[Finding] = []
    for name, module in data.modules.items():
        for kind, table in module.tables.items():
            if kind in ("scheduler", "measured"):
                found += _table(f"{name} ({kind})", table)
    if data.tokens is not None:
        # The same model under two kinds counts once, as the later one: "measured".
        models = {model: of for of, model in data.tokens.kinds.items()}
        found += _blind(data.tokens.blind)
        found += [Finding("regions", _region(one)) for one in data.tokens.decode_regions if abs(one.bias) > REGION]
        for model, word in models.items():
            found += _prefill(f"prefill ({word})", model.prefill)
            if model.surface is not None:
                found += _surface(f"decode ({word})", model.surface)
    if data.verdict is not None and data.verdict != tuple(finding.text for finding in found):
        found.append(Finding("kept", "the verdict in the file is of other numbers, or by other rules, than these"))
    return tuple(found)


def lines(data: ProfileFile) -> tuple[str, ...]:
    """The verdict as it is printed and kept in files; none if all is clean."""
    return tuple(finding.text for finding in of(data))


def short(data: ProfileFile) -> str | None:
    """What a run says of a profile that is not clean, in one line; None if it is."""
    kinds = {"samples": "points with few samples", "disturbed": "disturbed samples", "falls": "times that fall"}
    kinds |= {"jump": "prompts beyond the table that do not go on from it"}
    kinds |= {"blind": "steps of traffic off by more than the limits"}
    kinds |= {"regions": "decode steps off by more than the limit somewhere"}
    kinds |= {"mean": "means above medians", "tail": "long tails", "kept": "a verdict of other numbers"}
    found = dict.fromkeys(kinds[finding.kind] for finding in of(data))
    return ", ".join(found) or None


#: How far steps of a kind may be off that the profile was not made of, in the median and at the 95th percentile.
BLIND_MEDIAN, BLIND_P95 = 0.015, 0.05
#: How far the table of decode steps may be off in the median somewhere, with batches of about one size and length.
REGION = 0.05


def blind(data: ProfileFile) -> tuple[str, ...]:
    """How far the profile of a language model was off on steps that it was not made of, a line for each kind; none if
    it was not tried."""
    judged = data.tokens.blind if data.tokens is not None else None
    if judged is None:
        return ()
    found = ["on steps that it was not made of, by kind: median and p95 of the error, and the median with its sign"]
    for name, kind in judged.kinds.items():
        over = kind.median > BLIND_MEDIAN or kind.p95 > BLIND_P95
        numbers = f"{100 * kind.median:.1f} %, {100 * kind.p95:.1f} %, {100 * kind.bias:+.1f} %"
        found.append(f"  {name}: {numbers} of {kind.steps} steps{', over the limits' if over else ''}")
    assert data.tokens is not None
    found.append(f"  limits: {100 * BLIND_MEDIAN:g} % and {100 * BLIND_P95:g} %")
    regions = data.tokens.decode_regions
    if regions:
        off = [one for one in regions if abs(one.bias) > REGION]
        worst = off or [max(regions, key=lambda one: abs(one.bias))]
        found.append(
            f"  decode by batch and context: {len(off)} of {len(regions)} places off by more than {REGION:.0%}"
        )
        found += [f"    {_region(one)}{', over the limit' if off else ''}" for one in worst]
    return tuple(found)


def origin(data: ProfileFile) -> Literal["measured", "imported", "estimated", "synthetic"]:
    """Where the times of a profile come from. One that was measured never, and stands on nothing else, is synthetic:
    somebody made its numbers up."""
    if data.basis is not None:
        return data.basis.kind
    return "synthetic" if data.measured_when == NEVER else "measured"


def basis(data: ProfileFile) -> str | None:
    """What a report says of a profile that is imported or estimated, in one line; None of others."""
    if data.basis is None:
        return None
    what = "imported from" if data.basis.kind == "imported" else "estimated by"
    return f"profile {data.name} is {what} {data.basis.source}; known error: {data.basis.known_error}"


def beyond(data: ProfileFile) -> tuple[str, ...]:
    """What may be asked of a profile of a language model though it was not measured."""
    if data.tokens is None:
        return ()
    found = {}
    longest = data.tokens.engine.max_model_len
    for kind, model in data.tokens.kinds.items():
        prefill = model.prefill
        if prefill.beyond is not None:
            known, until = prefill.tokens[-1], prefill.beyond.until
            found[f"prefill of {known + 1} to {until} tokens: by {prefill.beyond.statistic}"] = kind
        surface = model.surface
        if surface is None:
            continue
        most = surface.per_sequence[-1]
        if most < longest:
            found[f"decode of more than {most} tokens of context each (up to {longest}): the last lines go on"] = kind
        one = [n for n, row in zip(surface.batch, surface.seconds, strict=True) if len(set(row)) == 1]
        if one and len(surface.per_sequence) > 1:
            sizes = ", ".join(map(str, one))
            found[f"decode of {sizes} sequences, measured at one context: slopes of the batch sizes beside"] = kind
    return tuple(found)


def _blind(judged: Blind | None) -> Iterator[Finding]:
    for name, kind in (judged.kinds if judged is not None else {}).items():
        if kind.median > BLIND_MEDIAN or kind.p95 > BLIND_P95:
            text = f"{name} steps that it was not made of: {100 * kind.median:.1f} % off in the median, "
            yield Finding("blind", f"{text}{100 * kind.p95:.1f} % at p95")


def _region(one: DecodeRegion) -> str:
    (least, most), (shortest, longest) = one.batch, one.context
    whose = "steps that it was made of" if one.own else "steps of traffic"
    what = f"decode of {least} to {most} sequences with {shortest} to {longest} tokens each"
    return f"{what}: {100 * one.bias:+.1f} % in the median of {one.steps} {whose}"


def _table(where: str, table: Table) -> Iterator[Finding]:
    yield from _few(where, "batch", table.batch, table.samples)
    yield from _falls(where, "batch", table.batch, table.seconds)
    spread = table.spread or {}
    medians = spread.get("p50", table.seconds if table.statistic == "median" else None)
    if medians is None:
        return
    if table.statistic == "mean":
        high = [n for n, s, m in zip(table.batch, table.seconds, medians, strict=True) if s > MEAN * m]
        if high:
            worst = max(s / m for s, m in zip(table.seconds, medians, strict=True))
            yield Finding("mean", f"{where}: means up to {worst:.2f} times the median, at batch {_some(high)}")
    tails = [(n, p / m) for n, p, m in zip(table.batch, spread.get("p99", ()), medians, strict=False) if p > TAIL * m]
    if tails:
        worst = max(ratio for _, ratio in tails)
        text = f"99th percentiles up to {worst:.1f} times the median, at batch {_some([n for n, _ in tails])}"
        yield Finding("tail", f"{where}: {text}")


def _few(where: str, what: str, sizes: Sequence[int], samples: Sequence[int] | None) -> Iterator[Finding]:
    few = [n for n, count in zip(sizes, samples or (), strict=False) if count < SAMPLES]
    if samples and few:
        text = f"{min(samples)} samples at {what} {_some(few)}, fewer than {SAMPLES}"
        yield Finding("samples", f"{where}: {text}")


def _falls(where: str, what: str, sizes: Sequence[int], seconds: Sequence[float | None]) -> Iterator[Finding]:
    highest, at, worst = 0.0, 0, (0.0, 0, 0)
    for size, value in zip(sizes, seconds, strict=True):
        if value is None:
            continue
        if value < highest:
            worst = max(worst, (1.0 - value / highest, at, size))
        else:
            highest, at = value, size
    if worst[0] > FALL:
        share, larger, smaller = worst
        text = f"{what} {smaller} takes {100 * share:.0f} % less than {what} {larger}"
        yield Finding("falls", f"{where}: {text}")


def _prefill(where: str, data: PrefillData) -> Iterator[Finding]:
    if data.samples is not None and data.samples < SAMPLES:
        yield Finding("samples", f"{where}: {data.samples} samples at a point, fewer than {SAMPLES}")
    low = [_low(data.tokens, row, FALL / 2) for row in data.seconds]
    for prompts, row in zip(data.prompts, data.seconds, strict=True):
        own = _low(data.tokens, row, FALL)
        # What most rows show at a total, or the only one, is what the device's kernels do, not noise.
        shared = {t for t in own if 2 * sum(t in other for other in low) >= len(low)}
        alone = [None if t in shared else value for t, value in zip(data.tokens, row, strict=True)]
        if len(data.prompts) > 1 and own - shared:
            yield from _falls(f"{where}, {prompts} prompt{'s' * (prompts > 1)}", "a total of", data.tokens, alone)
    yield from _jump(where, data)


def _jump(where: str, data: PrefillData) -> Iterator[Finding]:
    """A form beyond the table that does not go on where the table ends: one of the two is wrong there."""
    last, known = data.tokens[-1], data.seconds[0][-1]
    if data.beyond is None or data.prompts[0] != 1 or not known:
        return
    more = last + 1
    ratio = data.beyond(more, more * more) / known
    if not 1.0 / JUMP <= ratio <= JUMP:
        what = f"a prompt of {more} tokens takes {ratio:.1f} times what one of {last} does"
        yield Finding("jump", f"{where}: {what}, by {data.beyond.statistic}")


def _low(sizes: Sequence[int], seconds: Sequence[float | None], share: float) -> set[int]:
    """The sizes that take less than a smaller one does, by more than a *share*."""
    found, highest = set(), 0.0
    for size, value in zip(sizes, seconds, strict=True):
        if value is not None and value < (1.0 - share) * highest:
            found.add(size)
        highest = max(highest, value or 0.0)
    return found


def _surface(where: str, data: DecodeSurface) -> Iterator[Finding]:
    cells = sum(map(len, data.seconds))
    if data.samples is not None and data.samples < SAMPLES * cells:
        each = data.samples / cells
        yield Finding("samples", f"{where}: {each:.1f} samples a point on average, fewer than {SAMPLES}")
    out = rule(data.per_sequence, data.seconds, data.batch).left_out
    if out:
        places = ", ".join(f"batch {batch} at {each} tokens" for batch, each, *_ in out)
        yield Finding("disturbed", f"{where}: {len(out)} of {cells} values disturbed and left out: {places}")


def _some(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) if len(sizes) < 5 else f"{sizes[0]} and {len(sizes) - 1} more"


def undisturbed(samples: Sequence[float]) -> list[float]:
    """*samples* without those that a host that stood still made long: more than `DEVIATIONS` times the scaled median
    absolute deviation above the median, and more than the share `ABOVE` above it. Of fewer than `SAMPLES` none is
    left out, for nobody knows which.

    >>> undisturbed([1.0, 1.01, 0.99, 1.02, 1.7, 1.0])
    [1.0, 1.01, 0.99, 1.02, 1.0]
    """
    if len(samples) < SAMPLES:
        return list(samples)
    middle = _median(samples)
    spread = 1.4826 * _median([abs(s - middle) for s in samples])
    limit = middle + max(DEVIATIONS * spread, ABOVE * middle)
    return [s for s in samples if s <= limit]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def with_verdict(content: Mapping[str, Any]) -> dict[str, Any]:
    """The *content* of a profile that was just taken, checked against the schema, with its verdict.

    Raises `ServeTwinError` if what was measured cannot be: something else was running on the machine, as a rule.
    """
    try:
        data = ProfileFile.model_validate({**content, "verdict": None})
    except ValidationError as error:
        first = error.errors()[0]
        path = (*first["loc"], *getattr(first.get("ctx", {}).get("error"), "path", ()))
        what = f"{'.'.join(map(str, path))} {first['msg'].removeprefix('Value error, ')}".strip()
        right = "nothing else running on this machine while it measures"
        raise ServeTwinError(f"what was measured makes no profile: {what} (right would be: {right})") from None
    return {**content, "verdict": list(lines(data))}
