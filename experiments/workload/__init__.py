"""The requests of an experiment, made one at a time as they are sent. Begin with `requests`.

==================  ==============================================================
`requests`          from an experiment to its requests
`sessions`          likewise, those that are sent when others have ended
`draws`             when they come, how many iterations they run, how long prompts and outputs are
`schedules`         loads that change over time
`lengths`           whether prompts and outputs fit into engines; `predictions`: what is predicted of outputs
`prefixes`          what prompts begin with, for engines that share what begins alike
`described`         classes of requests, and what a trace says of tenants, priorities, weights and SLOs
`trace_reader`      a recorded trace, checked once and replayed as often as wanted
`traces`            the formats of traces
`seed_effect`       what of an experiment a seed changes, and what none does
==================  ==============================================================
"""
