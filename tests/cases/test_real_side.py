"""The real side of case 15: two workers of one module on one device shared a graph's rows and cursor.

On the CPU with tiny models, placements as the case's and others serve all requests, each by as many steps as it asked
for, and share them out. That the images are those of one worker, `tests/real/diffusion/test_lanes.py` holds. These
tests need torch and diffusers; SERVETWIN_REAL=1 says that they must run."""

import os
from importlib.util import find_spec

import pytest
from by_command import call, records, refused, served_by, sets

MISSING = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("SERVETWIN_REAL") != "1", reason=f"needs {', '.join(MISSING)}"
)

DIT = {"modules": ["dit"], "device": "gpu0", "limit": 6}
VAE = {"modules": ["vae"], "device": "gpu0", "limit": 6}
PLACES = {
    "15 case: two workers of the loop": [DIT, DIT, VAE],
    "15 three": [DIT, DIT, DIT, VAE],
    "15 two of the last stage": [DIT, VAE, VAE],
    "15 batches of one": [{**DIT, "limit": 1}, {**DIT, "limit": 1}, VAE],
    "15 two that serve from end to end": [{"modules": ["dit", "vae"], "device": "gpu0", "limit": 3}] * 2,
}


@pytest.mark.parametrize("workers", PLACES.values(), ids=PLACES)
def test_15_workers_that_share_a_device_for_real(workers, here) -> None:
    given = sets(deployment__workers=workers, deployment__router="round_robin", time__unmeasured="shared")
    real = ("--backend", "real", "--device", "cpu")
    requests, batches = records("tiny-dit-cpu", "--requests", 8, "--rate", 40, *given, *real, out=here / "o")
    assert [r["outcome"] in ("met", "late", "dropped") for r in requests] == [True] * 8
    twice = next(w["modules"] for w in workers if workers.count(w) > 1)
    stage = "+".join(twice)
    assert len(served_by(requests, stage)) == workers.count(next(w for w in workers if w["modules"] == twice))
    for r in requests:
        if r["outcome"] in ("met", "late"):
            ran = sum(r["id"] in b["requests"] for b in batches if "dit" in b["modules"])
            assert ran == r["work"]["dit"] or ran == 1  # step by step, or whole
    # And in simulation the same placement is refused, since nobody measured it.
    refused("run", "tiny-dit-cpu", *sets(deployment__workers=workers, deployment__router="round_robin",
                                         time__unmeasured="refused"), says=("share a device",))  # fmt: skip
    code, _, err = call("compare", here / "o", here / "o")
    assert code == 0, err
