"""What became of runs, for people to read. Begin with `timeline`.

==================  ===============================================================================
`timeline`          a run over time, from its records: queues, batch sizes, KV cache use, busy devices
==================  ===============================================================================
"""
