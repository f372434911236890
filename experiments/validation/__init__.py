"""Measured and simulated runs side by side. Begin with `score`.

===============  ===========================================================================================
`score`          each measured run simulated, and the gap; `baselines`: what it must be better than
`scoreboard`     the tables of README.md and docs/reference/scoreboard.md: how far off the simulation is
`scoreboard_rows`  which recordings these are of, and what was said before
`points`         each of the runs, kept one by one; a test fails where one leaves its limit
`splitwise`      clusters of Splitwise (ISCA'24): machines that prefill, decode, or do both, by its step times
`replay`         a package: recorded runs, simulated with their very own requests
`envelope`       a package: where a result stands against the runs that were recorded; begin with `standing`
`comparison`     a package: what runs and recordings must hold, and two of them side by side
`check_policy`   ``servetwin check``: a policy on short experiments, under all invariants
`check_asked`    ``servetwin check`` of a router or an autoscaler
===============  ===========================================================================================
"""
