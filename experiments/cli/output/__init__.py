"""What commands print. Begin with `terminal`.

==============  ============================================================================================
`terminal`      tables on standard output, progress on standard error
`run_output`    what ``run`` prints
`score_output`  what ``score``, ``compare`` and ``search`` print
`json_output`   what ``--json`` prints, as types
==============  ============================================================================================
"""
