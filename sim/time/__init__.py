"""Simulated time: when something happens, and how long it takes. Begin with `calendar`.

==================  =====================================================================================
`calendar`          SimPy's environment, entered by absolute time
`timing`            what a batch demands of host and device: `MeasuredTiming`, or `TableTiming` for tests
`shaped_timing`     batches of a worker whose requests are of several shapes
`reusing_timing`    steps that take the network's last prediction again, for some or all of a batch
`noise`             durations drawn from what was measured
`out_of_range`      how often, and how far, a run went beyond what its profiles know
==================  =====================================================================================
"""
