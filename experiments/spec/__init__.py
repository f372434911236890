"""The experiment file: what it may say, and how it is read. Begin with `experiment`, then `loading`.

==================  ====================================================================================
`experiment`        the model of a file; `llm`, `sessions`, `shapes` of images; `field_types` of which all are made
`validation`        whether the parts fit together; `llm_validation` for language models
`loading`           files that extend one another, where something is wrong, and the profiles of their devices
`overrides`         keys that are set from outside
`variants`          named deployments, and variants of the whole
`published_draws`   seeds and lists of published experiments
`yaml_io`           YAML, and the line of a key
`spec_page`         docs/reference/experiment-files.md, made from these classes
==================  ====================================================================================
"""
