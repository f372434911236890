"""The adapter: what a policy says is what vLLM's scheduler does, and what it cannot do is said."""

import pytest
from no_gpu import Asked, _tokens, replay, scheduler, vllm_request
from servetwin.core import BadInput, InvariantBroken, ServeTwinError
from servetwin.core.llm import ALL, Step, TokenPolicy
from servetwin.real.vllm.scheduler import (
    AsyncPolicyScheduler,
    Estimates,
    PolicyScheduler,
    Settings,
    SyncPolicyScheduler,
    find,
    slo_scales,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import FinishReason


class Script(TokenPolicy):
    """Says what *say* says, given the view."""

    def __init__(self, say):
        self.say = say
        self.gone = []

    def decide(self, view, now):
        return self.say(view)

    def removed(self, task, view, now):
        self.gone.append(task.id)


def scripted(folder, say, requests=(), **settings):
    made = scheduler(folder, cls=PolicyScheduler, **settings)
    policy = Script(say)
    made.install(Settings(), policy=policy)
    for i, (prompt, output) in enumerate(requests):
        made.add_request(vllm_request(Asked(i, 0.0, prompt, output)))
    return made, policy


def step(made):
    """A step: tokens by request, and what came out by request."""
    output = made.schedule()
    outs = made.update_from_output(output, _tokens(made, output))
    out = {one.request_id: one for outputs in outs.values() for one in outputs.outputs}
    return dict(output.num_scheduled_tokens), out


def by_id(tasks):
    return {t.id: t for t in tasks}


def test_prefills_in_the_order_and_sizes_asked_for(folder):
    def say(view):
        waiting = by_id(view.waiting)
        return Step([(waiting[2], 30), (waiting[0], 20)])

    made, _ = scripted(folder, say, [(50, 5), (60, 5), (30, 5)])
    tokens, out = step(made)
    assert list(tokens.items()) == [("2", 30), ("0", 20)]
    assert list(out) == ["2"]  # a chunk generates nothing
    assert [t.id for t in made.view.running] == [2, 0]
    assert [t.id for t in made.view.waiting] == [1]
    assert [r.request_id for r in made.waiting] == ["1"]


def test_chunk_sizes_that_vllm_cannot_express_wait_for_the_next_step(folder):
    def say(view):
        waiting = by_id(view.waiting)
        return Step([(waiting[0], 16), (waiting[1], 100)])

    made, _ = scripted(folder, say, [(100, 5), (100, 5)])
    tokens, _ = step(made)
    assert tokens == {"0": 16}
    assert made.obeyed.trimmed == 1


def test_decodes_those_asked_for_and_keeps_the_others(folder):
    said = []

    def say(view):
        if view.waiting:
            return Step([(t, t.pending) for t in view.waiting])
        running = by_id(view.running)
        said.append(len(running))
        return Step((), [running[0], running[2]] if len(said) % 2 else [running[1]])

    made, _ = scripted(folder, say, [(20, 9)] * 3)
    step(made)
    free = made.free_blocks
    assert step(made)[0] == {"0": 1, "2": 1}
    assert step(made)[0] == {"1": 1}
    assert step(made)[0] == {"0": 1, "2": 1}
    assert [r.request_id for r in made.running] == ["0", "1", "2"]
    assert [t.generated for t in made.view.running] != []
    assert made.free_blocks == free  # nobody lost memory


def test_preempts_recomputes_and_counts(folder):
    turn = iter(range(100))

    def say(view):
        if view.waiting:
            return Step([(t, t.pending) for t in view.waiting])
        if next(turn) == 1:
            return Step((), [], preempt=[by_id(view.running)[0]])
        return Step((), ALL)

    made, _ = scripted(folder, say, [(20, 9), (20, 9)])
    assert step(made)[0] == {"0": 20, "1": 20}
    assert step(made)[0] == {"0": 1, "1": 1}
    assert step(made)[0] == {}
    task = by_id(made.view.waiting)[0]
    assert (task.computed, task.generated, task.preemptions) == (0, 2, 1)
    assert step(made)[0] == {"0": 22}
    assert [t.id for t in made.view.running] == [1, 0]


def test_a_drop_is_told_to_the_front_end(folder):
    def say(view):
        waiting = by_id(view.waiting)
        return Step([(waiting[1], 20)], drop=[waiting[0]]) if waiting else Step((), ALL)

    made, policy = scripted(folder, say, [(20, 3), (20, 3)])
    tokens, out = step(made)
    assert tokens == {"1": 20}
    assert out["0"].finish_reason is FinishReason.ABORT
    assert list(made.requests) == ["1"]
    assert policy.gone == []  # it was the policy's own doing


def test_a_client_that_goes_away_is_told_to_the_policy(folder):
    made, policy = scripted(folder, lambda view: Step([(t, t.pending) for t in view.waiting], ALL), [(20, 9)] * 2)
    step(made)
    from vllm.v1.request import RequestStatus

    made.finish_requests(["0"], RequestStatus.FINISHED_ABORTED)
    assert policy.gone == [0]
    assert [t.id for t in made.view.running] == [1]


def test_an_admission_refused_is_a_drop(folder):
    made, policy = scripted(folder, lambda view: Step([(t, t.pending) for t in view.waiting], ALL))
    policy.admit = lambda task, view, now: task.prompt < 30
    for i, prompt in enumerate((20, 40)):
        made.add_request(vllm_request(Asked(i, 0.0, prompt, 3)))
    tokens, out = step(made)
    assert tokens == {"0": 20}
    assert out["1"].finish_reason is FinishReason.ABORT


def test_idles_when_the_policy_does(folder):
    made, _ = scripted(folder, lambda view: Step(), [(20, 3)])
    assert step(made)[0] == {}
    assert made.idle_until == float("inf")
    assert len(made.view.waiting) == 1


def test_a_task_that_is_not_there_breaks_the_invariant(folder):
    made, _ = scripted(folder, lambda view: Step([(kept, 20)]), [(20, 1)])
    kept = next(iter(made.tasks.values()))
    step(made)
    made.add_request(vllm_request(Asked(7, 0.0, 20, 1)))
    with pytest.raises(InvariantBroken, match="which is not at"):
        made.schedule()


def test_the_view_tells_nothing_of_the_true_length(folder):
    seen = []

    def say(view):
        seen.extend(t.limit for t in view.waiting)
        return Step([(t, t.pending) for t in view.waiting], ALL)

    made, _ = scripted(folder, say)
    made.add_request(vllm_request(Asked(0, 0.0, 20, 3), limit=300))
    step(made)
    assert seen == [300]


def test_the_base_class_is_the_one_that_vllm_would_choose(folder):
    assert type(scheduler(folder, cls=PolicyScheduler)) is SyncPolicyScheduler
    made = scheduler(folder, cls=PolicyScheduler, asynchronous=True)
    assert type(made) is AsyncPolicyScheduler
    assert isinstance(made, AsyncScheduler)


def test_asynchronous_steps_are_vllms_too(folder):
    """Steps are decided one ahead of their tokens, in vLLM's own asynchronous scheduler and in ours."""

    def ahead(made):
        made_steps, flying = [], None
        for i in range(30):
            made.add_request(vllm_request(Asked(i, 0.0, 10 + 7 * i, 1 + i % 9)))
        while made.has_requests():
            output = made.schedule()
            made_steps.append(dict(output.num_scheduled_tokens))
            # The tokens of a step must be made up before the next step is decided: it changes what is a chunk.
            flying, done = (output, _tokens(made, output)), flying
            if done is not None:
                made.update_from_output(*done)
        return made_steps

    settings = {"asynchronous": True, "max_batched_tokens": 256, "max_sequences": 16}
    ours = scheduler(folder, cls=PolicyScheduler, settings={"policy": "vllm-v1"}, **settings)
    assert ahead(ours) == ahead(scheduler(folder, **settings))


# -- configuration ----------------------------------------------------------------------------------------------


def test_settings_travel_in_vllms_configuration(folder):
    settings = {"policy": "edf_llm", "params": {"drop_late": False}, "profile": "a6000/opt-13b-tp1", "slo": "3+1.5"}
    made = scheduler(folder, cls=PolicyScheduler, settings=settings)
    assert made.policy_object.drop_late is False
    assert made.view.slo.prefill_scale == 3.0
    assert made.view.estimate_prefill(512) > 0.1


def test_unknown_settings_are_refused():
    with pytest.raises(BadInput, match=r"unknown key 'polcy' .*policy"):
        Settings.of({"servetwin": {"polcy": "vllm"}})


@pytest.mark.parametrize("name", ["nobody", "no.such.module:Policy", "fcfs"])
def test_a_policy_that_is_not_there(name):
    with pytest.raises(BadInput):
        find(name)


def test_a_policy_by_its_path():
    from servetwin.policies.llm.vllm_v1 import VLLMV1

    assert find("servetwin.policies.llm.vllm_v1:VLLMV1") is find("vllm-v1") is find("vllm_v1") is VLLMV1


@pytest.mark.parametrize("text", ["3", "a+b", "0+1", ""])
def test_an_slo_that_is_none(text):
    with pytest.raises(BadInput):
        slo_scales(text)


def test_estimates_without_a_profile_are_refused():
    with pytest.raises(BadInput, match="no profile"):
        Estimates.load(None).prefill(5)


def test_a_policy_is_not_changed_under_requests(folder):
    made, _ = scripted(folder, lambda view: Step(), [(20, 3)])
    with pytest.raises(ServeTwinError, match="1 requests are in the engine"):
        made.install(Settings())


def test_without_a_policy_vllm_decides(folder):
    asked = [Asked(i, 0.01 * i, 30 + i, 5 + i % 7) for i in range(50)]

    def seconds(made):
        return 0.01

    theirs = replay(scheduler(folder), asked, seconds)
    assert replay(scheduler(folder, cls=PolicyScheduler), asked, seconds) == theirs
