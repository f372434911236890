"""Several models in the memory of one card: what of an experiment says so, and what is told of it. Begin with
`cards`, then `servetwin.sim.weights`.
"""
