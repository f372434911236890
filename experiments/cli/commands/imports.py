"""``servetwin import``: a profile of a language model without a GPU; ``servetwin convert``: a trace of conversations.

`servetwin.experiments.cli.app` takes it up. What it needs is imported when it runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from servetwin.core import BadInput

from ..output.terminal import print_json, say
from .lists import profile_dict, show_verdict
from .options import AsJson


def import_profile(
    source_format: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="llmservingsim, csv, roofline, splitwise, distserve, aiconfigurator."),
    ],
    source: Annotated[
        str,
        typer.Argument(help="A folder or file; for roofline and aiconfigurator a model name, or its config.json."),
    ],
    out: Annotated[Path, typer.Option(help="Profile file to write, .yaml; must not exist.")],
    model: Annotated[
        str | None, typer.Option(help="The model by name, or its config.json; by default from SOURCE.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="The device: h100, ...; by default from SOURCE.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Devices over which the model is split.")] = 1,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Most tokens in a step.")] = 8192,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests that run at once.")] = 256,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and output together; else the model's.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="The engine's share of the memory.")] = 0.9,
    block_size: Annotated[int, typer.Option(help="Tokens in a KV block.")] = 16,
    blocks: Annotated[
        int | None, typer.Option(help="KV blocks as an engine reported them; by default computed from the memory.")
    ] = None,
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="No CUDA graphs: steps are not padded.")
    ] = False,
    asynchronous: Annotated[
        bool,
        typer.Option(
            "--asynchronous/--synchronous",
            help="Whether each step is scheduled while the previous one runs.",
            rich_help_panel="Scheduling of steps",  # beside names so long as those above it would have them cut off
        ),
    ] = True,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of the format: --set compute=0.6 (repeatable)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; by default from device and model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a profile of a language model from another tool's tables, a CSV file or a formula (estimated)."""
    from servetwin.profiles import load
    from servetwin.profiles.importing.settings import Settings
    from servetwin.profiles.importing.write import import_profile as engine
    from servetwin.profiles.yaml_writer import text

    from ...backends import profile as files
    from ...sweeps import tables

    files.check_target(out, name)
    settings = Settings(
        model=model,
        device=device,
        tensor_parallel_size=tensor_parallel_size,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        block_size=block_size,
        blocks=blocks,
        enforce_eager=enforce_eager,
        asynchronous=asynchronous,
        options=dict(_option(given) for given in sets or ()),
    )
    content = engine(source_format, source, settings, profile=name)
    tables.make_folder(out.parent)
    command = shlex.join(["servetwin", *sys.argv[1:]])
    tables.write_text(out, text(content, command))
    found = load(str(out))
    if as_json:
        print_json(profile_dict(found.data, out))
        return
    kv = found.token_data.kv
    say(f"{found.name}: {found.data.description}; {kv.blocks} KV blocks of {kv.block_size}, {kv.statistic}")
    show_verdict(found.data)
    say(f"to use it: servetwin run ... --set deployment.devices.gpu0={out}")


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise BadInput("is no NAME=VALUE", where=f"--set {text}", right="--set compute=0.6")
    return name, value


def convert(
    source: Annotated[Path, typer.Argument(help="A file of conversations, .json or .jsonl, or either packed (.gz).")],
    form: Annotated[
        str,
        typer.Option("--form", help="sharegpt, multi-turn, messages, full-prompts, agentic-mooncake, agent-turns."),
    ],
    out: Annotated[Path, typer.Option(help="Trace to write, .csv; must not exist.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Counts tokens of texts: a tokenizer.json, a folder with one, a model's name.")
    ] = None,
    characters_per_token: Annotated[
        float | None, typer.Option(help="Instead: so many characters are taken for a token.")
    ] = None,
    delay: Annotated[
        float | None, typer.Option(help="Seconds from an answer to the next turn, where the file does not say it.")
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out and count what cannot be a turn, in place of an error.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a trace with sessions of recorded conversations or of an agent's requests."""
    from ...registry.catalog import suggest
    from ...sweeps import tables
    from ...sweeps.tables import write_whole
    from ...workload.traces import conversations

    if form not in conversations.FORMS:
        raise BadInput(f"unknown form {form!r}", where="--form", right=suggest(form, list(conversations.FORMS)))
    if out.suffix != ".csv":
        raise BadInput(f"{out.suffix or 'no ending'} is no kind of trace", where=f"--out {out}", right=".csv")
    if os.path.lexists(out):
        what = "the file is there already" if out.exists() else "a link of this name is there, to nothing"
        raise BadInput(what, where=f"--out {out}", right="another --out")
    if delay is not None and not 0.0 <= delay <= 1e7:
        raise BadInput(f"is {delay:g}", where="--delay", right="seconds, from 0 to 1e7")
    if tokenizer is not None and characters_per_token is not None:
        raise BadInput("both count tokens", where="--tokenizer, --characters-per-token", right="one of them")
    count, by = None, "the file says how many tokens"
    if tokenizer is not None:
        count, by = conversations.counted_by(tokenizer), f"tokens of texts as counted by {tokenizer}"
    elif characters_per_token is not None:
        count = conversations.counted_by_characters(characters_per_token)
        by = f"a token for every {characters_per_token:g} characters, as stated"
    left = conversations.Left(leave_out)
    found = conversations.talks(source, form, count, delay, left)
    tables.make_folder(out.parent)
    text = "\n".join(conversations.rows(found)) + "\n"
    write_whole(out, lambda path: path.write_text(text, encoding="utf-8"))
    timed = found[0].at is not None
    turns = sum(len(talk.turns) for talk in found)
    if as_json:
        told = {"trace": str(out), "sessions": len(found), "turns": turns, "timed": timed, "left_out": left.why}
        print_json({**told, "notes": left.notes, "tokens": by})
        return
    say(f"{out}: {len(found)} sessions with {turns} turns; {by}")
    for why, often in left.why.items():
        say(f"left out {often} times: {why}")
    for what, often in left.notes.items():
        say(f"{often} turns: {what}")
    if not timed:
        say("it is not said when sessions begin: let workload.arrivals say it, with workload.trace")
