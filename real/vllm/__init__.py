"""vLLM under our policies. Begin with `scheduler`, which asks a policy, then `engine`.

==================  =========================================================================
`scheduler`         a scheduler for vLLM V1 that asks one of our policies
`watchdog`          ends a run of which a policy makes no end
`internals`         everything of vLLM V1 that is not its public interface, in one place
`engine`            vLLM's engine inside this process
`plan`              requests sent and served; `records`: the records of a run
`http_client`       an open-loop client of a running server
`routed_client`     the same of several servers behind a router of ours
`http_connection`   HTTP and TLS to that server, and what it may not send
`engine_process`    an engine in a process of its own, and its worker
`pipeline_server`   serves pipelines with such engines
`prefix_cache`      vLLM's prefix cache as policies see it
`prompts`           token ids of prompts that begin alike where that is said, and nowhere else
`launches`          watches how steps are launched, in this process or in those of vLLM's workers
`profiling`         measures a language model's steps
==================  =========================================================================
"""
