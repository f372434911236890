"""The command line: ``servetwin``. Begin with `app`.

What a command needs is imported when it runs, so that help comes at once.

==========  ================================================================================================
`entry`     runs a command, and makes one line of what goes wrong
`app`       the commands of experiments: ``run``, ``sweep``, ``search``, ``score``; takes up all others
`commands`  a package: the other commands, and options
`output`    a package: what commands print
`cli_page`  docs/reference/command-line.md, made from the commands; `json_page`: json-output.md
==========  ================================================================================================
"""

from .entry import main

__all__ = ["main"]
