"""Profiles of language models: seconds of an engine's steps by what they compute. Begin with `step_table`.

===================  ===================================================================================
`schema`             what a profile file may say of a language model
`step_table`         `TokenTable`: seconds of prefill, of decode, and of both at once
`decode_surface`     the rule for noise, disturbed samples and the ends of rows in measured decode steps
`launch_times`       whether the host of a run launched steps as fast as that of its profile
`kv_fp8`             steps of an engine that keeps keys and values in 8 bits
`speculative_steps`  steps of an engine that drafts tokens
`adapter_steps`      steps of an engine with LoRA adapters
`step_grids`         tables of chunks over context, and of decodes beside chunks
`hf_config`          a model's shape from its config.json
`recent_load`        how much an engine has computed lately, and what that does to its steps
`architectures`      shapes of models (models.yaml), and how many KV blocks they leave room for
===================  ===================================================================================
"""
