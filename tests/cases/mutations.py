"""Damaged files, drawn by seed: a value of JSON in another's place, a key that is gone, bytes flipped or cut off."""

import copy
import json
import random
from typing import Any

VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 10**30, 1e308, -0.5, float("nan"), float("inf"), "x", "", "9" * 40, "\ud800"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2, 3], {"": {}}),
]


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a value of JSON; of lists the first few and the last."""
    found = [path] if path else []
    if isinstance(content, dict):
        for key in content:
            found += places(content[key], (*path, key))
    elif isinstance(content, list):
        for index in {*range(min(3, len(content))), len(content) - 1} - {-1}:
            found += places(content[index], (*path, index))
    return found


def mutated(text: str, draw: random.Random) -> bytes:
    """*text*, one value of JSON a line or one in all, with one to three damages."""
    try:
        lines = [json.loads(text)]
    except ValueError:
        lines = [json.loads(line) for line in text.splitlines()]
    whole = "\n" not in text.strip() or len(lines) == 1
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if not lines:
            break
        number = draw.randrange(len(lines))
        kind = draw.random()
        there = places(lines[number])
        if kind < 0.1 or not there:
            lines[number] = copy.deepcopy(draw.choice(VALUES))
            continue
        *above, last = draw.choice(there)
        holder = lines[number]
        for key in above:
            holder = holder[key]
        if kind < 0.3:
            del holder[last]
        elif kind < 0.4 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(draw.choice(VALUES))
        if kind > 0.95:
            lines.append(copy.deepcopy(lines[number]))
    data = b"\n".join(json.dumps(line).encode("utf-8", "replace") for line in (lines[:1] if whole else lines)) + b"\n"
    return damaged(data, draw) if draw.random() < 0.1 else data


def damaged(data: bytes, draw: random.Random) -> bytes:
    """*data* with bytes that are others, or cut off."""
    changed = bytearray(data)
    kind = draw.randrange(3)
    if kind == 0 and changed:
        for _ in range(draw.choice([1, 2, 9])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    elif kind == 1:
        del changed[draw.randrange(len(changed) + 1) :]
    else:
        at = draw.randrange(len(changed) + 1)
        changed[at:at] = draw.choice([b"\x00", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"\n\n", b'"'])
    return bytes(changed)
