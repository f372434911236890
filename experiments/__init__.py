"""Experiments: what is run, how often, and what is made of the results.

==================  ====================================================================================
`config`            the experiment file: models, and what must fit together
`resolve`           files that extend one another, overrides, and saying where something is wrong
`registry`          finding a policy by name, file or import path; checking its parameters
`policyobjects`     policies that a program gives as classes or functions
`arrivals`          arrival processes; `workload` makes requests of them, `tracefile` replays recorded ones
`build`             from an experiment to a run; `points` to a row of numbers, on all cores
`serving`           one run by the backend that is asked for
`sweep`             axes, one row per point, resumable
`runtable`          tables of measured runs; `score` simulates each and reports the gaps
`compare`           two run folders side by side
`plots`             the published figures with measured points; `demo` a small set of them
`cli`               the command line
==================  ====================================================================================

A program calls `servetwin.run` and its like (docs/reference/python.md), which stand on these.
"""
