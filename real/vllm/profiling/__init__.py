"""Measures language models on vLLM. Begin with `compose`: what `servetwin profile` does on a GPU.

=================  ===================================================================================
`compose`          steps of all compositions, and then traffic that judges: all of a profile
`profile_content`  the whole profile file
`measuring`        a package: what steps take on the device
`fitting`          a package: what a profile says, made of measured steps
=================  ===================================================================================
"""
