"""Scheduling policies, one a file.

A policy imports `servetwin.core` and nothing else, and is found by the name of its file: to add one, add a file
(here, or anywhere: an experiment can also name ``my_policy.py`` or ``package.module:Class``).

==============  =================================================================================================
`neustream`     batches re-formed at every iteration under a bound from the SLO; two priority queues (EuroSys'25)
`clockwork`     whole requests at the last moment that still meets the deadline, batched with their like (OSDI'20)
`fcfs`          static batches of whole requests, first come, first served
`edf`           batches re-formed at every iteration, earliest deadline first
==============  =================================================================================================
"""
