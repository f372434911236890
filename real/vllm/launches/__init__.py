"""Watches how vLLM launches its steps, in this process or in those of its workers. Begin with `launch_clock`.

===============  ======================================================================================
`launch_clock`   what launching takes, and what steps take on the device, by events: for profiles
`host_clock`     what launching takes, and nothing else: for runs
`in_workers`     what watches inside vLLM's workers, where they are processes of their own
`stream_events`  what launches take on a GPU
===============  ======================================================================================
"""
