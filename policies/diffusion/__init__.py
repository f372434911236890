"""Policies for stages whose batches run iterations, or once. `servetwin.core.policy` says what they see.
Begin with `fcfs`, then `edf`.

==================  ==================================================================================================
`fcfs`              static batches of whole requests, first come, first served: begin here
`batcher`           batches that are full, or open for long enough, whatever the device does
`edf`               batches re-formed at every iteration, earliest deadline first
`lsf`               the same by least slack at the speed of a full batch
`srpt`              the same by the fewest steps left; knows no deadlines
`clockwork`         whole requests at the last moment that still meets the deadline, batched with their like (OSDI'20)
`nexus`             whole requests in batches as large as the SLO allows; who would shrink them is dropped (SOSP'19)
`symphony`          the same, begun as late as a further request could still join
`shepherd`          the largest batch that is in time; gives way to one a few times its size (NSDI'23)
`fixed_degree`      whole requests, each on the same number of devices of a group
`deadline_degree`   rounds in which each gets the fewest device-seconds of a group by which it is in time (TetriServe)
`tetriserve`        rounds of some steps, packed so that the fewest requests become late; for one GPU
`cascade`           `edf` at two models: who goes on to the large one, by confidence and load (after DiffServe)
`fewer_steps`       quality for time: as many steps as the deadline bears; ServeTwin's own
`from_similar`      by least slack; prompts like earlier ones begin in the middle (after Nirvana)
`reuse_steps`       `edf`, with steps that take the network's last prediction again (after TeaCache)
`neustream`         batches re-formed at every iteration under a bound from the SLO; two priority queues (EuroSys'25)
`slack_batch`       all who end in time together, or the batch by which most is got done per second; ServeTwin's own
`slack_or_neustream`
                    NeuStream where deadlines leave no room, `slack_batch` elsewhere; ServeTwin's own
`_queue`            the queues of `neustream`; `_waiting_lists`: those of `clockwork`; `_windows`: that of `nexus` and
                    `symphony`; `_ends`: when each task must be done here, for those that go by it;
                    `_keeping`: batches of `slack_batch` where deadlines leave no time to step aside;
                    `_degrees`: on how many devices a request ends in time at the least cost
==================  ==================================================================================================
"""
