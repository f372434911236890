"""Replicas of a language model side by side, each as numbers, behind a router that looks at how they stand.

A router is told of a replica what has happened there before the request that comes now, so each replica is let go on
up to then and no further: `fed_engine` is a replica that requests are sent to one by one, `side_by_side` sends them.
Where the router looks every so many seconds only, `epochs` does, also for some of the replicas in each of several
processes. Begin with `side_by_side`.
"""
