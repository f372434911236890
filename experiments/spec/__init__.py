"""The experiment file: what it may say, and how it is read. Begin with `experiment`, then `loading`.

==================  ====================================================================================
`experiment`        the model of a file; `llm` for language models; `field_types` of which both are made
`validation`        whether the parts fit together; `llm_validation`, `class_validation` for some of them
`loading`           files that extend one another, where something is wrong, and the profiles of their devices
`overrides`         keys that are set from outside
`variants`          named deployments, and variants of the whole
`catalog`           names of what comes with ServeTwin, and what a user may have meant
`policy_registry`   finding a policy by name, file or import path; checking its parameters
`policy_docs`       what ``servetwin policies NAME`` tells of one
`router_registry`   the same of routers
`policy_objects`    policies that a program gives as classes or functions
`remote_policies`   policies that are made in another process
`policy_errors`     what goes wrong inside a policy, told with its file and line
`published_draws`   seeds and lists of published experiments
`vllm_options`      options of vLLM that no engine here has
`vllm_settings`     those that may be set where one is measured, by vLLM's names
`yaml_io`           YAML, and the line of a key
`spec_page`         docs/reference/experiment-files.md, made from these classes
==================  ====================================================================================
"""
