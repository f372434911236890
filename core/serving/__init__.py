"""Serving: the loop over the stages of a pipeline, and the workers that serve one stage each. Begin with `loop`.

Nothing is imported here, so that whoever needs one of these loads no more than it.

=========================  =================================================================================
`loop`                     `ServingLoop`: admission, transfer, drops and outcomes
`worker`, `batch_worker`   what the loop and a worker ask of each other; a worker with one batch in flight
`acting_worker`            a worker whose policy may give requests fewer steps, or reuse a prediction
`shaped_worker`            a worker whose requests are of several shapes, one in a batch
`shape_turns`              policies that know nothing of shapes: an object for each, asked in turn
`pool`                     a worker that is a pool of threads
`executor`                 what runs batches and keeps the clock: `Executor`
`client`                   sends the requests of a source to the loop, at their times
`sessions`                 likewise, each when those before it have ended: sessions, and clients in a closed loop
`dispatch`                 asks routers, and keeps the requests of a central queue
`branching`                which path a request takes where its pipeline branches
`budget`                   how an SLO is shared out over the stages
=========================  =================================================================================
"""
