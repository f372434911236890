"""The invariants of docs/reference/invariants.md, and what checks them. Begin with `catalogue`, then `checker`.

Nothing is imported here, since the loop and the engines name invariants themselves.

==================  ============================================================================================
`catalogue`         the invariants by number, and the error that one does not hold
`checker`           `InvariantChecker`: stands between a loop and its recorder, policies and executor while a run goes
`engine_checker`    what it checks of an LLM engine, by counting anew
`record_checker`    `check_records`: the same invariants on the files of a run folder, simulated or measured
`read_only`         what a policy is shown, so that it can write none of it
`answers`           what a policy answers, checked before it is done
`task_ledger`       what tasks say, where no policy can write; `engine_ledger`: those of an LLM engine
`code_inspection`   the file and line of a policy that is at fault, and whether its code could write anything
`purity`            whether a policy's code is certain to do nothing but read
`integrity`         whether ServeTwin's own modules and classes are as they were
`watchdog`          ends a call of a policy that never returns
==================  ============================================================================================
"""
