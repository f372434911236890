"""Policies for engines of language models. `servetwin.core.llm.policy` says what they see. Begin with `vllm`.

==================  =========================================================================================
`vllm`              prefill first, first come, first served (vLLM 0.5.4): begin here
`vllm_v1`           one budget of tokens a step, the running first, prompts in chunks (vLLM V1)
`sarathi`           stall-free batches: decodes, filled up with chunks of prompts (OSDI'24)
`orca`              whoever comes joins at the next iteration, if memory is left for the most it may need (OSDI'22)
`splitwise`         prompts whole, up to so many tokens a step, beside all that decode (ISCA'24)
`fastserve`         queues by how long requests have been served; long ones give way at each token (NSDI'26)
`vtc`               the tenant that has had the least service is admitted next (OSDI'24)
`andes`             memory goes to those whose readers gain most by it; others pause
`slos_serve`        steps as long as the next token that is due allows, filled with prompts by deadline
`slack_admission`   a prompt is begun where no token due afterwards becomes late by it; ServeTwin's own
`sjf`               the shortest predicted outputs first; who runs is not interrupted
`srpt_llm`          what remains least of predicted outputs first; short ones interrupt long ones
`edf_llm`           whoever has the least slack until its next token decides
`neustream_llm`     the shortest prompts, as many as no running request's token deadlines forbid (EuroSys'25)
==================  =========================================================================================
"""
