"""vLLM's own server with our scheduler in it, asked by vLLM's own bench client: predicted, measured, scored.

::

    bench_campaign.py FOLDER --model llama-3.1-8b --seconds 900 [--profile FILE]     on a GPU
    bench_campaign.py FOLDER --model tiny --seconds 120                              on a CPU

Without ``--profile`` the model is profiled first (`servetwin profile`). Then each run of `RUNS` is predicted: an
experiment under ``experiments/``, its simulation under ``predicted/``. One server per policy is started (``vllm serve
--scheduler-cls``), and ``vllm bench serve --save-detailed`` sends the same kind of requests, whose file comes to
``measured/``. The first server is first asked, idle, what it takes before its engine (`servetwin profile --url`:
``served.yaml``), and the runs are predicted with that, too (``predicted-served/``). At last ``servetwin score``
repeats what was sent; its tables come to ``scores/``. Everything is what a user does, by the same commands. A part
that fails ends no more than itself, and nothing is started for which there is no time. Scores need no GPU: what was
measured can be scored anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

#: By model: mean prompt and output and how far they range (vLLM's ``--random-range-ratio``), requests of a run,
#: limits in milliseconds, and the runs: policy, its parameters, requests a second, burstiness (1 / cv^2). A chunk has
#: room for a token of each sequence that may run, 1,024 of them.
RUNS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        # Long prompts and short outputs: server and client are Python, and handle each token.
        "lengths": (1500, 40, 0.8),
        "requests": 600,
        "limits": {"ttft_ms": 400, "tpot_ms": 50},
        "runs": (
            ("vllm-v1", {}, 16.0, 1.0),
            ("vllm-v1", {}, 19.0, 1.0),
            ("sarathi", {"chunk": 1024}, 16.0, 1.0),
            ("sarathi", {"chunk": 1024}, 14.0, 0.25),
            ("edf-llm", {}, 18.0, 1.0),
        ),
    },
    "opt-13b": {
        "lengths": (200, 60, 0.8),
        "requests": 600,
        "limits": {"ttft_ms": 150, "tpot_ms": 24},
        "runs": (("vllm-v1", {}, 12.0, 1.0), ("vllm-v1", {}, 18.0, 1.0), ("sarathi", {"chunk": 1024}, 16.0, 1.0)),
    },
    "tiny": {
        "lengths": (40, 12, 0.5),
        "requests": 40,
        "limits": {"ttft_ms": 500, "tpot_ms": 200},
        "runs": (("vllm-v1", {}, 20.0, 1.0),),
    },
}
#: The CPU's own profile and engine: too small to be worth measuring, and not the machine's own.
TINY = {
    "profile": "cpu/tiny-opt",
    "serve": [
        "--enforce-eager",
        "--dtype",
        "float32",
        "--block-size",
        "16",
        "--kv-cache-memory-bytes",
        str(64 << 20),
    ],
    "blocks": (64 << 20) // 1024 // 16 - 1,
}
#: ``vllm serve MODEL`` and ``vllm bench serve``: the command ``vllm`` itself does not start in builds for CPUs, whose
#: package has another name.
SERVER = ("-m", "vllm.entrypoints.openai.api_server", "--model")
CLIENT = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
#: Seconds that a server may take to start: weights, torch.compile, CUDA graphs.
START = 240.0


def word_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of so many words to *folder*: text of n words is n tokens, both ways."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, vocabulary)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Campaign:
    """A model, its profile, and what is run with both."""

    def __init__(self, folder: Path, model: str, seconds: float, profile: str | None = None) -> None:
        self.began, self.seconds = time.monotonic(), seconds
        self.folder, self.model = folder.resolve(), model
        # Experiments stand in a folder of their own, and paths in them are seen from there.
        self.profile = str(Path(profile).resolve()) if profile and Path(profile).exists() else profile
        self.what = RUNS[model]
        for name in ("model", "experiments", "predicted", "measured", "scores"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def tiny(self) -> bool:
        return self.model == "tiny"

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def say(self, *words: object) -> None:
        line = f"{time.monotonic() - self.began:7.1f} {self.model} " + " ".join(map(str, words))
        print(line, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def call(self, *command: object, seconds: float | None = None) -> str:
        """What a command of ServeTwin's, or with "-c" a program of another, prints; it fails if that does."""
        words = [str(word) for word in command]
        words = words if words[0] == "-c" else ["-m", "servetwin.experiments.cli", *words]
        limit = max(5.0, min(self.left(), seconds or self.left()))
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[-40:])}: {done.stdout[-1000:]} {done.stderr[-2000:]}")
        return done.stdout

    # -- model, profile, predictions ----------------------------------------------------------------------

    def make_model(self) -> None:
        from servetwin.real.vllm.engine import model_config

        dtype = "float32" if self.tiny else ("float16" if self.model.startswith("opt") else "bfloat16")
        config = model_config(self.model, dtype)
        (self.folder / "model" / "config.json").write_text(json.dumps(config))
        word_tokenizer(self.folder / "model", config["vocab_size"])

    def make_profile(self) -> None:
        if self.tiny:
            self.profile = str(TINY["profile"])
        if self.profile is None:
            self.profile = str(self.folder / "profile.yaml")
            self.say(self.call("profile", self.model, "--out", self.profile))

    def experiment(self, number: int) -> Path:
        """The file of the experiment that predicts run *number*."""
        policy, params, rate, burstiness = self.what["runs"][number]
        prompt, output, ratio = self.what["lengths"]
        engine: dict[str, Any] = {"whole_prompt": True}
        if self.tiny:
            engine["blocks"] = TINY["blocks"]

        def uniform(mean: int) -> dict[str, Any]:
            return {"draw": "uniform", "low": round(mean * (1 - ratio)), "high": round(mean * (1 + ratio))}

        content = {
            "name": f"{self.model}-{number:02d}-{policy}",
            "pipeline": {"modules": {"llm": {"kind": "llm"}}},
            "workload": {
                "requests": self.what["requests"],
                "arrivals": {"process": "gamma", "rate": rate, "cv": burstiness**-0.5},
                "lengths": {"llm": {"prompt": uniform(prompt), "output": uniform(output)}},
            },
            "slo": {"prefill": None, "decode": None, "limits": self.what["limits"]},
            "policy": {"name": policy, "params": params},
            "deployment": {
                "devices": {"gpu0": self.profile},
                "workers": [{"modules": ["llm"], "device": "gpu0", "limit": self.limit(), "engine": engine}],
            },
        }
        path = self.folder / "experiments" / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def limit(self) -> int:
        from servetwin.profiles import load

        assert self.profile is not None
        return int(load(self.profile).token_data.engine.max_sequences)

    def predict(self) -> list[Path]:
        """The experiments; each is simulated before anything is measured."""
        files = [self.experiment(number) for number in range(len(self.what["runs"]))]
        for path in files:
            self.say(self.call("run", path, "--out", self.folder / "predicted" / path.stem).replace("\n", "\n  "))
        return files

    # -- measurements ------------------------------------------------------------------------------------

    @contextmanager
    def servers(
        self, policy: str, params: dict[str, Any], devices: Sequence[int | None] = (None,)
    ) -> Iterator[list[str]]:
        """Running servers under *policy*, one on each of the GPUs numbered *devices* (None: the one that there is),
        started at once; their addresses."""
        started: list[tuple[subprocess.Popen[bytes], int, Path]] = []
        try:
            started.extend(self._start(policy, params, device, len(devices)) for device in devices)
            until = time.monotonic() + min(START, self.left())
            for process, port, log in started:
                while not self._answers(port):
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")
                    time.sleep(0.3)
            yield [f"http://127.0.0.1:{port}" for _, port, _ in started]
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                for process, _, _ in started:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                for process, _, _ in started:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(20)

    def _start(
        self, policy: str, params: dict[str, Any], device: int | None, of: int
    ) -> tuple[subprocess.Popen[bytes], int, Path]:
        """A server that starts, its port, and its log; of several each has cores of its own."""
        from servetwin.profiles import load

        assert self.profile is not None
        engine = load(self.profile).token_data.engine
        told = {"policy": policy, "params": params, "profile": self.profile}
        port = free_port()
        command = [*SERVER, str(self.folder / "model"), "--load-format", "dummy"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.model]
        command += ["--max-num-batched-tokens", str(engine.max_batched_tokens), "--max-num-seqs", str(self.limit())]
        command += ["--max-model-len", str(engine.max_model_len), "--no-enable-prefix-caching"]
        command += ["--scheduler-cls", "servetwin.real.vllm.scheduler.PolicyScheduler"]
        command += ["--additional-config", json.dumps({"servetwin": told})]
        if self.tiny:
            command += [str(word) for word in TINY["serve"]]
        elif engine.asynchronous:
            command += ["--async-scheduling"]
        environment, name = dict(os.environ), policy
        if device is not None:
            name = f"{policy}-gpu{device}"
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
            # What torch.compile makes is kept in a folder, which two that start at once must not share.
            environment["VLLM_CACHE_ROOT"] = str(self.folder / "cache" / f"gpu{device}")
            cores = sorted(os.sched_getaffinity(0))
            share = max(1, len(cores) // of)
            mine = ",".join(map(str, cores[share * device : share * (device + 1)] or cores))
            command = ["taskset", "-c", mine, sys.executable, *command]
        else:
            command = [sys.executable, *command]
        log = self.folder / f"server-{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)
        return process, port, log

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2).close()
        except OSError:
            return False
        return True

    def before_the_engine(self, url: str, files: Sequence[Path]) -> None:
        """What the idle server takes before its engine, and the runs as they will go with that."""
        served = self.folder / "served.yaml"
        self.say(self.call("profile", self.profile, "--url", url, "--text", "--out", served))
        for path in files:
            out = self.folder / "predicted-served" / path.stem
            told = self.call("run", path, "--set", f"deployment.devices.gpu0={served}", "--out", out)
            self.say(told.replace("\n", "\n  "))

    def bench(self, url: str, number: int, name: str) -> None:
        """Send the requests of run *number* by vLLM's client."""
        _, _, rate, burstiness = self.what["runs"][number]
        prompt, output, ratio = self.what["lengths"]
        command: list[object] = ["-c", CLIENT, "--backend", "vllm", "--base-url", url]
        command += ["--model", self.folder / "model", "--served-model-name", self.model]
        command += ["--dataset-name", "random", "--random-input-len", prompt, "--random-output-len", output]
        command += ["--random-range-ratio", ratio, "--num-prompts", self.what["requests"], "--seed", 100 + number]
        command += ["--request-rate", rate, "--burstiness", burstiness, "--temperature", 0, "--disable-tqdm"]
        command += ["--save-result", "--save-detailed", "--result-dir", self.folder / "measured"]
        told = self.call(*command, "--result-filename", f"{name}.json")
        self.say(told[told.find("===") :][:2500])

    def measure(self, files: Sequence[Path]) -> None:
        """One server after the other, each with all the runs of its policy."""
        served = list(dict.fromkeys((run[0], json.dumps(run[1])) for run in self.what["runs"]))
        for policy, params in served:
            if not self.tiny and self.left() < 150:
                self.say("no time for", policy)
                continue
            with self.servers(policy, json.loads(params)) as (url,):
                self.say("serving", policy, params, url)
                if not (self.folder / "served.yaml").exists():
                    self.safely(self.before_the_engine, url, files)
                for number, run in enumerate(self.what["runs"]):
                    need = self.what["requests"] / run[2] * 1.3 + 30
                    if run[0] != policy or json.dumps(run[1]) != params:
                        continue
                    if not self.tiny and self.left() < need:
                        self.say("no time for", run)
                        continue
                    self.safely(self.bench, url, number, files[number].stem)

    # -- scores ------------------------------------------------------------------------------------------

    def score(self, files: Sequence[Path]) -> None:
        for path in files:
            measured = self.folder / "measured" / f"{path.stem}.json"
            served = self.folder / "served.yaml"
            for by in (self.profile, served) if measured.exists() else ():
                if not Path(str(by)).exists() and by == served:
                    continue
                out = self.folder / "scores" / f"{path.stem}{'-served' if by == served else ''}.csv"
                out.unlink(missing_ok=True)
                command = ["score", measured, "--experiment", path, "--set", f"deployment.devices.gpu0={by}"]
                told = self.call(*command, "--out", out, "--jobs", 1, seconds=300.0)
                self.say(told.replace("\n", "\n  "))

    def safely(self, what: Any, *args: Any) -> Any:
        """What goes wrong in one part must not end the others."""
        try:
            return what(*args)
        except Exception:
            self.say("FAILED", getattr(what, "__name__", what), traceback.format_exc()[-3000:])

    def all(self) -> None:
        self.make_model()
        self.make_profile()
        files = self.predict()
        self.safely(self.measure, files)
        self.safely(self.score, files)
        self.say("over")


def arguments(told: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="llama-3.1-8b", choices=list(RUNS))
    parser.add_argument("--seconds", type=float, required=True, help="from the start of this process")
    parser.add_argument("--profile", default=None, help="taken on this machine; else it is taken first")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Campaign:
    args = arguments(__doc__, argv)
    campaign = Campaign(args.folder, args.model, args.seconds, args.profile)
    campaign.all()
    return campaign


if __name__ == "__main__":
    main()
