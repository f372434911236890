"""Traces: recorded requests in the formats that people publish them in, read lazily, one request at a time. Begin
with `formats`.

===========  ==========  ======================================================================================
format       file        a line is
===========  ==========  ======================================================================================
plain        .csv        ``arrival`` (s), and what the request asks for: ``steps``, ``tokens`` or a column by a
                         loop module's name; ``size`` (512x512), or ``height`` and ``width``, if there are several
plain        .jsonl      the same keys, an object a line
plain        .json       one object with a list for each of these keys
azure        .csv        ``TIMESTAMP,ContextTokens,GeneratedTokens``: the Azure LLM inference traces
burstgpt     .csv        ``Timestamp,...,Request tokens,Response tokens,...``: BurstGPT; failed requests (no response
                         tokens) are left out
mooncake     .jsonl      ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``: Mooncake
vllm-bench   .json       ``start_times`` (s), ``input_lens``, ``output_lens``, ...: ``vllm bench serve``; failed
                         requests are left out
gentd26      .csv        ``gmt_create``, ``predict_status``, ``num_images_per_prompt``, ``num_inference_steps``, ...:
                         Alibaba's GenTD26 (lora_request_trace.csv); what did not succeed is left out
katz         .json       a list of objects: ``timestamp`` (s), ``scene_id`` (the tenant), ``base_model_id``, ...:
                         Katz's trace of two text-to-image services, without steps and sizes
requests     .txt        ``Request(timestamp=0.5, height=512, width=512, num_frames=1, num_inference_steps=28)``:
                         Hetu-DiT's and vllm-omni's
===========  ==========  ======================================================================================

In every format a line may also say what the request says of itself: ``class``, ``tenant``, ``priority`` (lower is
sooner), ``weight``, ``slo`` (s), or ``slo_factor`` (of what the request takes alone).

`formats` says what lines mean, `lines` reads them, `bench_file` those of ``vllm bench serve``, `katz_file` Katz's.
`conversations` makes a plain trace of conversations and agents of others (``servetwin convert``).
The format is told by the first line. What is wrong is told in one line, with the number of the line at fault. A small
sample of each lies in ``samples/``; the numbers in them are synthetic, but for ``vllm-bench.json``, which vLLM's
client wrote of a tiny model on a busy CPU."""

from .formats import FORMATS, Entry, columns_of, entries, sample, samples, unknown_columns

__all__ = ["FORMATS", "Entry", "columns_of", "entries", "sample", "samples", "unknown_columns"]
