"""Scheduling policies, one a file.

A policy imports `servetwin.core` and nothing else, and is found by the name of its file: to add one, add a file
(here, or anywhere: an experiment can also name ``my_policy.py`` or ``package.module:Class``).

==============  =================================================================================================
`neustream`     batches re-formed at every iteration under a bound from the SLO; two priority queues (EuroSys'25)
`clockwork`     whole requests at the last moment that still meets the deadline, batched with their like (OSDI'20)
`fcfs`          static batches of whole requests, first come, first served
`edf`           batches re-formed at every iteration, least slack first (deadline less the work left)
==============  =================================================================================================

For language models (`servetwin.core.tokens`):

===============  ================================================================================================
`neustream_llm`  the shortest prompts, as many as no running request's token deadlines forbid (EuroSys'25)
`vllm`           prefill first, first come, first served (vLLM 0.5.4)
`vllm_v1`        one budget of tokens a step, the running first, prompts in chunks (vLLM V1)
`sarathi`        stall-free batches: decodes, filled up with chunks of prompts (OSDI'24)
`edf_llm`        whoever has the least slack until its next token decides
===============  ================================================================================================
"""
