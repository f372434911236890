"""A profile as `servetwin profile` makes it, the steps that it was made of, and blind runs after it, on one engine.

::

    steps_campaign.py FOLDER --model llama-3.1-8b --seconds 560 [--tiny] [--after FILE] [--cores 36]
    steps_campaign.py FOLDER --model llama-3.1-8b --seconds 300 --profile FILE --only 10,11,12
    steps_campaign.py FOLDER --model llama-3.1-8b --seconds 590 --caching

The engine is that of `servetwin profile MODEL` (vLLM's defaults but for prefix caching; with ``--caching`` that is on
as well, the profile is that of ``--vllm enable_prefix_caching=true``, and the runs are those of prompts that begin
alike). First the profile is made:
``profile.yaml``, and ``steps-MODEL.npz`` with all parts (`servetwin.real.vllm.profiling.measuring.step_files`). Then
runs of requests with heavy-tailed lengths under several policies, by `servetwin run --backend vllm`'s own code, as
far as the time goes: a folder each under ``runs/``. A failure of one part ends no more than itself, and the process
ends by itself after *seconds*.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def lognormal(median: int, p90: int, high: int) -> dict[str, Any]:
    return {"draw": "lognormal", "median": median, "p90": p90, "low": 4, "high": high}


#: Lengths of requests, by kind and model, prompt and output (lognormal: median, 90th percentile, most).
LENGTHS = {
    "chat": {
        "llama-3.1-8b": (lognormal(200, 800, 8000), lognormal(90, 220, 1500)),
        "opt-13b": (lognormal(200, 800, 1700), lognormal(90, 220, 340)),
        "tiny-llama": (lognormal(60, 200, 400), lognormal(8, 20, 40)),
    },
    "long": {
        "llama-3.1-8b": (lognormal(2000, 5000, 8000), lognormal(20, 60, 400)),
        "opt-13b": (lognormal(800, 1600, 1900), lognormal(15, 40, 120)),
        "tiny-llama": (lognormal(200, 400, 600), lognormal(3, 6, 10)),
    },
}
#: Those of the NeuStream artifact's experiments with OPT (Figures 14 and 15).
LENGTHS["figure"] = {
    "opt-13b": ({"draw": "listed", "name": "neustream-llm-prompts"}, {"draw": "constant", "tokens": 300}),
    "tiny-llama": (lognormal(60, 200, 400), {"draw": "constant", "tokens": 20}),
}
LENGTHS["due"] = LENGTHS["chat"]
#: What requests of a kind are judged by: limits in milliseconds, or deadlines of their tokens, as NeuStream's.
DEADLINES = {"prefill": 5.0, "decode": 2.0}
SLOS: dict[str, dict[str, Any]] = {
    "chat": {"prefill": None, "decode": None, "limits": {"ttft_ms": 150, "tpot_ms": 18}},
    "long": {"prefill": None, "decode": None, "limits": {"ttft_ms": 600, "tpot_ms": 60}},
    "figure": DEADLINES,
    "due": DEADLINES,
}
#: Prompts that begin alike (with ``--caching``). *shared*: eight system prompts of 1024 tokens, and what is asked
#: after them. *turns*: a prompt is the history of one of some conversations, as far as it is long: turns of chats.
LENGTHS["shared"] = {
    "llama-3.1-8b": ({**lognormal(1400, 2200, 8000), "low": 1040}, lognormal(90, 220, 1500)),
    "tiny-llama": ({**lognormal(160, 250, 400), "low": 110}, lognormal(8, 20, 40)),
}
LENGTHS["turns"] = {
    "llama-3.1-8b": (lognormal(1500, 4000, 8000), lognormal(90, 220, 1500)),
    "tiny-llama": (lognormal(150, 300, 400), lognormal(8, 20, 40)),
}
PREFIXES = {
    "shared": {"llama-3.1-8b": (8, 1024), "tiny-llama": (2, 100)},
    "turns": {"llama-3.1-8b": (60, 8000), "tiny-llama": (4, 400)},
}
SLOS["shared"] = SLOS["chat"]
SLOS["turns"] = {"prefill": None, "decode": None, "limits": {"ttft_ms": 250, "tpot_ms": 20}}
#: Policies that are compared on the same requests.
COMPARED = ("slack-admission", "neustream-llm", "vllm-v1")


def compared(*loads: tuple[str, float]) -> tuple[tuple[str, str, dict[str, Any], float, float, int | None], ...]:
    """A run under each of `COMPARED` for each of *loads*, (kind of lengths, rate)."""
    return tuple((kind, policy, {}, rate, 1.0, None) for kind, rate in loads for policy in COMPARED)


#: With ``--caching``: below, at and above the knee of each kind, and bursts, under vLLM's policy and one of ours.
CACHING_RUNS = tuple(
    (kind, policy, {}, rate, cv, None)
    for kind, rate, cv in (
        ("shared", 40.0, 1.0),
        ("turns", 30.0, 1.0),
        ("shared", 48.0, 1.0),
        ("turns", 40.0, 1.0),
        ("shared", 32.0, 1.0),
        ("turns", 24.0, 1.0),
        ("shared", 24.0, 4.0),
    )
    for policy in ("vllm-v1", "slack-admission")
)
#: Runs, what matters most first: kind of lengths, policy, its parameters, rate, cv, tokens a step (None: as vLLM).
RUNS: dict[str, tuple[tuple[str, str, dict[str, Any], float, float, int | None], ...]] = {
    "llama-3.1-8b": (
        ("chat", "vllm-v1", {}, 45.0, 1.0, None),
        ("chat", "sarathi", {"chunk": 512}, 40.0, 1.0, None),
        ("chat", "edf-llm", {}, 45.0, 1.0, None),
        ("chat", "slos-serve", {}, 45.0, 1.0, None),
        ("chat", "neustream-llm", {}, 40.0, 1.0, None),
        ("chat", "vllm-v1", {}, 30.0, 4.0, 2048),
        ("chat", "vllm-v1", {}, 56.0, 1.0, None),
        ("long", "vllm-v1", {}, 11.0, 1.0, None),
        ("chat", "sarathi", {"chunk": 512}, 30.0, 1.0, None),
        ("chat", "slos-serve", {}, 36.0, 4.0, 2048),
        ("long", "sarathi", {"chunk": 2048}, 11.0, 1.0, None),
        ("chat", "edf-llm", {}, 36.0, 4.0, 2048),
        ("chat", "neustream-llm", {}, 55.0, 1.0, None),
        ("chat", "vllm-v1", {}, 30.0, 1.0, 512),
        ("long", "edf-llm", {}, 9.0, 4.0, 2048),
        ("chat", "sarathi", {"chunk": 512}, 50.0, 1.0, None),
        ("chat", "vllm-v1", {}, 30.0, 1.0, None),
        ("long", "neustream-llm", {}, 11.0, 1.0, None),
        ("chat", "slos-serve", {}, 56.0, 1.0, None),
        ("chat", "neustream-llm", {}, 24.0, 4.0, None),
        ("chat", "edf-llm", {}, 30.0, 1.0, 512),
        ("long", "vllm-v1", {}, 13.0, 1.0, 2048),
        ("chat", "sarathi", {"chunk": 512}, 30.0, 4.0, 2048),
        ("long", "slos-serve", {}, 11.0, 1.0, None),
        # 24 to 27: policies that had never run on a GPU before.
        ("chat", "vtc", {}, 45.0, 1.0, None),
        ("chat", "andes", {}, 40.0, 1.0, None),
        ("chat", "fastserve", {}, 40.0, 1.0, None),
        ("chat", "fastserve", {}, 30.0, 1.0, None),
    ),
    "opt-13b": (
        ("chat", "vllm-v1", {}, 20.0, 1.0, None),
        ("chat", "sarathi", {"chunk": 512}, 18.0, 1.0, None),
        ("chat", "edf-llm", {}, 20.0, 1.0, None),
        ("chat", "slos-serve", {}, 20.0, 1.0, None),
        ("long", "vllm-v1", {}, 18.0, 1.0, 2048),
        ("chat", "neustream-llm", {}, 18.0, 4.0, None),
        # 06 to 23: at the knee and above it, then below.
        *compared(("figure", 13.0), ("figure", 18.0), ("due", 14.0), ("due", 22.0), ("figure", 10.0), ("due", 10.0)),
    ),
    "llama-3.1-8b caching": CACHING_RUNS,
    "tiny-llama caching": (
        ("shared", "vllm-v1", {}, 20.0, 1.0, None),
        ("turns", "slack-admission", {}, 20.0, 1.0, None),
    ),
    "tiny-llama": (
        ("chat", "vllm-v1", {}, 20.0, 1.0, None),
        ("long", "sarathi", {"chunk": 64}, 20.0, 1.0, None),
        ("chat", "slos-serve", {}, 20.0, 1.0, None),
        *compared(("figure", 20.0), ("due", 20.0)),
    ),
}


def requests_of(model: str, kind: str, rate: float) -> int:
    """Requests of a run: at least 600 (300 where policies are compared), and for 14 seconds."""
    least = 300 if SLOS[kind] is DEADLINES else 600
    return max(least, round(14.0 * rate)) if model != "tiny-llama" else 20


#: Requests that run at once.
LIMIT = 256
#: Policies that compute prompts whole, in steps of their own: none of these requests is longer than a step.
WHOLE = ("vtc", "andes", "fastserve")


def runs_of(model: str, caching: bool) -> tuple[tuple[str, str, dict[str, Any], float, float, int | None], ...]:
    """The runs of *model*; with *caching*, those of prompts that begin alike."""
    return RUNS.get(f"{model} caching" if caching else model, ())


def experiment_of(model: str, number: int, profile: str, limit: int, caching: bool = False) -> dict[str, Any]:
    """The content of the experiment file of a run."""
    kind, policy, params, rate, cv, budget = runs_of(model, caching)[number]
    prompt, output = LENGTHS[kind][model]
    engine: dict[str, Any] = {"whole_prompt": True, **({"max_batched_tokens": budget} if budget else {})}
    if policy in WHOLE:
        engine["max_model_len"] = 8192
    lengths: dict[str, Any] = {"prompt": prompt, "output": output}
    if caching:
        engine["enable_prefix_caching"] = True
        groups, tokens = PREFIXES[kind][model]
        lengths["prefix"] = {"draw": "shared", "groups": groups, "tokens": tokens}
    return {
        "name": f"{model}-{number:02d}-{policy}-{kind}",
        "pipeline": {"modules": {"llm": {"kind": "llm"}}},
        "workload": {
            "requests": requests_of(model, kind, rate),
            "arrivals": {"process": "gamma", "rate": rate, "cv": cv},
            "lengths": {"llm": lengths},
        },
        # The same requests for each of the policies that are compared.
        "seed": 100 + (round(rate) if SLOS[kind] is DEADLINES else number // 2 if caching else number),
        "slo": SLOS[kind],
        "policy": {"name": policy, "params": params},
        "deployment": {
            "devices": {"gpu0": profile},
            "workers": [
                {
                    "modules": ["llm"],
                    "device": "gpu0",
                    "limit": min(limit, LIMIT),
                    "engine": engine,
                }
            ],
        },
    }


class Campaign:
    """One engine, and all that is done with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.args, self.end = args, args.seconds
        self.folder: Path = args.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        #: Its name: a folder with a ``config.json`` goes by its own.
        self.model = Path(args.model).name
        self.profile: Path = args.profile or self.folder / f"profile-{self.model}.yaml"

    def left(self) -> float:
        return float(self.end - (time.monotonic() - self.began))

    def say(self, *words: object) -> None:
        line = f"{time.monotonic() - self.began:7.1f} {self.args.model} " + " ".join(map(str, words))
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def safely(self, what: Callable[..., Any], *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", getattr(what, "__name__", what), traceback.format_exc()[-2500:])

    def watch(self) -> None:
        """End the process if it is still there well after its time."""

        def ring() -> None:
            time.sleep(max(0.0, self.left() + 8))
            self.say("OUT OF TIME")
            os._exit(3)

        threading.Thread(target=ring, daemon=True).start()

    def start(self) -> None:
        from servetwin.experiments.backends.profile_llm import plan_for
        from servetwin.real.vllm.engine import EngineOptions, VllmEngine

        if self.args.tiny:
            options = EngineOptions(
                model=self.args.model, kv_bytes=64 << 20, max_sequences=64, max_batched_tokens=1024, asynchronous=True
            )
        else:
            options, _ = plan_for(self.args.model)
        options = dataclasses.replace(options, enable_prefix_caching=self.args.caching)
        self.engine = VllmEngine(options)
        self.say(json.dumps(self.engine.describe()))

    def make_profile(self) -> None:
        from servetwin.experiments.backends.profile_llm import composed, text_of
        from servetwin.profiles import load, verdict
        from servetwin.real.vllm.profiling.measuring.step_files import append

        def keep(parts: list[Any]) -> None:
            for number, part in enumerate(parts):
                append(self.folder / f"steps-{self.model}.npz", number, part)
            from servetwin.real.vllm.profiling.compose import described

            (self.folder / f"engine-{self.model}.json").write_text(json.dumps(described(self.engine)))

        share = 0.1 if self.args.tiny else 1.0
        content = composed(
            self.engine,
            f"h200-steps/{self.model}",
            self.args.model,
            time.strftime("%Y-%m-%d"),
            f"servetwin profile {self.args.model}{' --vllm enable_prefix_caching=true' * self.args.caching}",
            seconds=share * self.args.compose,
            judged=share * self.args.judged,
            progress=lambda what, done, _: self.say(done, what),
            keep=keep,
        )
        self.profile.write_text(text_of(content))
        data = load(str(self.profile)).data
        for line in (*verdict.lines(data), *verdict.blind(data)):
            self.say(line)

    def cores(self) -> None:
        """The same traffic in turns with and without the search for an undisturbed core: what launches take."""
        import numpy as np
        from servetwin.real.vllm.launches.launch_clock import LaunchClock
        from servetwin.real.vllm.profiling.measuring import blind_traffic

        clock, pinned = LaunchClock(self.engine.core), self.engine.pinned
        share = self.args.cores / 6
        for turn in range(6):
            self.engine.pinned = pinned if turn % 2 else None
            began = time.monotonic()
            with self.engine.undisturbed():
                blind_traffic.play_load(
                    self.engine, None, blind_traffic.LOADS[0], self.args.cores_rate, share, random.Random(turn)
                )
            rows = [(at.launched, at.sampled, at.device, at.idle) for at in clock.take()]
            np.save(self.folder / f"cores-{turn}-{self.model}.npy", np.array(rows, dtype=np.float32))
            spread = np.percentile([1e3 * row[0] for row in rows], [5, 25, 50, 75, 95]).round(2).tolist()
            moves = self.engine.pinned.moves if self.engine.pinned is not None else None
            self.say("cores", turn, f"moves {moves}, launches ms", spread, f"{time.monotonic() - began:.1f} s")
        self.engine.pinned = pinned

    def runs(self) -> None:
        import numpy as np
        import yaml
        from servetwin.experiments.backends.vllm import VllmBackend
        from servetwin.experiments.spec.loading import load
        from servetwin.real.vllm.launches.launch_clock import LaunchClock

        # How long the launches of each run took tells whether the host was as fast as when the profile was made.
        clock = LaunchClock(self.engine.core)

        for number, (kind, policy, params, rate, cv, budget) in enumerate(
            runs_of(self.args.model, self.args.caching)
        ):
            if self.args.only and number not in self.args.only:
                continue
            need = requests_of(self.args.model, kind, rate) / rate * (1.3 if cv > 1 else 1.15) + 6
            if self.left() < need + 4:
                self.say("no time for", number, policy, rate)
                continue
            most = self.engine.options.max_sequences
            content = experiment_of(self.args.model, number, str(self.profile), most, self.args.caching)
            file = self.folder / f"{content['name']}.yaml"
            file.write_text(yaml.safe_dump(content, sort_keys=False))
            backend = VllmBackend(asynchronous=self.engine.options.asynchronous, foreign=True)
            # One engine serves all: what a run wants of another budget or limit is set on it.
            backend._engine = lambda *_: self.engine  # type: ignore[method-assign]
            scheduler = self.engine.scheduler
            was = scheduler.max_num_scheduled_tokens
            scheduler.max_num_scheduled_tokens = min(budget or was, was)
            try:
                clock.take()
                report = backend.run(load(str(file)), self.folder / "runs" / content["name"])
                self.say(content["name"], kind, policy, params, rate, cv, budget, json.dumps(report.as_dict())[:300])
                rows = [(at.launched, at.sampled, at.device, at.idle) for at in clock.take()]
                np.save(self.folder / "runs" / f"{content['name']}-launches.npy", np.array(rows, dtype=np.float32))
            except Exception:
                self.say("FAILED", content["name"], traceback.format_exc()[-2500:])
            finally:
                scheduler.max_num_scheduled_tokens = was


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="llama-3.1-8b", help="one that has runs, or a folder: a profile, no runs")
    parser.add_argument("--seconds", type=float, required=True, help="from the start of this process, or of --after")
    parser.add_argument("--compose", type=float, default=225.0)
    parser.add_argument("--judged", type=float, default=50.0)
    parser.add_argument("--only", type=lambda text: [int(x) for x in text.split(",")], help="runs by number: 0,3,7")
    parser.add_argument("--profile", type=Path, help="one that was made before: none is made")
    parser.add_argument("--cores", type=float, default=0.0, help="seconds for what an undisturbed core changes")
    parser.add_argument("--cores-rate", type=float, default=20.0, help="requests a second for that")
    parser.add_argument("--caching", action="store_true", help="with vLLM's prefix cache, prompts that begin alike")
    parser.add_argument("--after", type=Path, default=None)
    parser.add_argument("--tiny", action="store_true", help="on a CPU")
    args = parser.parse_args(argv)

    from servetwin.real.vllm.engine import prepare_environment

    prepare_environment()
    import vllm.v1.engine.llm_engine  # noqa: F401

    if args.tiny:
        import ahead

        ahead.force()
    while args.after is not None and not args.after.exists():
        time.sleep(0.1)
    campaign = Campaign(args)
    campaign.watch()
    campaign.say("at", time.strftime("%H:%M:%S"))
    campaign.safely(campaign.start)
    if not hasattr(campaign, "engine"):
        os._exit(1)
    if args.cores:
        campaign.safely(campaign.cores)
    if args.profile is None:
        campaign.safely(campaign.make_profile)
    if campaign.profile.exists():
        campaign.safely(campaign.runs)
    campaign.say("over")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
