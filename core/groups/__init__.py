"""Groups of devices: a worker that shares its devices out among several batches, step by step. Begin with
`group_worker`; what its policy sees of them is `servetwin.core.policy.DeviceGroup`.
"""
