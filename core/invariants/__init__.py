"""What checks the invariants of docs/reference/invariants.md. Begin with `checker`.

Their numbers and names are in `servetwin.core.errors`.

==================  ============================================================================================
`checker`           `InvariantChecker`: stands between a loop and its recorder, policies and executor while a run goes
`watched`           its ear at each worker, policy and executor
`engine_checker`    what it checks of an LLM engine, by counting anew
`record_checker`    `check_records`: the same invariants on the files of a run folder, simulated or measured
`watchdog`          ends a call of a policy that never returns
==================  ============================================================================================
"""
