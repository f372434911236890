"""Measured and simulated runs side by side. Begin with `score`.

==================  ========================================================================================
`run_table`         tables of measured runs, and the experiments that repeat them
`score`             each measured run simulated, and the gap; `baselines`: what it must be better than
`replay_folder`     a run folder repeated with its very own requests
`packed_runs`       run folders in one file, to be repeated likewise
`bench_runs`        files of ``vllm bench serve`` as run folders
`replay_diffusion`  recordings of diffusion models; `replay_llm`, `replay_agents`: of the others
`replay_steps`      recorded steps of language models: a profile made of them, judged by others
`replay_chat`       runs of a language model under limits on ttft and tpot, with their own requests
`run_steps`         their steps one by one: the device, and the host, beside a profile
`replay_external`   runs that somebody else measured, by profiles of their tables
`closed_loop`       clients that keep so many requests in flight, beside what others measured
`scoreboard`        the tables of README.md and docs/reference/scoreboard.md: how far off the simulation is
`run_settings`      what an experiment stands on beside its axes: what tells repeats from other runs
`as_command`        how the modules that are started with ``python -m`` end
`check_router`      ``servetwin check`` of a router
`check_policy`      ``servetwin check``: a policy on short experiments, under all invariants
`run_files`         what a run folder must hold; `recording_files`: what a recording must
`compare_runs`      two runs; `compare_llm_runs`: of language models
`compare_grids`     two collections of runs over one grid: gaps, and whether they lead to the same decisions
==================  ========================================================================================
"""
