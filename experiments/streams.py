"""Random numbers: one stream per purpose, so that adding a purpose shifts no other."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The stream of *seed* for *purpose* ("arrivals", "steps of unet"); always the same numbers for the same two."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()),)))


def published_stream() -> np.random.RandomState:
    """numpy's legacy generator as the NeuStream artifact seeds it, for each list of numbers anew."""
    return np.random.RandomState(0)
