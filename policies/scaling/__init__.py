"""Autoscalers: how many replicas there should be (`servetwin.core.scaling.autoscaler` says when one is asked).

An autoscaler sees what a real one could know of a fleet, never the future. One is one file here, found by its name.
Bounds, delays and cooldown are not theirs: the experiment says them. Begin with `by_queue`.

==================  ======================================================================================
`by_queue`          so many requests to a replica
`by_utilisation`    replicas that compute a stated share of the time (as Kubernetes' HPA)
`by_attainment`     one more when too many miss their SLO, one fewer when the others would not be too busy
`by_schedule`       stated numbers at stated times
==================  ======================================================================================
"""
