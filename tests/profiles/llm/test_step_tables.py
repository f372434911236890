"""Latency models of language models: how they are read, where they end, and what they say of measured runs."""

from __future__ import annotations

import csv
import gzip
import math
import pickle
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from servetwin.core import BadInput
from servetwin.profiles import OutOfRange, TokenTable, architecture, kv_blocks, load
from servetwin.profiles.llm.architectures import architectures
from servetwin.profiles.llm.schema import TokenModel
from servetwin.profiles.neustream_artifact.llm import logs

OPT = {"opt-13b": "a6000/opt-13b-tp1", "opt-30b": "a6000/opt-30b-tp2", "opt-66b": "a6000/opt-66b-tp4"}
HERE = {"statistic": "made up", "source": {"file": "bench.py"}}


def model(**changes: Any) -> TokenTable:
    """A model as a profiler might write it; *changes* replace its parts."""
    content: dict[str, Any] = {
        "prefill": {"tokens": [64, 128], "seconds": [[0.010, 0.020]], "between": "up", **HERE},
        "line": {"d0": 0.010, "d1": 1e-6, "until_batch": 64, "until_context": 100_000, **HERE},
        **changes,
    }
    if "surface" in changes:
        del content["line"]
    hold = content.pop("hold", False)
    return TokenTable(TokenModel.model_validate(content), name="toy", hold=hold)


def test_prefill_is_a_staircase_at_the_summed_length() -> None:
    t = model()
    assert [t.prefill(n) for n in (1, 64, 65, 128)] == [0.010, 0.010, 0.020, 0.020]
    with pytest.raises(
        OutOfRange, match=r"toy: no value for a prefill of 129 tokens \(right would be: 1 to 128 as measured, "
    ):
        t.prefill(129)
    with pytest.raises(OutOfRange):
        t.prefill(0)
    assert model(hold=True).prefill(129) == 0.020


def test_prefill_beyond_the_table_follows_the_fitted_form() -> None:
    beyond = {"c0": 0.001, "c1": 1e-4, "c2": 1e-8, "until": 1000, **HERE}
    prefill = {"tokens": [64, 128], "seconds": [[0.010, 0.020]], "between": "up", "beyond": beyond, **HERE}
    t = model(prefill=prefill)
    assert t.prefill(200, 2 * 100**2) == pytest.approx(0.001 + 0.02 + 2e-4)
    assert t.prefill(200) == pytest.approx(0.001 + 0.02 + 4e-4)  # one prompt
    assert t.largest_prefill == 1000
    # a prompt in two chunks: the second sees the first, 2 c2 for each pair
    assert t.prefill(100, 100**2, context=100 * 100) == pytest.approx(0.020 + 2e-8 * 100 * 100)
    with pytest.raises(OutOfRange, match="1 to 1000"):
        t.prefill(1001)


def test_straight_lines_and_several_prompts() -> None:
    prefill = {
        "tokens": [16, 64, 128],
        "prompts": [1, 4],
        "seconds": [[0.008, 0.010, 0.020], [None, 0.009, 0.016]],
        "between": "line",
        **HERE,
    }
    t = model(prefill=prefill)
    assert t.prefill(96) == pytest.approx(0.015)
    assert t.prefill(128, 4 * 32**2) == 0.016
    assert t.prefill(128, 2 * 64**2) == pytest.approx(
        0.016 + (0.020 - 0.016) * (0.5 - 0.25) / 0.75
    )  # along 1 / prompts
    assert t.prefill(128, 8 * 16**2) == 0.016  # more prompts than measured: attention is negligible there
    assert t.prefill(40, 4 * 10**2) == t.prefill(40)  # nobody measured four prompts that short
    with pytest.raises(OutOfRange, match="16 to 128"):
        t.prefill(15)


