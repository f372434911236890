"""Experiments: what is run, how often, and what is made of the results.

==================  ====================================================================================
`config`            the experiment file: models, and what must fit together
`resolve`           files that extend one another, overrides, and saying where something is wrong
`registry`          finding a policy by name, file or import path; checking its parameters
`arrivals`          arrival processes; `workload` makes requests of them, `tracefile` replays recorded ones
`build`             from an experiment to a run; `points` to a row of numbers, on all cores
`sweep`             axes, one row per point, resumable
`runtable`          tables of measured runs; `score` simulates each and reports the gaps
`compare`           two run folders side by side
`plots`             the published figures with measured points; `demo` a small set of them
`cli`               the command line
==================  ====================================================================================

In a program::

    from servetwin.experiments.build import run
    from servetwin.experiments.resolve import load

    summary = run(load("dit-s2-256-rtx4090", [("rate", 4.0), ("policy", "clockwork")]))
    summary.met, summary.finished
"""
