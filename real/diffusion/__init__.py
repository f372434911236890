"""Diffusion models on devices. Begin with `kind` (what a model is); `servetwin.real.server` serves runs with them.

==================  =====================================================================================
`kind`              what a model is, as data; no torch is needed to read it
`diffusion_model`   what a model's file says: its networks, its slots, what each module does
`model_registry`    finds models by name, file or module; `models` has those that come along
`options`           how a model is put on a device
`execution`         whether the loop's network is compiled, and how it is laid out
`networks`          the networks on a device, and what runs each module; `checkpoint` loads weights
`noise_schedule`    what a denoising step does with its prediction, by each sampler
`device_slots`      a device with a model on it: the slots of its requests
`slot_tensors`      the memory of those slots, shared by requests of all shapes
`graph_runner`      a module ready to run: eager, or one captured CUDA graph per shape and batch size
`lanes`             what runs a worker's batches: streams or threads; `process_lane`: other processes
`profiling`         measures every term that a simulation needs
==================  =====================================================================================
"""