def test_decode_as_a_line_with_offsets() -> None:
    offsets = [{"above": 0.011, "add": 0.002}, {"above": 0.012, "add": 0.005}]
    line = {"d0": 0.010, "d1": 1e-6, "until_batch": 4, "until_context": 5000, "offsets": offsets, **HERE}
    t = model(line=line)
    assert t.decode(1, 999) == pytest.approx(0.010999)
    assert t.decode(4, 1000.001) == pytest.approx(0.013, abs=1e-7)
    assert t.decode(4, 2500) == pytest.approx(0.0175)
    d0, d1 = t.solo_decode()
    assert (d0 + d1 * (500 + 1), d1) == (pytest.approx(t.decode(1, 500)), 1e-6)
    constant, slope, until = t.straight(2, 1500)
    assert (constant, slope, until) == (pytest.approx(0.012), 1e-6, pytest.approx(2000))
    for batch, context in ((5, 10), (0, 10), (1, 5001)):
        with pytest.raises(OutOfRange):
            t.decode(batch, context)
    held = model(line=line, hold=True)
    assert held.decode(5, 9000) == held.decode(4, 5000) == t.decode(4, 5000)
    assert held.straight(4, 9000) == (t.decode(4, 5000), 0.0, math.inf)


SURFACE = {
    "batch": [1, 4, 16],
    "per_sequence": [100, 200, 400],
    "seconds": [[0.010, 0.011, 0.015], [0.012, 0.014, 0.020], [0.020, 0.026]],
    **HERE,
}


def test_decode_as_a_surface() -> None:
    t = model(surface=SURFACE)
    assert t.decode(1, 100) == 0.010
    assert t.decode(4, 4 * 400) == pytest.approx(0.020)
    assert t.decode(4, 4 * 300) == pytest.approx(0.017)
    assert t.decode(4, 4 * 50) == pytest.approx(0.011)  # the first piece goes on to nothing
    assert t.decode(10, 10 * 200) == pytest.approx((0.014 + 0.026) / 2)
    with pytest.raises(OutOfRange, match=r"a batch of 10 with 2001 tokens of context \(right would be: 2000 at most"):
        t.decode(10, 2001)
    with pytest.raises(OutOfRange, match="a batch of 17"):
        t.decode(17, 17)
    reaching = model(surface={**SURFACE, "until_context": 4000})
    assert reaching.decode(10, 10 * 300) == pytest.approx((0.017 + 0.032) / 2)  # row 16's last line goes on
    assert reaching.decode(16, 4000) == pytest.approx(0.026 + 0.006 / 100 * 50)
    d0, d1 = t.solo_decode()
    assert d0 + d1 * (400 + 1) == pytest.approx(0.015, rel=0.05)


def test_an_engine_that_pads_its_batches() -> None:
    t = model(surface={**SURFACE, "between": "up"})
    assert t.decode(3, 400) == t.decode(4, 400) == 0.012
    assert t.decode(5, 1600) == t.decode(16, 1600) == 0.020


@pytest.mark.parametrize("changes", [{}, {"surface": SURFACE}], ids=["line", "surface"])
def test_straight_pieces_are_the_steps_themselves(changes: dict[str, Any]) -> None:
    t = model(**changes)
    for batch in (1, 3, 4, 9, 16):
        context = 0
        while context < 150 * batch:
            constant, slope, until = t.straight(batch, context)
            while context < until and context < 150 * batch:
                assert t.decode(batch, context) == pytest.approx(constant + slope * context, rel=1e-12)
                context += batch


def test_a_step_that_does_both() -> None:
    t = model()
    one_pass = t.prefill(100 + 8) + 8000 * 1e-6
    assert t.mixed(100, 100**2, 0, 8, 8000) == pytest.approx(one_pass)
    assert t.mixed(10, 100, 0, 50, 9000) == pytest.approx(max(0.010 + 0.009, t.decode(50, 9000)))
    two = model(mixed={"rule": "one_pass", "factor": 0.95, "attention": 3.0})
    assert two.mixed(100, 100**2, 0, 8, 8000) == pytest.approx(0.95 * t.prefill(108) + 3.0 * 8000e-6)
    with pytest.raises(ValidationError, match="there are two"):
        model(mixed={"rule": "sum", "attention": 2.0})
    both = model(mixed={"rule": "sum", "factor": 0.9})
    assert both.mixed(100, 100**2, 0, 8, 8000) == pytest.approx(0.9 * (0.020 + 0.018))
    assert t.step(100, None, 0, 0, 0) == t.prefill(100)
    assert t.step(0, None, 0, 8, 8000) == t.decode(8, 8000)
    assert t.step(100, 100**2, 0, 8, 8000) == t.mixed(100, 100**2, 0, 8, 8000)
    assert t.step(0, None, 0, 0, 0) == 0.0


