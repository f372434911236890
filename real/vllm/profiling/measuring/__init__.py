"""Measures what steps take on the device. Begin with `compositions`.

===============  =====================================================================================
`compositions`   makes steps of any composition; `step_cells`: which ones a profile is made of
`rounds`         when they are made, and which again; `decode_points`: what is known of which batch by then
`blind_traffic`  requests at random, on whose steps a profile is judged
`device_steps`   what steps took on the device; `step_files`: recorded steps in a file
`step_grid`      what steps take by what they compute, one at a time
`async_steps`    the same with the pipeline full (asynchronous scheduling)
`recent_load`    requests as they come, and what steps take among them
`pair_runs`      two engines on one device, together and alone
`server_before`  what a server takes before its engine has a request
===============  =====================================================================================
"""
