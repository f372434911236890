"""Figures and traces. Begin with `sweep_plot`.

==================  ===============================================================================
`sweep_plot`        a figure of a sweep's table
`paper_figures`     published figures with what was measured; `paper_figures_agents` for the agents
`draw_all`          all of them into one folder
`perfetto`          runs as one trace file for ui.perfetto.dev
==================  ===============================================================================
"""
