"""From an experiment to something that runs. Begin with `build`, which wires the parts together.

==================  ======================================================================================
`build`             loop, workers, executor and recorder of an experiment; `run` plays it
`pipeline`          the graph of modules, its branches, tools and budget
`llm_workers`       workers that are engines: deadlines of tokens, limits
`handovers`         from workers that prefill to workers that decode
`engine_options`    options of engines that change their memory and their steps, and what they stand on
`stated`            what a result stands on that an experiment states and nobody measured here
`shapes`            the shapes of requests, and workers that serve several
`groups`            workers that serve a group of devices
`replicas`          several devices behind a router, spelled out
`fleets`            replicas that come and go; devices and workers that fail
`costs`             device-hours, dollars, energy and utilisation, where devices have prices
`inputs`            what the numbers of an experiment are made of; `same_run`: whether a run still is that
==================  ======================================================================================
"""
