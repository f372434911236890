"""The experiment file: what it may say, and how it is read. Begin with `experiment`, then `loading`.

==================  ====================================================================================
`experiment`        the model of a file; `llm`, `sessions`, `shapes` of images
`keys`              parts that know nothing of the rest: loads over time, prices, routing (a package)
`validation`        whether the parts fit together; `llm_validation`: language models; `schedule_validation`: loads
`loading`           files that extend one another, where something is wrong, and the profiles of their devices
`overrides`         keys that are set from outside
`variants`          named deployments, and variants of the whole
`published_draws`   seeds and lists of published experiments
`yaml_io`           YAML, and the line of a key
`spec_page`         docs/reference/experiment-files.md, made from these classes
==================  ====================================================================================
"""
