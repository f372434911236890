"""The command line: ``servetwin``. Begin with `app`.

What a command needs is imported when it runs, so that help comes at once.

==================  ========================================================================================
`entry`             runs a command, and makes one line of what goes wrong
`app`               the commands
`commands`          those about real runs and about runs that are there: ``profile``, ``check``, ``compare``
`figure_commands`   those that draw: ``plot``, ``figures``, ``demo``, ``trace``
`bound_command`     ``servetwin bound``: the most requests that any schedule could meet
`league_command`    ``servetwin league``: policies ranked over several workloads
`explain_command`   ``servetwin explain``: why requests were late or dropped
`import_command`    ``servetwin import``: a profile without a GPU
`report_command`    ``servetwin report``: results as a page
`list_commands`     ``servetwin policies``, ``workloads``, ``profiles``
`run_output`        what ``run`` prints
`score_output`      what ``score``, ``compare`` and ``search`` print
`explore_command`   ``servetwin explore``: an experiment that is changed on a page
`options`           options that are of no use where they are given, refused
`terminal`          tables on standard output, progress on standard error
`json_output`       what ``--json`` prints, as types; `json_page` makes docs/reference/json-output.md of them
`demo`              ``servetwin demo``
`cli_page`          docs/reference/command-line.md, made from the commands
==================  ========================================================================================
"""

import gc

# Before the imports: what they make is there to stay, and looking it through for garbage again and again, as is done
# after each 700 new objects otherwise, is a tenth of what a short command takes.
gc.set_threshold(20_000, 10, 10)

from .entry import main  # noqa: E402

__all__ = ["main"]
