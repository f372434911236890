"""Makes of measured steps what a profile says. Begin with `step_profile`.

==============  ======================================================================================
`step_profile`  of all of what follows what a profile says, and how far it is off
`pass_fit`      what steps that compute prompts take, as a sum of parts
`decode_fit`    what steps take that only decode
`host_fit`      what launching steps takes, and how that wanders
`grid_fit`      a profile of a grid of steps; `async_fit`: of asynchronous ones
`pair_fit`      what two engines on one device cost each other
==============  ======================================================================================
"""
