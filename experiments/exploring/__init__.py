"""A page on which an experiment is changed and simulated anew at once: ``servetwin explore``. Begin with `server`.

==================  ===============================================================================
`server`            the page, on the loopback interface, and who may ask it
`pages`             what it answers: the experiment's controls, and results as HTML and figures
`lanes`             processes that simulate, and are ended when nobody waits for them any more
`simulation`        what such a process does: resolves, simulates, keeps the records in memory
`controls`          what can be changed of an experiment, and between which values
`state`             what was changed: the equal command line and experiment file
==================  ===============================================================================
"""
