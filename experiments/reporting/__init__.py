"""What became of runs, for people to read: reports. Begin with `report`.

==================  ===============================================================================
`report`            results of any kind, into one document; ``servetwin report``
`document`          what a report says: sections of sentences, tables, figures; styles of lines
`run_sections`      about runs: outcomes, latencies, over time, a window, two side by side
`sweep_sections`    about sweeps: curves with intervals, who is best where, how far it holds
`score_sections`    about measured and simulated runs: gaps, decisions
`validity`          what profiles stand on, and whether measured runs reach as far
`figures`           figures as Plotly takes them; `gantt` for a window of a run
`page`              a document as one HTML file; `markdown` as text
`timeline`          a run over time, from its records: queues, batch sizes, KV cache use, busy devices
`windows`           a run by windows: whether it kept up, how its error budget went, when it recovered
`sweep_columns`     which columns of a sweep's table vary, and how its lines are called
==================  ===============================================================================
"""
