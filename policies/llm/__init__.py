"""Policies for engines of language models. `servetwin.core.llm.policy` says what they see.

==================  =========================================================================================
`vllm`              prefill first, first come, first served (vLLM 0.5.4): begin here
`vllm_v1`           one budget of tokens a step, the running first, prompts in chunks (vLLM V1)
`sarathi`           stall-free batches: decodes, filled up with chunks of prompts (OSDI'24)
`edf_llm`           whoever has the least slack until its next token decides
`neustream_llm`     the shortest prompts, as many as no running request's token deadlines forbid (EuroSys'25)
==================  =========================================================================================
"""
