"""Figures and traces. Begin with `sweep_plot`.

==================  ===============================================================================
`style`             what figures have in common: sizes, fonts, looks, the legend, the data beside
`sweep_plot`        a figure of a sweep's table
`plan_plot`         a figure of a plan: attainment over dollars per hour
`measured_points`   what was measured, to be laid over it
`latency_plot`      distributions of latencies of runs
`paper_figures`     published figures with what was measured; `paper_figures_agents` for the agents
`draw_all`          published figures into one folder
`perfetto`          runs as one trace file for ui.perfetto.dev
==================  ===============================================================================
"""
