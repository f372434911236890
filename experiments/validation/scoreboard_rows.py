"""The rows of the scoreboard: recordings that are scored together, and what was said of them before."""

from __future__ import annotations

from dataclasses import dataclass

#: (mean, largest) of the absolute gaps, in percentage points of the requests.
Gap = tuple[float, float]

#: How far off the simulation may be at most.
LIMIT: Gap = (1.0, 3.0)

#: Rows that are within `LIMIT`, and stay so: a program that loses one of them is not merged.
WITHIN = (
    "h100-quiet/diffusion",
    "h200-policies/diffusion",
    "h200-compiled/diffusion",
    "h200-compiled-whole/diffusion",
    "h200-pair",
    "h200-long/llm-opt-13b.json.gz",
    "h100-long/llm-opt-13b.json.gz",
)


@dataclass(frozen=True)
class Row:
    """Runs that are scored together: what they are, and what was said of them before they were seen.

    *source* is below ``experiments/measured``. *blind* says in words whether the simulation was fixed before the runs
    were seen, and *predicted* is its gap as it was then, from *report*, where that was written down. Without *dates*
    nobody tells the simulation when the runs were made, nor what is known of that day. *readme* is whether the table
    in the README has it.
    """

    source: str
    what: str
    report: str
    blind: str
    predicted: Gap | None = None
    dates: bool = True
    readme: bool = True

    @property
    def name(self) -> str:
        return self.source if self.dates else f"{self.source}, dates unknown"

    @property
    def was_blind(self) -> str:
        """As `points.Point` says it."""
        if self.predicted is None:
            return "no"
        return "yes" if "nothing changed" in self.blind else "then"


