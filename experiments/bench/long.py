"""One long run in a process of its own: ``python -m servetwin.experiments.bench.long REQUESTS [FOLDER]``.

Stable Diffusion 512x512 on an RTX 4090 under NeuStream near its knee, 50 steps a request. With a folder, the records
of all requests and batches are streamed there. Prints CPU seconds of the run and the process's largest memory in MiB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from servetwin.experiments.assembly.build import run
from servetwin.experiments.spec.loading import load

#: Requests per second: some 90 % of them met.
RATE = 0.45

SETTINGS = (
    ("workload.draws", "seeded"),
    ("workload.steps.unet", {"draw": "constant", "steps": 50}),
    ("variant", "neustream-ae"),
    ("rate", RATE),
    ("cv", 1.0),
)


def main() -> None:
    requests = int(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    experiment = load("sd15-512-rtx4090", [*SETTINGS, ("requests", requests)])
    began = time.process_time()
    summary = run(experiment, folder)
    took = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"requests": requests, "cpu": took, "memory": memory, "attainment": summary.attainment}))


if __name__ == "__main__":
    main()
