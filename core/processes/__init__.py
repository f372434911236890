"""Processes: none computes on, and no folder is left, when the process that started or made it is killed. Begin with
`parent_death`.

Nothing is imported here: whoever starts processes or makes temporary folders takes what it needs.

======================  ====================================================================================
`parent_death`          a process that was started ends with the one that started it, however that ended
`temporary_folders`     folders that are removed even where the process that made them is killed
`folder_remover`        the small process that does that, and how to remove a folder whatever stands in it
`stopped`               whether another process was stopped (SIGSTOP), so that nobody waits for it for ever
`one_at_a_time`         a file or folder that one process at a time works on
======================  ====================================================================================
"""
