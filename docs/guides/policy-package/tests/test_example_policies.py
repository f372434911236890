from example_policies.prompts import ShortPromptsFirst
from example_policies.slack import SlackFirst
from servetwin.core.testing import FakeEngine, FakeWorker, Job, assert_policy_contract, play


def test_the_least_slack_goes_first():
    waiting = [Job(10, slo=2.0), Job(10, slo=0.5), Job(30, slo=1.0)]
    assert FakeWorker(SlackFirst(max_batch=2), waiting=waiting).decide(now=0.0) == [2, 1]


def test_who_cannot_be_in_time_is_given_up():
    played = play(SlackFirst, [Job(10, slo=0.2), Job(2, slo=1.0)], seconds=0.03)
    assert played.outcomes == ["dropped", "met"]


def test_short_prompts_go_first():
    step = FakeEngine(ShortPromptsFirst(at_once=1), waiting=[400, 100]).decide(now=0.0)
    assert step.prefill == [(1, 100)]


def test_they_keep_the_contract():
    assert_policy_contract(SlackFirst, margin=0.01)
    assert_policy_contract(ShortPromptsFirst)
