"""Restates what the NeuStream artifact (EuroSys'25, MIT licence) measured as profile files: begin with `restate`.

    python -m servetwin.profiles.neustream_artifact REFERENCE_DIR OUT_DIR

==================  ===========================================================
`restate`           all of them, written and checked
`diffusion`         diffusion models: tables of the code, and what its logs say
`llm`               OPT-13B, 30B and 66B on A6000s
`agents`            the models of the multi-agent experiment
==================  ===========================================================
"""
