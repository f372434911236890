"""Numbers that were put away are told as NumPy tells them of an array that holds all."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servetwin.core.arithmetic import samples as module
from servetwin.core.arithmetic.samples import Distribution, Samples, Shelf

SHARES = (0.5, 0.9, 0.99, 1.0)


def kept(values: np.ndarray, cuts: list[int], *, put_last: bool) -> Samples:
    """*values*, put away at each of *cuts*."""
    samples, shelf = Samples(), Shelf()
    for part in np.split(values, sorted(cuts)):
        samples.extend(part)
        if put_last or len(samples) < len(values):
            samples.put_away(shelf)
    return samples


def as_numpy(values: np.ndarray, scale: float) -> tuple[float, ...]:
    whole = np.sort(values) * scale
    quantiles = [float(np.percentile(whole, 100 * share)) for share in SHARES]
    return float(whole.mean()), float(whole.std()), float(np.median(whole)), *quantiles


def told(samples: Samples, scale: float) -> tuple[float, ...]:
    found = Distribution(samples, SHARES, scale)
    return found.mean, found.std(), found.median, *found.quantiles


@given(
    st.integers(1, 6000), st.lists(st.integers(0, 6000), max_size=9), st.integers(0, 2**32), st.booleans(),
    st.sampled_from([1.0, 1000.0]), st.sampled_from([8, 128, 1000, 1 << 16]), st.integers(1, 10**6),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_to_the_bit_what_numpy_finds(many, cuts, seed, put_last, scale, piece, ties) -> None:
    """Any number of values, put away anywhere, with equal ones among them; read in pieces of any size."""
    draw = np.random.default_rng(seed)
    values = np.round(draw.exponential(size=many) ** 3 * ties) / ties
    with pytest.MonkeyPatch.context() as patch:
        # NumPy adds up to 128 numbers in a way of its own, so that pieces of fewer are not what it adds.
        patch.setattr(module, "PIECE", max(piece, 128))
        samples = kept(values, [min(cut, many) for cut in cuts], put_last=put_last)
        assert len(samples) == many
        assert told(samples, scale) == as_numpy(values, scale)
        assert sorted(samples) == sorted(values.tolist())


def test_more_than_fit_one_piece_in_many_stretches() -> None:
    values = np.random.default_rng(5).lognormal(size=3 * module.PIECE + 77)
    samples = kept(values, [*range(1000, len(values), 1000)], put_last=False)
    assert told(samples, 1000.0) == as_numpy(values, 1000.0)


def test_merged_and_sent_elsewhere_they_are_the_same() -> None:
    """A process gives what it counted to another; what was put away goes along."""
    values = np.random.default_rng(1).gamma(2.0, size=5000)
    first, second = kept(values[:3000], [700, 2000], put_last=True), kept(values[3000:], [], put_last=False)
    first.merge(pickle.loads(pickle.dumps(second)))
    copied = pickle.loads(pickle.dumps(first))
    assert told(first, 1.0) == told(copied, 1.0) == as_numpy(values, 1.0)


def test_a_full_disk_is_told_by_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Full:
        def seek(self, _: int) -> None: ...
        def close(self) -> None: ...
        def write(self, _: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    samples = Samples()
    samples.recent.append(1.0)
    with pytest.raises(OSError, match="No space left on device") as refused:
        samples.put_away(Shelf())
    assert refused.value.filename == f"a temporary file in {tmp_path} (TMPDIR says where)"
    assert [*samples] == [1.0]
