"""Replicas that are simulated one after the other, or on several cores, where nothing goes from one to another.

Behind a router that never looks at how workers stand, each replica is a system of its own: `dealing` shares the
requests out as the router would, `apart` says what can be simulated so and does it (on several cores:
`servetwin.experiments.sweeps.one_run`). What comes out is what one run of the whole fleet gives, to the last digit.
Begin with `apart`.
"""
