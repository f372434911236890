"""Two language models and a code executor on one GPU: measured, and then run to be held against a simulation.

::

    agents_campaign.py FOLDER --seconds N [--model codellama-7b --second llava-1.5-7b]

Both engines start at once. Then: a profile of the first alone, what the two cost each other when both are busy, what
it costs to alternate between prefill and decode, and runs of the MatPlotAgent graph (coder, executor, judge, coder,
executor) under two policies. The rates are shares of what the profile says one GPU could do if the engines took
turns. Everything is written as it comes, and no run is begun that would not end in time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from servetwin.experiments.backends.pipeline import AgentsBackend
from servetwin.experiments.spec.loading import load
from servetwin.real.vllm.engine_process import EngineProcess, EngineSetup
from servetwin.real.vllm.profiling.fitting.grid_fit import measured_section
from servetwin.real.vllm.profiling.measuring.pair_runs import flat, spell, switching
from servetwin.real.vllm.profiling.measuring.step_grid import SMALL, Grid

GRID = Grid(
    prefill=(1, 32, 128, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792, 2040),
    prompts=(1, 4),
    every=3,
    beyond=(2560, 3072, 4096),
    long=(512,),
    decode=(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96),
    contexts=(128, 512, 1024, 1600),
    steps=8,
    mixed_tokens=(512,),
    mixed_sequences=(8,),
    chunks=(512,),
    repeats=3,
)
#: What an engine does while the other one does something too: (kind, size).
LOADS = (("decode", 4), ("decode", 32), ("prefill", 512), ("prefill", 1536))
POLICIES = ("neustream-llm", "vllm")
SHARES = (0.9, 0.6, 1.2, 0.4)

EXPERIMENT = """
name: matplotagent-one-gpu
pipeline:
  modules: {{coder: {{kind: llm}}, execute: {{}}, judge: {{kind: llm}}}}
  edges: [[coder, execute]]
  branches:
    - {{from: execute, to: judge, probability: 1.0, most: 1}}
    - {{from: judge, to: coder, probability: 1.0, most: 1}}
workload:
  requests: {requests}
  arrivals: {{process: gamma, rate: {rate}, cv: 1.0}}
  lengths:
    coder: {{prompt: {{draw: uniform, low: {c0}, high: {c1}}}, output: {{draw: uniform, low: {o0}, high: {o1}}}}}
    judge: {{prompt: {{draw: uniform, low: {j0}, high: {j1}}}, after: coder,
             output: {{draw: uniform, low: {o0}, high: {o1}}}}}
slo: {{prefill: {slo}, decode: {slo}, meets: last, base: measured}}
budget: {{split: fixed, seconds: {{execute: 2.5}}, forward: budget}}
policy: {{name: {policy}}}
deployment:
  devices: {{first: {profile}, second: {profile}}}
  workers:
    - {{modules: [coder], device: first, limit: {limit}}}
    - modules: [execute]
      threads: 8
      calls: {{time: list, values: {values}, source: measured before the runs}}
      scripts: {{folder: {scripts}, seconds: 5, strict: false}}
    - {{modules: [judge], device: second, limit: {limit}}}
