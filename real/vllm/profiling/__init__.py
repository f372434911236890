"""Measures language models on vLLM. Begin with `step_grid`, then `fit`.

==================  ==================================================================================
`step_grid`         what steps take by what they compute, one at a time; `fit` makes a profile of that
`async_steps`       the same with the pipeline full (asynchronous scheduling); `async_fit` likewise
`recent_load`       requests as they come, and what steps take among them
`pair_runs`         two engines on one device; `pair_fit`: what they cost each other
`profile_content`   the whole profile file
==================  ==================================================================================
"""
