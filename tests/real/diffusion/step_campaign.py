"""The time of a denoising step, however its network is executed; then runs with what measured best.

    python tests/real/diffusion/step_campaign.py measure --device cuda:0 --out DIR --seconds 200 [MODEL ...]
    python tests/real/diffusion/step_campaign.py all --device cuda:0 --out DIR --seconds 550 --pack $OUT [MODEL ...]

Each way to execute each model has a process of its own. They get ready at once (compiling is work for the processor),
and whoever is not in the end is named and left out; then they measure one after the other, with nothing else on the
device, convolutions tuned anew. Latents are compared with those of the first way, and of a request alone with its own
among others. `measure` leaves ``steps.json`` and prints a table; `all` goes on to `campaign.py`: a profile with what
was quickest at batches 1 and 8, and runs that it was taken before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

#: Requests in a batch, and between which of them the quickest way is chosen (geometric mean).
SIZES = (1, 2, 4, 8, 16)
JUDGED = (1, 8)
#: Seconds for which each size is measured, and denoising steps after which latents are compared.
POINT, STEPS = 0.3, 5
#: Latents that differ by more than this share of their size are wrong; half precision and guidance leave some 1 %.
ALIKE = 0.05
#: Share of the time in which everything must be ready to be measured.
READY = 0.62

FUSED = {"fused_projections": True}
CUDNN = {"attention": "cudnn"}
CONVOLUTIONS = {
    "graphs": {},
    "channels last": {"channels_last": True},
    "fused, cudnn": {"channels_last": True, **FUSED, **CUDNN},
    "blocks": {"compile": "blocks"},
    "blocks, fused": {"compile": "blocks", **FUSED},
    "blocks, fused, cudnn": {"compile": "blocks", **FUSED, **CUDNN},
    "whole, fused, cudnn": {"compile": "whole", **FUSED, **CUDNN},
}
TRANSFORMER = {
    "graphs": {},
    "fused, cudnn": {**FUSED, **CUDNN},
    "blocks": {"compile": "blocks"},
    "blocks, fused": {"compile": "blocks", **FUSED},
    "blocks, fused, cudnn": {"compile": "blocks", **FUSED, **CUDNN},
    "blocks, fused, tuned": {"compile": "blocks", **FUSED, "mode": "max-autotune-no-cudagraphs"},
    "whole, fused, cudnn": {"compile": "whole", **FUSED, **CUDNN},
}
MODELS = {
    "sd15-512": CONVOLUTIONS,
    "dit-xl2-256": TRANSFORMER,
    "tiny-sd": {k: CONVOLUTIONS[k] for k in ("graphs", "channels last", "blocks, fused")},
    "tiny-dit": {k: TRANSFORMER[k] for k in ("graphs", "blocks, fused")},
}


# -- one way ---------------------------------------------------------------------------------------------------


def serve_one(model: str, variant: str, out: Path, device: str) -> None:
    """Get ready, say so, wait for a line on standard input, measure."""
    import torch
    from servetwin.real.diffusion.device_slots import DeviceSlots
    from servetwin.real.diffusion.models import find
    from servetwin.real.diffusion.options import Options

    began = time.perf_counter()
    options = MODELS[model][variant]
    kind = find(model)
    slots = DeviceSlots(kind, Options.of({"device": device, "slots": max(SIZES), **options}), torch.device(device))
    loaded = time.perf_counter()
    made(slots)  # convolutions are not tuned yet: that takes a device of one's own
    facts = {"options": options, "execution": slots.model.execution.as_dict()}
    facts |= {"loaded_s": loaded - began, "ready_s": time.perf_counter() - loaded}
    mark(out, model, variant, "ready").touch()
    if not sys.stdin.readline():
        return
    torch.backends.cudnn.benchmark = True
    begin = time.perf_counter()
    slots.runners[kind.loop] = made(slots)
    facts["captured_s"] = time.perf_counter() - begin
    slots.model.state["latents"].normal_()  # zeros would be quicker than what is served
    facts["ms"] = {str(n): timed(slots, n) for n in SIZES}
    latents = {f"{n}": latents_of(slots, n) for n in (1, 4)}
    torch.save(latents, mark(out, model, variant, "pt"))
    mark(out, model, variant, "json").write_text(json.dumps(facts))


def mark(out: Path, model: str, variant: str, ending: str) -> Path:
    """A file that the process of this way leaves."""
    return out / f"{model}.{variant.replace(', ', '-').replace(' ', '-')}.{ending}"


def made(slots):
    """A runner of the loop with all `SIZES` compiled and captured."""
    import torch
    from servetwin.real.diffusion.graph_runner import GraphRunner

    kind, options = slots.kind, slots.options
    bodies = {None: slots.model.bodies[kind.loop]}
    runner = GraphRunner(kind.loop, bodies, max(SIZES), slots.device, eager=options.eager)
    with torch.no_grad():
        runner.warm(SIZES)
    return runner


def timed(slots, n: int) -> dict[str, float]:
    """A step of *n* requests in milliseconds: launched one after the other without a pause, as in a busy run."""
    import torch

    runner, gpu = slots.runners[slots.kind.loop], slots.gpu
    rows = runner.rows()
    rows[:] = 0.0
    rows[:, 0] = range(runner.limit)
    rows[:, 1:5] = (500.0, 1.0, 1.0, 0.0)
    took = []
    with torch.no_grad():
        for _ in range(5):
            runner.launch(n)
        until = time.perf_counter() + POINT
        while time.perf_counter() < until or len(took) < 5:
            if gpu:
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(9)]
                marks[0].record()
                for after in marks[1:]:
                    runner.launch(n)
                    after.record()
                torch.cuda.synchronize(slots.device)
                took += [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
            else:
                begin = time.perf_counter()
                runner.launch(n)
                took.append(1e3 * (time.perf_counter() - begin))
    took.sort()
    return {"median": statistics.median(took), "p95": took[int(0.95 * (len(took) - 1))], "samples": len(took)}


def latents_of(slots, n: int):
    """Those of the first *n* requests in one batch, after `STEPS` steps."""
    import torch
    from servetwin.core import Request

    loop = slots.kind.loop
    slots.reset()
    with torch.no_grad():
        batch = [slots.take(Request(i, 0.0, 1.0, {loop: STEPS})) for i in range(n)]
        for progress in batch:
            slots.begin(progress, STEPS)
        for _ in range(STEPS):
            slots.step(batch)
        return torch.stack([slots.model.state["latents"][p.slot] for p in batch]).float().cpu()


# -- all of them -----------------------------------------------------------------------------------------------


def measure(models: list[str], out: Path, device: str, seconds: float) -> dict:
    """The facts of each model's ways; what broke or took too long has none."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(out / "programs"),
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    environment |= {"OMP_NUM_THREADS": "1"}
    processes = {}
    for model in models:
        for variant in MODELS[model]:
            command = [sys.executable, __file__, "one", model, variant, "--device", device, "--out", str(out)]
            with mark(out, model, variant, "log").open("w") as log:
                processes[model, variant] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
                )
    waiting = dict(processes)
    while waiting and time.monotonic() < began + READY * seconds:
        time.sleep(0.2)
        waiting = {
            key: process
            for key, process in waiting.items()
            if process.poll() is None and not mark(out, *key, "ready").exists()
        }
    for process in waiting.values():
        process.kill()
        process.wait()
    print(f"[{time.monotonic() - began:5.1f}] ready but for {list(waiting) or 'none'}", flush=True)
    for process in processes.values():
        if process.poll() is None:
            try:
                process.communicate("go\n", timeout=max(began + seconds - time.monotonic(), 1.0))
            except (subprocess.TimeoutExpired, BrokenPipeError):
                process.kill()
                process.wait()
    found = gathered(models, out)
    (out / "steps.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    print(f"[{time.monotonic() - began:5.1f}] measured", flush=True)
    return found


def gathered(models: list[str], out: Path) -> dict:
    """What the processes left, with how far latents are from those of the first way."""
    import torch

    found: dict = {}
    for model in models:
        found[model], first = {}, None
        for variant in MODELS[model]:
            path = mark(out, model, variant, "json")
            if not path.exists():
                lines = mark(out, model, variant, "log").read_text().splitlines()
                print(f"{model}, {variant}: nothing measured; {lines[-1][:300] if lines else 'not ready in time'}")
                continue
            facts = json.loads(path.read_text())
            made = torch.load(mark(out, model, variant, "pt"))
            first = made if first is None else first
            facts["difference"] = apart(made["4"], first["4"])
            facts["company"] = apart(made["4"][:1], made["1"])
            found[model][variant] = facts
    return found


def apart(a, b) -> float:
    """How far *a* is from *b*, as a share of the size of *b*."""
    return float((a - b).norm() / b.norm())


def show(found: dict) -> None:
    """A table of medians in milliseconds."""
    for model, variants in found.items():
        print(f"\n{model:34}" + "".join(f"{n:>9}" for n in SIZES) + "   ready_s captured_s  differs  company")
        for variant, facts in variants.items():
            times = "".join(f"{facts['ms'][str(n)]['median']:9.3f}" for n in SIZES)
            seconds = f"{facts['ready_s']:10.1f} {facts['captured_s']:10.1f}"
            print(f"  {variant:32}{times}{seconds}{facts['difference']:9.4f}{facts['company']:9.4f}")


def quickest(variants: dict) -> str:
    """The way of the smallest geometric mean over `JUDGED`, among those whose latents are right."""

    def score(variant: str) -> float:
        return statistics.geometric_mean(variants[variant]["ms"][str(n)]["median"] for n in JUDGED)

    return min((v for v, facts in variants.items() if max(facts["difference"], facts["company"]) < ALIKE), key=score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "all"):
        some = commands.add_parser(name)
        some.add_argument("models", nargs="*", default=["dit-xl2-256", "sd15-512"])
        some.add_argument("--seconds", type=float, default=200.0, help="in which everything must be done")
        some.add_argument("--steps", type=float, default=205.0, help="of these, for measuring steps (all)")
        some.add_argument("--cells", type=int, default=2, help="how many cells of campaign.py are served (all)")
        some.add_argument("--policies", default="neustream,slack-batch,edf", help="which are served (all)")
        some.add_argument("--pack", type=Path, help="where to pack what is left")
    commands.add_parser("one")
    one = commands.choices["one"]
    one.add_argument("model")
    one.add_argument("variant")
    for each in commands.choices.values():
        each.add_argument("--device", default="cuda:0")
        each.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "one":
        serve_one(given.model, given.variant, given.out, given.device)
        return
    began = time.monotonic()
    steps = given.out / "steps"
    found = measure(given.models, steps, given.device, given.seconds if given.command == "measure" else given.steps)
    if given.pack is not None:
        with tarfile.open(given.pack / "steps.tgz", "w:gz") as tar:
            for path in (*steps.glob("*.json"), *steps.glob("*.log")):
                tar.add(path, arcname=f"steps/{path.name}")
    if given.command == "all":
        import campaign

        best = {model: variants[quickest(variants)]["options"] for model, variants in found.items() if variants}
        print(f"quickest: {json.dumps(best)}", flush=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(steps / "programs")
        left = given.seconds - (time.monotonic() - began)
        options = json.dumps(best)
        campaign.run(list(best), given.out / "runs", given.device, left, options, given.cells,
                     given.policies.split(","), given.pack)  # fmt: skip


if __name__ == "__main__":
    main()