system: {{stop_after: 4.0}}
time: {{noise: false, hold: true}}
seed: {seed}
"""


def without_tool(text: str) -> str:
    """The experiment without its code executor, for a host on which the sandbox does not work."""
    content = yaml.safe_load(text)
    pipeline = content["pipeline"]
    del pipeline["modules"]["execute"]
    pipeline["edges"] = []
    pipeline["branches"][0]["from"] = "coder"
    content["budget"] = {"split": "fixed", "forward": "budget"}
    content["deployment"]["workers"] = [w for w in content["deployment"]["workers"] if w["modules"] != ["execute"]]
    return yaml.safe_dump(content, sort_keys=False)


class Campaign:
    def __init__(self, folder: Path, seconds: float, model: str, second: str) -> None:
        self.began, self.seconds, self.folder = time.monotonic(), seconds, folder
        self.models = {"coder": model, "judge": second}
        self.tiny = model.startswith("tiny")
        self.backend = AgentsBackend()
        self.section: dict[str, Any] = {}
        self.values = [0.05]
        self.tool = False  # whether scripts can be run here
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scripts").mkdir(exist_ok=True)
        (folder / "scripts/plot.py").write_text("print(sum(i * i for i in range(100_000)))\n")
        (folder / "scripts/table.py").write_text(
            "import json\nprint(json.dumps([i ** 3 for i in range(1000)])[:80])\n"
        )

    def say(self, *words: object) -> None:
        line = f"{time.monotonic() - self.began:7.1f} " + " ".join(map(str, words))
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def keep(self, name: str, what: Any) -> None:
        with gzip.open(self.folder / f"{name}.json.gz", "wt", compresslevel=6) as file:
            json.dump(what, file, separators=(",", ":"))

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def options(self, name: str) -> dict[str, Any]:
        if self.tiny:
            return {"model": self.models[name], "kv_bytes": 64 << 20, "max_sequences": 32, "max_batched_tokens": 2048}
        return {
            "model": self.models[name],
            "dtype": "float16",
            "max_model_len": 2048,
            "max_batched_tokens": 4096,
            "max_sequences": 96,
            "gpu_memory_utilization": 0.3,
            "kv_bytes": 3001 * 16 * 524288,
            "graphs": [1, 2, 4, *range(8, 97, 8)],
        }

    def start(self) -> None:
        for name in self.models:
            self.backend.engines[name] = EngineProcess(EngineSetup(self.options(name), {}))
        for name, engine in self.backend.engines.items():
            self.say(name, json.dumps(engine.ready()))

    def profile(self) -> None:
        self.section = self.backend.engines["coder"].ask(("call", measured_section, SMALL if self.tiny else GRID))
        self.say("profile", list(self.section))
        described = self.backend.engines["coder"].ask(("install", {}))
        model = self.section["tokens"]["kinds"]["measured"]
        self.section["tokens"]["kinds"] = {"scheduler": model, "measured": model}
        name = "cpu" if described["device"] == "cpu" else described["device"].removeprefix("NVIDIA ").lower()
        content = {
            "schema_version": 1,
            "name": f"{name}/{self.models['coder']}",
            "description": f"{self.models['coder']}, {described['device']}, vLLM {described['vllm']}",
            "device": {"name": described["device"], "kind": "cpu" if name == "cpu" else "gpu"},
            "model": self.models["coder"],
            "precision": "fp32" if self.tiny else "fp16",
            "batch_counts": "tokens in prefill; sequences, and their tokens in all, in decode",
            "measured_when": time.strftime("%Y-%m-%d"),
            "origin": {"repository": "this one; tests/real/vllm/agents_campaign.py"},
            "limits_of_data": f"Weights random. torch {described['torch']}, vLLM {described['vllm']}. Measured while "
            "a second engine stood ready on the same device and did nothing.",
            **self.section,
        }
        text = yaml.safe_dump(content, sort_keys=False, width=118, default_flow_style=None)
        (self.folder / "profile.yaml").write_text(text)

    def contention(self) -> None:
        long = 0.3 if self.tiny else 0.9
        kept: list[dict[str, Any]] = []
        pairs: list[tuple[Any, Any]] = [(a, None) for a in LOADS]
        pairs += [(a, b) for i, a in enumerate(LOADS) for b in LOADS[i:]]
        first, second = self.backend.engines["coder"], self.backend.engines["judge"]
        for a, b in pairs:
            if self.tiny and "prefill" in (a[0], (b or a)[0]) and max(a[1], (b or a)[1]) > 1000:
                continue
            begin = time.monotonic() + ((0.6 if self.tiny else 1.2) if "decode" in (a[0], (b or a)[0]) else 0.15)
            asked = [(first, a)] + ([(second, b)] if b else [])
            for engine, given in asked:
                engine.pipe.send(("call", spell, *given, 512, begin, begin + long))
            steps = [engine.pipe.recv() for engine, _ in asked]
            kept.append({"loads": [a, b], "steps": [flat(s) for s in steps]})
            means = [round(1e3 * sum(s.end - s.start for s in made) / max(1, len(made)), 2) for made in steps]
            self.say("pair", a, b, "steps", [len(s) for s in steps], "mean ms", means)
            self.keep("pairs", kept)

    def switch(self) -> None:
        found = self.backend.engines["coder"].ask(("call", switching, 4, 501, 4 if self.tiny else 12))
        self.keep("switching", found)
        medians = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
        self.say("switching", medians)

    def tools(self) -> None:
        from servetwin.real.tools.sandbox import Limits
        from servetwin.real.tools.script_tool import ScriptTool

        tool = ScriptTool(self.folder / "scripts", Limits(strict=False))
        result = tool.call(0)
        if not result.ok:
            raise RuntimeError(result.reason)
        self.values = [round(v, 5) for v in tool.seconds()]
        self.tool = True
        self.say("scripts", self.values, result)

    def capacity(self) -> float:
        """Requests per second if the engines took turns, decoding 16 at a time."""
        from servetwin.profiles import load as load_profile

        table = load_profile(str(self.folder / "profile.yaml")).tokens("measured")
        if self.tiny:
            return 2.0
        seconds = 2 * table.prefill(560) + table.prefill(1340) + 3 * 80 * table.decode(16, 16 * 700) / 16
        self.say("a request takes", round(seconds, 4), "s of the device")
        return float(1.0 / seconds)

    def runs(self) -> None:
        capacity = self.capacity()
        spell_s = 4.0 if self.tiny else 11.0
        kept: list[dict[str, Any]] = []
        small = {"c0": 20, "c1": 60, "j0": 30, "j1": 90, "o0": 4, "o1": 16, "limit": 32, "slo": 20.0}
        large = {"c0": 300, "c1": 820, "j0": 980, "j1": 1594, "o0": 40, "o1": 120, "limit": 96, "slo": 3.0}
        for share in SHARES:
            for policy in POLICIES:
                name = f"{policy}-{share:g}"
                if self.left() < spell_s + 8.0:
                    self.say("no time for", name)
                    continue
                rate = round(capacity * share, 2)
                text = EXPERIMENT.format(
                    requests=max(8, int(rate * spell_s)),
                    rate=rate,
                    policy=policy,
                    profile=self.folder / "profile.yaml",
                    values=self.values,
                    scripts=self.folder / "scripts",
                    seed=int(10 * share),
                    **(small if self.tiny else large),
                )
                if not self.tool:
                    text = without_tool(text)
                (self.folder / f"{name}.yaml").write_text(text)
                try:
                    kept.append(self.one(name, share, rate, policy, text))
                    self.keep("runs", kept)
                except Exception as error:
                    self.say("broken", name, type(error).__name__, error)
                    traceback.print_exc()

    def one(self, name: str, share: float, rate: float, policy: str, text: str) -> dict[str, Any]:
        experiment = load(self.folder / f"{name}.yaml")
        for spec in experiment.deployment.workers:
            if spec.threads is None:
                module = spec.modules[0]
                # These engines were started with the memory that this campaign gives them.
                settings, make = self.backend._settings(experiment, spec)
                self.backend._of[module] = EngineSetup(self.backend._options(experiment, spec), settings, make)
        folder = self.folder / "records" / name
        report = self.backend.run(experiment, folder)
        summary = report.summary.as_dict()
        told = json.loads((folder / "real.json").read_text())
        keys = ("requests", "completed", "met", "attainment", "request_goodput", "mean_e2el_ms")
        self.say(name, "rate", rate, {k: summary[k] for k in keys if k in summary}, json.dumps(told.get("tools")))
        lines = (folder / "requests.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
        return {
            "name": name,
            "share": share,
            "rate": rate,
            "policy": policy,
            "experiment": text,
            "summary": summary,
            "real": told,
            "requests": [json.loads(line) for line in lines],
            "steps": [
                [
                    s["worker"],
                    round(s["start"], 6),
                    round(s["end"], 6),
                    sum(n for _, n, _ in s.get("prefill", ())),
                    len(s.get("prefill", ())),
                    s.get("decode"),
                    s.get("context"),
                ]
                for s in steps
            ],
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--model", default="codellama-7b")
    parser.add_argument("--second", default="llava-1.5-7b")
    args = parser.parse_args()
    campaign = Campaign(args.folder.resolve(), args.seconds, args.model, args.second)
    try:
        campaign.start()
        campaign.profile()
        for part in (campaign.tools, campaign.contention, campaign.switch, campaign.runs):
            try:
                part()
            except Exception as error:
                campaign.say("broken", part.__name__, type(error).__name__, error)
                traceback.print_exc()
    finally:
        campaign.say("done")
        campaign.backend.close()


if __name__ == "__main__":
    sys.exit(main())
