"""The experiment that a simulation would play, served for real. Begin with `diffusion`.

==================  ==============================================================
`diffusion`         diffusion models on devices of this machine
`vllm`              a language model by vLLM in this process
`pipeline`          language models and tools, each engine in a process of its own
`serve`             one experiment by the backend that is asked for
`grid`              a sweep, a run folder per point
`over_profile`      how much longer iterations took than the profile says
`profile`           ``servetwin profile``; `profile_llm` for language models, `profile_server`
                    for what a server takes before its engine
==================  ==============================================================
"""
