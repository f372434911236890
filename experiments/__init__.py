"""Experiments: what is run, how often, and what is made of the results. Begin with `spec.experiment`, then
`assembly.build`. Each package imports those below it in this table, never those above.

======================  =======================================================
`cli`                   the command line
`plotting`, `backends`  figures and traces; the same experiment served for real
`exploring`             an experiment that is changed and simulated anew on a page
`reporting`             what became of runs, for people to read
`explaining`            why requests of a run were late or dropped
`validation`            measured and simulated runs side by side
`capacity`              how much a system holds
`bound`                 the most requests that any schedule could meet
`placement`             cards whose memory several models share
`splitting`             replicas that are simulated one by one, where nothing goes from one to another
`sweeps`                points, axes, repeated seeds; a row per point
`assembly`              from an experiment to something that runs
`workload`              arrivals, lengths, traces: the requests
`spec`                  what an experiment file may say, and how it is read
`registry`              what the names in it stand for: policies, routers, workloads
`provenance`            hashes of what numbers are made of
`bench`                 ``make bench``
======================  =======================================================

A program calls `servetwin.run` and its like (docs/reference/python.md), which stand on these.
"""
