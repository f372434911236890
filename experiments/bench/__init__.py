"""Benchmarks of the simulator: ``make bench``. Ratios of cases that take turns in one run, in CPU seconds. Begin with
`measure`.

==================  ======================================================================
`step_edf`          one diffusion model in three styles: ServeTwin, naive SimPy, bare heap
`tokens`            one LLM engine in three styles
`simulators`        the table by which simulators are compared; the ratios that may not fall
`llm`               the LLM cases: policies, decisions, long runs
`reorder`           policies that reorder, in overload, beside those of another checkout
`long`              one long run in a process of its own
`fleet`             what a request costs behind 4 and 64 replicas; a week of requests, likewise
`epochs`            what several cores would save where a router looks every so many seconds
`cached`            what a step costs with a prefix cache: with hits, without, with the cache off
`against`           engines without any option, beside those of another checkout
`chat`              one long run of sessions with a prefix cache, likewise
`measure`           timing: cases take turns, and are compared within rounds
==================  ======================================================================
"""
