"""Measures on a device every term that a simulation of it needs. Begin with `take_profile`.

==================  =====================================================================
`take_profile`      from a model and a device to the content of a profile file
`profiler`          which terms, in which order, how often
`measured`          what was found so far, and how much of it is done
`microbenchmarks`   the short runs in which they are measured, under policies made for it
`profile_writer`    what was measured, as a profile file
`shapes`            requests of other shapes: their tables, and their memory
`reused_steps`      steps that use the network's last prediction again
`hand_overs`        how long a request is on its way from one device to another
==================  =====================================================================
"""
