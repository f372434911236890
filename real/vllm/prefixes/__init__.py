"""Prefix caching inside vLLM: what policies see of it, and prompts that begin alike where the workload says so.

Begin with `cache`.

`cache`     vLLM's prefix cache as policies see it, and the scheduler that shows it
`prompts`   token ids of prompts: what is said to be the same is the same, and nothing else is
"""
