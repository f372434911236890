"""Fleets whose replicas come and go while requests are served: who decides how many there are, and what follows.

==================  ========================================================================================
`autoscaler`        `Autoscaler`: what one sees of a fleet (`FleetState`), and says
`replica`           one replica: off, starting, ready, draining; since when it is held, how long it computed
`recent`            what came and ended in the last seconds
`fleet`             `Fleet`: asks the autoscaler, starts and stops replicas, and lets routers see those that are ready
==================  ========================================================================================
"""
