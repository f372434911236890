"""Measures language models on vLLM. Begin with `compose`: what `servetwin profile` does on a GPU.

==================  ==================================================================================
`compose`           steps of all compositions, and then traffic that judges: all of a profile
`compositions`      makes steps of any composition; `step_cells`: which ones a profile is made of
`blind_traffic`     requests at random, on whose steps a profile is judged
`device_steps`      what steps took on the device; `step_files`: recorded steps in a file
`pass_fit`          what steps that compute prompts take, as a sum of parts
`decode_fit`        what steps take that only decode; `host_fit`: what launching them takes, and how that wanders
`step_profile`      of all of that what a profile says, and how far it is off
`step_grid`         what steps take by what they compute, one at a time; `fit` makes a profile of that
`async_steps`       the same with the pipeline full (asynchronous scheduling); `async_fit` likewise
`recent_load`       requests as they come, and what steps take among them
`pair_runs`         two engines on one device; `pair_fit`: what they cost each other
`profile_content`   the whole profile file
==================  ==================================================================================
"""
