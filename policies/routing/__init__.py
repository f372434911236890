"""Routers: which of several workers of a stage a request goes to (`servetwin.core.routing` says when one is asked).

A router sees what a real one could know: how many requests each worker has, what is on its way there, its profile and
its KV memory, never the future. A router is one file here, found by its name. Begin with `round_robin`.

==================  ======================================================================================
`round_robin`       one after the other
`random`            any, all equally likely
`jsq`               join the shortest queue: the one with the fewest requests
`power_of_two`      the one with fewer requests of two drawn at random
`least_loaded`      the one whose device should have worked off all that is there, and this request, first
`least_violating`   the one where the request does the least harm: the fewest seconds past deadlines
`prefix_affinity`   the same for prompts that begin alike, drawn by hashing, as far as load allows
`cache_aware`       the one to which most of the prompt was sent before, unless load is too uneven
`prefix_load`       the one whose cache holds most of the prompt, less what it has more to do than others
`central`           one queue for all, first come, first served: a request is bound when a worker has room
`by_batch`          one queue of batches: requests that left the stage before together go to one idle worker
==================  ======================================================================================
"""
