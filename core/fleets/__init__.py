"""Fleets whose replicas come and go, as an autoscaler (`servetwin.core.scaling`) says. Begin with `fleet`.

==================  ========================================================================================
`fleet`             `Fleet`: asks the autoscaler, starts and stops replicas, and lets routers see those that are ready
`replica`           one replica: off, starting, ready, draining; since when it is held, how long it computed
==================  ========================================================================================
"""
