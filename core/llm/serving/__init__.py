"""Engines of language models, as workers of a serving loop. Begin with `worker`, then `engine`.

====================  ==========================================================================================
`worker`, `host`      a worker that is an engine; what the engine knows of it, and of the host between two steps
`engine`              queue, memory and steps; `decode_sums` keeps its counts
`async_engine`        one that decides a step ahead
`speculative_engine`  one that drafts tokens, of which a step gives several
`adapter_engine`      one with LoRA adapters: of how many requests may run together
`pipeline_engine`     one whose model stands on several devices: a step a stage in flight
`freed_blocks`        what a preempted request finds again of its blocks
`caching`             engines with a prefix cache: requests that begin alike share blocks
`pools`               engines that prefill, and engines that decode what those have prefilled
`handover`            which of the latter a request goes to, and when its KV gets there
`engine_ledger`       what tasks and the engine's view say, where no policy can write
====================  ==========================================================================================
"""