ROWS = (
    Row(
        "neustream_ae.csv",
        "5 image models, RTX 4090, NeuStream's own runs",
        "reports/2026-11-neustream-artifact.md",
        "no: the speed of the host on each date is fitted to them",
    ),
    Row(
        "neustream_ae.csv",
        "the same, host speeds not known",
        "reports/2026-11-neustream-artifact.md",
        "no: costs were measured from their logs",
        dates=False,
    ),
    Row(
        "h100-quiet/diffusion",
        "5 image models, H100",
        "reports/2026-11-h100-diffusion.md",
        "profiles before runs, nothing fitted",
    ),
    Row(
        "h200/diffusion",
        "5 image models, H200",
        "reports/2026-11-h200-diffusion.md",
        "profiles before runs, nothing fitted",
    ),
    Row(
        "h200-policies/diffusion",
        "DiT-S/2 and Stable Diffusion 256, H200, our own policy beside NeuStream and EDF",
        "reports/2026-11-h200-policies.md",
        "predicted blind, nothing changed since",
        (0.29, 1.00),
    ),
    Row(
        "h200-compiled/diffusion",
        "DiT-XL/2, compiled, and Stable Diffusion 512, not compiled, H200, three policies at and above the knee",
        "reports/2026-11-h200-compiled.md",
        "predicted blind; the program has changed since",
        (0.27, 0.75),
    ),
    Row(
        "h200-compiled-whole/diffusion",
        "Stable Diffusion 512, compiled, H200, three policies at and above the knee",
        "reports/2026-11-h200-compiled.md",
        "predicted blind; the program has changed since",
        (0.68, 1.40),
    ),
    Row(
        "h200-pair",
        "DiT-XL/2 and Stable Diffusion 512 on two H200s, behind routers and with stages apart",
        "reports/2026-11-h200-pair.md",
        "predicted blind, nothing changed since",
        (0.52, 2.79),
    ),
    Row(
        "h200-shapes",
        "Stable Diffusion XL and FLUX.1 dev, requests of three sizes, H200, three policies and a new one",
        "reports/2026-11-h200-shapes.md",
        "predicted blind, nothing changed since",
        (0.42, 2.33),
    ),
    Row(
        "h200-long/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, four H200s",
        "reports/2026-11-h200-llm.md",
        "predicted blind; the program has changed since",
        (0.96, 4.17),
    ),
    Row(
        "h200-lengths/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, two H200s, five policies, two kinds of lengths",
        "reports/2026-11-h200-lengths.md",
        "predicted blind, nothing changed since",
        (2.11, 12.73),
    ),
    Row(
        "h200-lengths/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, five policies, two kinds of lengths",
        "reports/2026-11-h200-lengths.md",
        "predicted blind, nothing changed since",
        (3.07, 7.80),
    ),
    Row(
        "h200-policies/runs-opt-13b.json.gz",
        "OPT-13B in vLLM, H200, our own policy beside NeuStream's and vLLM's, at and past their knees",
        "reports/2026-11-h200-policies.md",
        "predicted blind, nothing changed since",
        (3.71, 13.12),
    ),
    Row(
        "h200-prefix/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM with its prefix cache, H200, shared prompts and histories, our policy beside vLLM's",
        "reports/2026-11-h200-prefix.md",
        "predicted blind, nothing changed since",
        (4.84, 17.18),
    ),
    Row(
        "h200-cached/runs-llama-3.1-8b.json.gz",
        "the same again, another H200, the profile mended before",
        "reports/2026-11-h200-cached.md",
        "predicted blind, nothing changed since",
        (3.84, 9.97),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, five policies, the profile made of requests too",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (1.42, 5.50),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b-caching.json.gz",
        "the same with vLLM's prefix cache, shared prompts and histories, our policy beside vLLM's",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (2.41, 5.43),
    ),
    Row(
        "h200-requests/runs-llama-3.1-8b-elsewhere.json.gz",
        "six of these runs on another machine, by the profile of the first: its host is slower",
        "reports/2026-11-h200-requests.md",
        "predicted blind, nothing changed since",
        (5.85, 20.83),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, eight policies, two kinds of lengths, one profile",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (5.30, 63.94),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b-caching.json.gz",
        "the same with vLLM's prefix cache, on the machine's other GPU",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (4.52, 10.01),
    ),
    Row(
        "h200-full/runs-llama-3.1-8b-caching-gpu1.json.gz",
        "these and four more on the first GPU ten minutes later, by the profile of the other",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (12.90, 36.41),
    ),
    Row(
        "h200-full/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, six policies, four kinds of loads, one profile",
        "reports/2026-11-h200-full.md",
        "predicted blind, nothing changed since",
        (2.33, 7.34),
    ),
    Row(
        "h200-servers/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in two of vLLM's own servers behind our router, two H200s, five routers",
        "reports/2026-11-h200-servers.md",
        "predicted blind, nothing changed since",
        (2.00, 4.70),
    ),
    Row(
        "h200-chat/runs-llama-3.1-8b.json.gz",
        "Llama-3.1-8B in vLLM as it is by default, H200, four policies",
        "reports/2026-11-h200-chat.md",
        "predicted blind; the program has changed since",
        (23.0, 65.6),
    ),
    Row(
        "h200-chat/runs-opt-13b.json.gz",
        "OPT-13B in vLLM as it is by default, H200, heavy-tailed lengths",
        "reports/2026-11-h200-chat.md",
        "predicted blind; the program has changed since",
        (1.47, 4.4),
    ),
    Row(
        "h100-long/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, four H100s",
        "reports/2026-11-h100-llm.md",
        "predicted blind; the program has changed since",
        (0.87, 3.28),
    ),
    Row(
        "h200-long/llm-opt-30b.json.gz",
        "OPT-30B in vLLM, H200, short runs",
        "reports/2026-11-h200-llm.md",
        "no",
    ),
    Row(
        "h200/agents.json.gz",
        "pipelines of two 7B language models and a tool, H200",
        "reports/2026-11-h200-agents.md",
        "profiles before runs, nothing fitted",
    ),
    Row(
        "rtx4090",
        "Llama-3.1-8B in vLLM, measured and its kernels timed by others, under 25 limits",
        "explanation/validation.md#a-run-that-others-measured",
        "no, and nothing fitted",
    ),
    Row(
        "h100/llm-opt-13b-eager.json.gz",
        "OPT-13B in vLLM without CUDA graphs, H100: runs that do not repeat themselves",
        "reports/2026-11-h100-llm.md",
        "no",
    ),
    Row(
        "h100-again/diffusion",
        "5 image models, H100, an earlier executor and profiler",
        "reports/2026-11-h100-diffusion.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h100-arrivals/diffusion",
        "DiT-S/2, H100, in between",
        "reports/2026-11-h100-diffusion.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h100/diffusion",
        "5 image models, H100, first session",
        "reports/2026-11-h100-diffusion.md",
        "no: two changes after the runs were seen",
        readme=False,
    ),
    Row(
        "h200-again/diffusion",
        "Palette and Stable Diffusion, H200, a later profiler",
        "reports/2026-11-h200-diffusion.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h200-quiet/diffusion",
        "DiT-S/2, H200, on cores that were looked for",
        "reports/2026-11-h200-diffusion.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h200-unquiet/diffusion",
        "DiT-S/2, H200, the same without that search",
        "reports/2026-11-h200-diffusion.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h200-long/llm-opt-66b.json.gz",
        "OPT-66B in vLLM, two H200s, short runs",
        "reports/2026-11-h200-llm.md",
        "no",
        readme=False,
    ),
    Row(
        "h100-knees/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, H100, short runs about the knee",
        "reports/2026-11-h100-llm.md",
        "predicted blind; the program has changed since",
        (4.0, 19.2),
        readme=False,
    ),
    Row(
        "h100-knees/llm-opt-30b.json.gz",
        "OPT-30B in vLLM, H100, short runs about the knee",
        "reports/2026-11-h100-llm.md",
        "predicted blind; the program has changed since",
        (3.8, 16.5),
        readme=False,
    ),
    Row(
        "h100-async/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, H100, short runs far above the knee",
        "reports/2026-11-h100-llm.md",
        "no",
        readme=False,
    ),
    Row(
        "h200/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, H200, synchronous, short runs",
        "reports/2026-11-h200-llm.md",
        "no",
        readme=False,
    ),
    Row(
        "h200/llm-opt-30b.json.gz",
        "OPT-30B in vLLM, H200, synchronous, below the knee",
        "reports/2026-11-h200-llm.md",
        "no",
        readme=False,
    ),
    Row(
        "h100/llm-opt-13b.json.gz",
        "OPT-13B in vLLM, H100, synchronous, runs of 144 requests",
        "reports/2026-11-h100-llm.md",
        "no",
        readme=False,
    ),
    Row(
        "h200-full/runs-llama-3.1-8b-again.json.gz",
        "runs of `h200-full` once more on the same GPU, Llama-3.1-8B",
        "reports/2026-11-h200-full.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
    Row(
        "h200-full/runs-opt-13b-again.json.gz",
        "runs of `h200-full` once more on the same GPU, OPT-13B",
        "reports/2026-11-h200-full.md",
        "profiles before runs, nothing fitted",
        readme=False,
    ),
)
