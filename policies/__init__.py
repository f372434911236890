"""Scheduling policies, one a file, named by their files: ``edf-llm`` is edf_llm.py. Begin with `diffusion.fcfs`.

A policy imports `servetwin.core` and nothing else. To add one, add a file here (or anywhere: an experiment can also
name ``my_policy.py`` or ``package.module:Class``); nothing else is edited.

==================  ========================================================================================
`diffusion`         for stages that run iterations: `neustream`, `clockwork`, `edf`, `fcfs`, ...
`llm`               for engines of language models: `vllm`, `vllm_v1`, `sarathi`, `neustream_llm`, ...
`routing`           for stages with several workers: which of them a request goes to
`scaling`           for replicas that come and go: how many there should be
==================  ========================================================================================
"""