def test_a_profile_of_ones_own(small: dict[str, Any], save: Callable[..., Path]) -> None:
    opt = load(OPT["opt-13b"]).data.model_dump(mode="json", exclude_none=True)
    small |= {"tokens": opt["tokens"], "modules": {}}
    small["costs"] = {
        "step.between": {
            "meaning": "between steps",
            "unit": "seconds",
            "modules": ["decode"],
            "line": {"constant": 0.001, "per_request": 0.00001},
            "how": "time stamps",
            "source": {"file": "bench.py"},
        }
    }
    mine = load(save(small))
    assert mine.modules == ("prefill", "decode")
    assert mine.tokens("measured").between(10) == pytest.approx(0.0011)
    assert mine.tokens("scheduler").between(10) == 0.0  # plans are made of whole steps
    assert mine.tokens() is mine.tokens("scheduler")
    assert mine.digest != load(OPT["opt-13b"]).digest
    again = pickle.loads(pickle.dumps(mine.tokens("measured")))
    assert again.between(10) == mine.tokens("measured").between(10)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("prefill", "tokens", [64, 64], "tokens must increase, but 64 follows 64"),
        ("prefill", "seconds", [[0.01]], "seconds for 1 prompts"),
        ("prefill", "between", "cubic", "'cubic'"),
        ("line", "d0", -1.0, "greater than 0"),
        ("line", "d2", 1.0, "unknown key 'd2'"),
    ],
)
def test_what_is_wrong_is_said(
    small: dict[str, Any], save: Callable[..., Path], part: str, key: str, value: Any, message: str
) -> None:
    tokens = load(OPT["opt-13b"]).data.model_dump(mode="json", exclude_none=True)["tokens"]
    small |= {"tokens": tokens}
    tokens["kinds"]["measured"][part][key] = value
    with pytest.raises(BadInput) as error:
        load(save(small))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_decode_is_a_line_or_a_surface(small: dict[str, Any], save: Callable[..., Path]) -> None:
    tokens = load(OPT["opt-13b"]).data.model_dump(mode="json", exclude_none=True)["tokens"]
    del tokens["kinds"]["measured"]["line"]
    with pytest.raises(BadInput, match="decode is either a line or a surface"):
        load(save({**small, "tokens": tokens}))
    with pytest.raises(BadInput, match="a profile needs modules, or tokens"):
        load(save({**small, "modules": {}, "costs": {}}))
    with pytest.raises(BadInput, match="no profile of a language model"):
        load("rtx4090/sd15-256").tokens()
    mine = load(save({**small, "tokens": {**tokens, "kinds": {"scheduler": tokens["kinds"]["scheduler"]}}}))
    with pytest.raises(BadInput, match="no latency model of the kind corrected"):
        mine.tokens("corrected")


# -- shapes and memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in architectures() if n.startswith("opt")])
def test_the_shape_of_opt(name: str) -> None:
    """The number of weights follows from the shape: embeddings, 12 h^2 + 13 h per layer, the last layer norm."""
    a = architecture(name)
    h = a.hidden
    assert a.feed_forward == 4 * h
    assert a.parameters == (a.vocabulary + a.positions + 2) * h + a.layers * (12 * h * h + 13 * h) + 2 * h


def test_kv_blocks_are_near_an_independent_estimate() -> None:
    """An estimate made apart from this code (1410, 1291, 1201); the engine's own counts were not recorded."""
    for (name, profile), estimate in zip(OPT.items(), (1410, 1291, 1201), strict=True):
        data = load(profile).token_data
        blocks = kv_blocks(architecture(name), memory_gib=47.54, tensor_parallel=data.tensor_parallel)
        assert data.kv.blocks == blocks == pytest.approx(estimate, rel=0.02)


