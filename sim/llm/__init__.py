"""Simulated LLM engines. Begin with `lane`: how long a step takes, and an engine's place on the calendar.

==================  ===========================================================================================
`lane`              `TokenTiming` and `TokenLane`
`async_lane`        an engine that decides a step ahead; `ahead_runs`: its decode steps on end, as numbers
`pipeline_lane`     an engine whose layers stand on several devices: a step a stage in flight
`look_ahead_lane`   engines beside others, whose steps on end are one event
`shared_lane`       engines that share a device
`columns`           one engine under a policy's standing decision: requests as numbers, three to seven times as fast;
                    `column_requests`: what becomes of them, `column_steps`: what a step computes,
                    `column_records`: the lines of their records; `ahead_columns`: where it decides a step ahead
`request_columns`   requests as columns; `latency_columns`: what came of them
==================  ===========================================================================================
"""
