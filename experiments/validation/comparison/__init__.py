"""What runs and recordings hold, and two of them side by side. Begin with `run_files`, then `compare_runs`.

==================  ========================================================================================
`run_files`         what a run folder must hold; `recording_files`: what a recording must
`run_table`         tables of measured runs, and the experiments that repeat them
`run_settings`      what an experiment stands on beside its axes: what tells repeats from other runs
`bench_runs`        files of ``vllm bench serve`` as run folders
`compare_runs`      two runs; `compare_llm_runs`: of language models; `compare_quality`: where steps may be left out
`compare_fleets`    of two runs: replicas that come and go, workers that fail, models that share cards
`compare_grids`     two collections of runs over one grid: gaps, and whether they lead to the same decisions
==================  ========================================================================================
"""
