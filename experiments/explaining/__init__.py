"""Why requests of a run were late or dropped, from its records alone. Begin with `explanation`.

================  ==========================================================================================
`explanation`     ``servetwin explain``: requests of a run folder, each with where its time went
`causes`          what a request's time goes into, and its parts
`run_window`      the batches of a run while some requests were there, read once
`whole_records`   whether a run's records are all there
`step_members`    who takes part in each step of an engine, as the records tell it
`visits`          a request's way through the stages
`batch_time`      the parts of a visit to a worker that runs batches, or to a pool of threads
`engine_time`     likewise to an engine of a language model
`handed_time`     likewise where prefill and decode are apart
`engine_memory`   whether an engine had KV memory for a request
`alone`           what a request would take if it were served alone
`slack`           how much of its deadline was left at each moment, and the decision at which it was lost
`telling`         an explanation in words
================  ==========================================================================================

Works on records of simulations and of real runs alike; docs/guides/why-late.md says how to read the result.
"""
