"""Random streams, one per purpose, so that a new consumer of randomness shifts no other."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator for *purpose* (a name such as ``"arrivals"`` or ``"noise/unet"``) under an experiment's *seed*.

    >>> a, b = stream(7, "arrivals"), stream(7, "arrivals")
    >>> float(a.random()) == float(b.random())
    True
    >>> float(stream(7, "steps").random()) == float(stream(7, "arrivals").random())
    False
    """
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()),)))


def permuted(seed: int, count: int, purpose: str) -> int:
    """The place of *seed* in an order of 0 to *count* - 1 drawn for *purpose*; seeds repeat after *count*."""
    return int(stream(0, purpose).permutation(count)[seed % count])
