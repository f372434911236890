"""Recorded runs, simulated with their very own requests. Begin with `folder`.

===============  ===========================================================================================
`folder`         a run folder; `packed_runs`: several in one file
`diffusion`      recordings of diffusion models; `llm`, `agents`: of the others
`chat`           runs of a language model under limits on ttft and tpot
`steps`          recorded steps of language models: a profile made of them, judged by others
`run_steps`      the steps of runs one by one: the device, and the host, beside a profile
`host_band`      what a run comes to on hosts of other speeds, and whether a measured run's own explains it
`external`       runs that somebody else measured, by profiles of their tables
`closed_loop`    clients that keep so many requests in flight, beside what others measured
`mlperf`         MLPerf's Server runs of SDXL, from the throughput of the Offline scenario
`as_command`     how the modules that are started with ``python -m`` end
===============  ===========================================================================================
"""
