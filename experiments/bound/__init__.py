"""The most requests that any schedule could meet. Begin with `most_met`.

docs/explanation/bound.md proves each bound.

====================  ======================================================================================
`most_met`            ``servetwin bound``: the bound of an experiment, and schedules to hold it against
`league`              ``servetwin league``: policies ranked over several workloads, beside the bound
`sweep_bounds`        ``servetwin sweep --bound``: each point of a sweep as a share of the bound
`stage_loads`         what every schedule spends on a request at each stage at least, and within which window
`measured_places`     the same of workers by their measured times
`relaxation`          an upper bound for a stage, by a linear program
`exact`               small systems exactly, by a mixed-integer program
`token_steps`         what the steps of a language model's engine take at least
`token_relaxation`    an upper bound for such an engine
`linear_program`      programs whose optimum is bounded by proof
`schedules`           schedules with hindsight, and a plan served as it is
====================  ======================================================================================
"""
