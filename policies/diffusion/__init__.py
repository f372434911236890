"""Policies for stages whose batches run iterations, or once. `servetwin.core.policy` says what they see.

==================  ==================================================================================================
`fcfs`              static batches of whole requests, first come, first served: begin here
`edf`               batches re-formed at every iteration, earliest deadline first
`clockwork`         whole requests at the last moment that still meets the deadline, batched with their like (OSDI'20)
`neustream`         batches re-formed at every iteration under a bound from the SLO; two priority queues (EuroSys'25)
`_queue`            the queues of `neustream`; `_waiting_lists`: those of `clockwork`
==================  ==================================================================================================
"""
