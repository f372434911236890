"""Isolation: a policy may read what it is shown and answer, and nothing else. Begin with `answers`, then `read_only`.

Nothing is imported here: workers take what they need.

===================  ===================================================================================
`answers`            what a policy answers, checked before it is done
`read_only`          what a policy is shown, so that it can write none of it
`task_ledger`        what tasks say, where no policy can write
`code_inspection`    the file and line of a policy that is at fault, and whether its code could write anything
`purity`             whether a policy's code is certain to do nothing but read
`integrity`          whether ServeTwin's own modules and classes are as they were
===================  ===================================================================================
"""
