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

import gc

# Before the imports: what they make is there to stay, and looking it through for garbage again and again, as is done
# after each 700 new objects otherwise, is a tenth of what a short command takes.
gc.set_threshold(100_000, 10, 10)

from .entry import main  # noqa: E402

__all__ = ["main"]
