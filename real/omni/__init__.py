"""vllm-omni's diffusion engine under our policies. Begin with `scheduler`, which asks a policy at every step.

==================  ===================================================================
`scheduler`         a step scheduler for vllm-omni that asks one of our policies
`step_executor`     the serving loop's executor: it computes nothing, vllm-omni does
==================  ===================================================================
"""
