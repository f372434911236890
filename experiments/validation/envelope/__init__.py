"""The validity envelope: where a result stands against the runs by which the simulation was validated. Begin with
`standing`.

===========  ===============================================================================================
`keys`       each key of an experiment: compared, or listed with the reason why not
`facts`      what of a run counts for that: profile, policy, placement, load, lengths, SLO, engine
`recorded`   the same of the runs that were recorded, read from the recordings themselves
`index`      those in one small file, ``measured/envelope.json``, which ``python -m`` of it writes
`places`     the same of runs that lie in folders and tables
`standing`   a run beside them: within, or what is outside
===========  ===============================================================================================
"""
