"""Groups of devices, which a worker shares out among several batches, step by step. Begin with `device_group`.

================  ====================================================================================
`device_group`    what a policy sees of the group: which devices are free, and times by their number
`group_worker`    the worker: several batches in flight, each on devices of its own
================  ====================================================================================
"""
