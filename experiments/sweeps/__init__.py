"""Sweeps: one experiment along axes, a row per point. Begin with `point`, then `sweep`.

==================  ==================================================================
`point`             an experiment that is run, and its row of numbers
`sweep`             axes, points, one row each, resumable
`repeat`            many seeds: means with intervals; `statistics`: how those are made
`cache`             rows that were computed once; `tables`: rows on disk
`pool`              points in several processes; `cluster`: on Dask or Ray
`one_run`           one run whose replicas are simulated on several cores, or on a cluster
`pieces`            what some of its replicas come to, in a process
`looks`             processes that tell each other how their replicas stand, for a router that looks now and then
==================  ==================================================================
"""
