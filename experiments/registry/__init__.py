"""What the names in an experiment stand for: workloads, policies, routers, options of vLLM. Begin with `catalog`,
then `policy_registry`.

==================  ====================================================================================
`catalog`           names of what comes with ServeTwin, and what a user may have meant
`policy_registry`   finding a policy by name, file or import path; checking its parameters
`policy_docs`       what ``servetwin policies NAME`` tells of one
`by_name`           the same of routers and autoscalers: `router_registry`, `autoscaler_registry`
`policy_objects`    policies that a program gives as classes or functions
`remote_policies`   policies that are made in another process
`policy_errors`     what goes wrong inside a policy, told with its file and line
`vllm_options`      options of vLLM that no engine here has
`vllm_settings`     those that may be set where one is measured, by vLLM's names
==================  ====================================================================================
"""
