"""Two of vLLM's own servers behind our router, predicted and measured; and one of them asked by vLLM's own client.

::

    servers_campaign.py FOLDER --model llama-3.1-8b --seconds 400 --profile FILE     on two GPUs
    servers_campaign.py FOLDER --model tiny --seconds 300                            on a CPU

The profile is one that was taken on one of these GPUs before. Each run of `ROUTED` is predicted first: an experiment
under ``experiments/``, its simulation under ``predicted/``. Then two servers start, each with our scheduler in it, on
a GPU and cores of its own, and ``servetwin run --url A --url B`` sends each run's requests through the experiment's
router; the folders come to ``runs/``. Last, `bench_campaign`'s client asks both servers, each by itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_campaign
import yaml
from bench_campaign import RUNS, TINY, Campaign
from steps_campaign import LENGTHS, SLOS

#: A router that does not come along.
OWN = Path(__file__).parents[1] / "diffusion" / "fewest_before.py"
#: By model: what the lengths are, requests of a run, and (router, requests a second, cv), what matters most first.
#: Prompts are long and outputs short: one process of Python tells of each token, on either side.
ROUTED: dict[str, tuple[str, int, tuple[tuple[str, float, float], ...]]] = {
    "llama-3.1-8b": (
        "long",
        600,
        (
            ("round_robin", 20.0, 1.0),
            ("least_loaded", 20.0, 1.0),
            ("power_of_two", 24.0, 1.0),
            ("own", 24.0, 1.0),
            ("round_robin", 24.0, 1.0),
            ("least_loaded", 24.0, 1.0),
            ("power_of_two", 14.0, 4.0),
            ("own", 14.0, 4.0),
            ("jsq", 30.0, 1.0),
            ("least_loaded", 30.0, 1.0),
        ),
    ),
    "tiny": ("long", 40, (("round_robin", 20.0, 1.0), ("own", 20.0, 1.0))),
}
#: The policy in both servers.
POLICY = "vllm-v1"


class Servers(Campaign):
    """Two servers, and all that is sent to them."""

    def routed_file(self, number: int) -> Path:
        """The file of the experiment that predicts run *number*."""
        kind, requests, runs = ROUTED[self.model]
        router, rate, cv = runs[number]
        prompt, output = LENGTHS[kind]["tiny-llama" if self.tiny else self.model]
        engine: dict[str, Any] = {"whole_prompt": True, **({"blocks": TINY["blocks"]} if self.tiny else {})}
        limit = min(self.limit(), 256)
        content = {
            "name": f"{self.model}-{number:02d}-{router}",
            "pipeline": {"modules": {"llm": {"kind": "llm"}}},
            "workload": {
                "requests": requests,
                "arrivals": {"process": "gamma", "rate": rate, "cv": cv},
                "lengths": {"llm": {"prompt": prompt, "output": output}},
            },
            # Runs with the same rate and cv send the same requests.
            "seed": 100 + round(10 * rate) + round(cv),
            "slo": SLOS[kind],
            "policy": {"name": POLICY},
            "deployment": {
                "devices": {"gpu0": self.profile, "gpu1": self.profile},
                "workers": [
                    {"modules": ["llm"], "device": device, "limit": limit, "engine": engine}
                    for device in ("gpu0", "gpu1")
                ],
                "router": "../fewest_before.py" if router == "own" else router,
            },
        }
        path = self.folder / "experiments" / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def predict_routed(self) -> list[Path]:
        shutil.copy(OWN, self.folder / OWN.name)
        files = [self.routed_file(number) for number in range(len(ROUTED[self.model][2]))]
        with ThreadPoolExecutor(8) as pool:
            outs = [self.folder / "predicted" / file.stem for file in files]
            told = pool.map(lambda file, out: self.call("run", file, "--out", out), files, outs)
            for file, text in zip(files, told, strict=True):
                self.say(file.stem, text.replace("\n", "\n  "))
        return files

    def routed(self, urls: Sequence[str], files: Sequence[Path]) -> None:
        addresses = [word for url in urls for word in ("--url", url)]
        for file, (router, rate, _) in zip(files, ROUTED[self.model][2], strict=True):
            need = ROUTED[self.model][1] / rate * 1.25 + 8
            if self.left() < need:
                self.say("no time for", router, rate)
                continue
            out = self.folder / "runs" / file.stem
            told = self.safely(self.call, "run", file, "--backend", "vllm", *addresses, "--out", out, "--json")
            self.say(file.stem, str(told)[:600].replace("\n", " "))

    def both(self, urls: Sequence[str], files: Sequence[Path]) -> None:
        """vLLM's own client asks each server at once, each for a run of its own."""
        numbers = [number for number, run in enumerate(RUNS[self.model]["runs"]) if run[0] == POLICY][: len(urls)]
        if self.left() < RUNS[self.model]["requests"] / RUNS[self.model]["runs"][numbers[0]][2] * 1.2 + 25:
            self.say("no time for vLLM's client")
            return
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(self.safely, self.bench, url, number, files[number].stem)
                for url, number in zip(urls, numbers, strict=False)
            ]
            for job in jobs:
                job.result()

    def all(self) -> None:
        (self.folder / "runs").mkdir(exist_ok=True)
        self.make_model()
        self.make_profile()
        routed, files = self.predict_routed(), self.predict()
        with self.servers(POLICY, {}, (0, 1)) as urls:
            self.say("serving", json.dumps(urls))
            self.safely(self.both, urls, files)
            self.safely(self.routed, urls, routed)
        self.say("over")


def main(argv: Sequence[str] | None = None) -> Servers:
    args = bench_campaign.arguments(__doc__, argv)
    campaign = Servers(args.folder, args.model, args.seconds, args.profile)
    campaign.all()
    return campaign


if __name__ == "__main__":
    main(sys.argv[1:])
