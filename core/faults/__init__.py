"""Workers and devices that fail, slow down, stand still and come back. Begin with `faults`.

======================  ====================================================================================
`schedule`              what happens when: `Event`s of a script, and drawn ones; what follows is in `Rules`
`faults`                `Faults`: lets it happen in a run, notices it after a time, sends lost requests again
`faulty_executor`       stands before an executor: what messages and batches meet on their way
`outages`               what is told of it: when each worker was down, what was lost, who was sent again
======================  ====================================================================================
"""
