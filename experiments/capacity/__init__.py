"""Capacity: how much a system holds (``servetwin search``). Begin with `search`.

==================  ========================================================================================
`search`            the command: workloads under policies
`plan`              the cheapest fleet that serves a load: kinds of devices, counts, policies, routers
`plan_sets`         what a plan may set: not what its fleets must have in common
`root_search`       the largest rate, the smallest SLO factor or the fewest replicas at which a target holds
`differences`       how much more one policy holds than another, seed by seed
`targets`           what must hold: a share of requests, or limits on latencies
`stability`         whether a system keeps up with its load, and how long it takes to settle
`observed_run`      a run that is watched for that
==================  ========================================================================================
"""