def test_a_model_that_does_not_fit() -> None:
    with pytest.raises(BadInput, match=r"takes 1[23]\d\.\d GiB of 42\.8 GiB: no KV block fits"):
        kv_blocks(architecture("opt-66b"), memory_gib=47.54)
    with pytest.raises(BadInput, match="unknown model 'opt-175b'"):
        architecture("opt-175b")


# -- measured runs ----------------------------------------------------------------------------------------

RUNS = list(csv.DictReader((Path(__file__).parent / "logged_llm_runs.csv").read_text().splitlines()))
GRID = [(n, b) for n in (32, 64, 128, 256, 512, 1024) for b in range(1, 2048 // n + 1)]
SINGLES = range(32, 2049, 32)


def modelled(run: dict[str, str], table: TokenTable) -> float:
    """What *table* says that a logged run took."""
    if run["run"] == "prefill_grid":
        return sum(table.prefill(n * b, n * n * b) for n, b in GRID)
    if run["run"] == "prefill_single":
        return sum(table.prefill(n) for n in SINGLES)
    total = table.prefill(32 * 4, 32 * 4**2)
    for stretch in run["decode_stretches"].split():
        batch, context, steps = map(int, stretch.split(":"))
        total += sum(table.decode(batch, context + (k - 1) * batch) for k in range(steps))  # see restate_llm
    return total


@pytest.mark.parametrize("kind", ["measured", "scheduler"])
def test_the_logged_runs_are_reproduced(kind: Any) -> None:
    """21 runs: the batched grids are in no table, and of the single prompts the scheduler's holds one of three."""
    assert len(RUNS) == 21
    errors = [modelled(run, load(OPT[run["model"]]).tokens(kind)) / float(run["seconds"]) - 1.0 for run in RUNS]
    assert statistics.mean(abs(e) for e in errors) <= 0.016
    assert max(abs(e) for e in errors) <= 0.057


def test_noise_has_the_measured_mean() -> None:
    for name in OPT.values():
        for cost in ("prefill.ratio", "decode.ratio"):
            c = load(name).cost(cost)
            drawn = statistics.mean(c.quantile((i + 0.5) / 10_000) for i in range(10_000))
            assert drawn == pytest.approx(c.scalar(), abs=0.004)
            assert c.scalar() == pytest.approx(1.0, abs=0.04)


@pytest.mark.reference
@pytest.mark.parametrize("name", OPT)
def test_against_every_logged_point(reference: Path, name: str) -> None:
    """Single prompts held out: the median of two repeats says what the third took; and the logs are those of CI."""
    points = logs(reference)[name]
    table = load(OPT[name]).tokens("measured")
    assert sorted(points.grid) == sorted(GRID)
    assert sorted(points.singles) == list(SINGLES)
    for repeat in range(3):
        logged = {r["run"]: r for r in RUNS if r["model"] == name and r["repeat"] == str(repeat)}
        took = sum(v[repeat] for v in points.singles.values())
        assert took == pytest.approx(float(logged["prefill_single"]["seconds"]), abs=1e-5)
        held_out = sum(statistics.median(v[:repeat] + v[repeat + 1 :]) for v in points.singles.values())
        assert held_out == pytest.approx(took, rel=0.035)
        took = sum(v[repeat] for v in points.grid.values())
        assert took == pytest.approx(float(logged["prefill_grid"]["seconds"]), abs=1e-5)
    for n, all_ in points.singles.items():
        assert table.prefill(n) == statistics.median(all_)
    grid = [abs(table.prefill(n * b) / min(all_) - 1.0) for (n, b), all_ in points.grid.items()]
    assert statistics.mean(grid) < 0.05
    assert max(grid) < 0.12
    decode = [abs(table.decode(b, c - b) / s - 1.0) for b, c, s in points.decode]
    assert statistics.mean(decode) < 0.016
    with gzip.open(reference / "llm/decode_steps.csv.gz", "rt") as file:
        first = next(float(r["seconds"]) for r in csv.DictReader(file) if r["model"] == name)
    (run,) = [r for r in RUNS if r["model"] == name and r["run"].startswith("decode")]
    assert first + sum(s for _, _, s in points.decode) == pytest.approx(float(run["seconds"]), abs=1e-5)
