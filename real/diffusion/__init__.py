"""Diffusion models on devices. Begin with `models` (what there is); `servetwin.real.server` serves runs with them.

==================  =====================================================================================
`models`            the models that can be served, their modules and sizes; no torch is needed to read it
`options`           how a model is put on a device
`execution`         whether the loop's network is compiled, and how it is laid out
`networks`          the networks, and what each module does with the slots; `checkpoint` loads weights
`noise_schedule`    what a denoising step does with its prediction
`device_slots`      a device with a model on it: the slots of its requests
`graph_runner`      a module ready to run: eager, or one captured CUDA graph per batch size
`lanes`             what runs a worker's batches: streams or threads; `process_lane`: other processes
`profiling`         measures every term that a simulation needs
==================  =====================================================================================
"""
