"""Commands of ``servetwin``, a file each; `servetwin.experiments.cli.app` takes them up. Begin with `explain`.

===========  ===============================================================================================
`real_runs`  those about real runs and about runs that are there: ``profile``, ``check``, ``compare``
`figures`    those that draw: ``plot``, ``figures``, ``demo``, ``trace``; `demo` for what that one does
`bound`      ``servetwin bound``: the most requests that any schedule could meet
`league`     ``servetwin league``: policies ranked over several workloads
`plan`       ``servetwin plan``: the cheapest fleet that serves a load
`explain`    ``servetwin explain``: why requests were late or dropped
`explore`    ``servetwin explore``: an experiment that is changed on a page
`report`     ``servetwin report``: results as a page
`imports`    ``servetwin import``: a profile without a GPU
`lists`      ``servetwin policies``, ``workloads``, ``profiles``
`options`    options that are of no use where they are given, refused
===========  ===============================================================================================
"""
