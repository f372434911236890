"""Devices, routers and engines: the cases, and variants of them, by the right value worked out here.

02  a router forgot what is on its way: bursts went to one of equal replicas
06  a prompt computed anew in chunks was preempted for ever
12  a limit that is met exactly was met or missed by the last bit of the arrival
13  steps of more tokens than ``max_batched_tokens``
15  two workers of one device got it for nothing
"""

import json
import math
import random
from collections import Counter

import pytest
from by_command import call, records, refused, served_by, sets, steps, summary, toy

import servetwin

# -- 02: bursts over equal replicas -------------------------------------------------------------------------------

ROUTERS = ("least_loaded", "least_violating", "round_robin")
BURSTS = {
    "02 case: 3 bursts of 8, edf": ({}, 8, 4, 20),
    "02 bursts of 9 over 3 replicas": ({"deployment__replicas": 3}, 9, 3, 20),
    "02 clockwork, ahead": ({"policy__name": "clockwork"}, 8, 4, 20),
    "02 neustream": ({"policy__name": "neustream"}, 8, 4, 20),
    "02 a client that is far away": ({"system__client_delay": 0.05}, 8, 4, 20),
    "02 no transport": ({"time__transport": False}, 8, 4, 20),
    "02 bursts of one": ({}, 1, 4, 20),
    "02 requests of one iteration": ({}, 8, 4, 1),
}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("case", BURSTS.values(), ids=BURSTS)
def test_02_a_burst_is_shared_out_evenly(case, router, here) -> None:
    more, size, replicas, iterations = case
    bursts = 3 if size > 1 else 8
    (here / "bs.csv").write_text("arrival,steps\n" + "".join(
        f"{10 * (1 + burst)},{iterations}\n" for burst in range(bursts) for _ in range(size)))  # fmt: skip
    (here / "bs.yaml").write_text("""
extends: sd15-512-rtx4090
workload: {requests: null, draws: seeded, arrivals: {process: trace, file: bs.csv}, steps: {unet: {draw: trace}}}
system: {client_delay: 0.0}
time: {noise: false}
policy: {name: edf}
""")
    given = {"deployment__replicas": replicas, "deployment__router": router, **more}
    requests, _ = records("bs.yaml", *sets(**given), out=here / "o")
    each = Counter(served_by(requests, "unet").values())
    assert each == {bursts * size // replicas: replicas}
    assert all(r["outcome"] == "met" for r in requests)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("ahead", [False, True], ids=["02 engines", "02 engines that decide ahead"])
def test_02_engines_of_language_models_too(ahead, router, here) -> None:
    toy(here, [(10.0 * burst, 100, 20) for burst in range(1, 4) for _ in range(10)])
    workers = {"modules": ["llm"], "device": "gpu0", "limit": 64, "engine": {"asynchronous": ahead}}
    given = {"deployment__replicas": 5, "deployment__router": router, "deployment__workers": [workers]}
    requests, _ = records("llm.yaml", *sets(**given), out=here / "o")
    assert Counter(served_by(requests, "llm").values()) == {6: 5}


def test_02_who_is_busy_counts_and_who_comes_too(here) -> None:
    """One has 0.1 s left to do; of three that come at once and take as long, one goes there and two elsewhere."""
    steps(here, [(1.0, 60), (1.5, 10), (1.5, 10), (1.5, 10)], grows=True)
    for router in ("least_loaded", "least_violating"):
        given = sets(deployment__replicas=2, deployment__router=router)
        requests, _ = records("steps.yaml", *given, out=here / router)
        assert sorted(served_by(requests, "loop").values()) == [2, 2], router
        (first,) = (r["stages"][0]["worker"] for r in requests if r["id"] == 0)
        assert served_by([r for r in requests if r["id"]], "loop")[first] == 1


def test_02_whole_second_stamps_are_served_as_by_taking_turns(here) -> None:
    draw = random.Random(2)
    rows = [(float(draw.randrange(1, 400)), 20) for _ in range(600)]
    steps(here, sorted(rows), seconds=0.02)
    met = {
        router: summary("steps.yaml", *sets(deployment__replicas=4, deployment__router=router, slo__seconds=1.0))
        for router in ROUTERS
    }
    assert met["least_loaded"]["attainment"] >= met["round_robin"]["attainment"] - 0.01


@pytest.mark.parametrize("router", ["least_loaded", "least_violating"])
@pytest.mark.parametrize("policy", ["edf", "neustream", "fcfs", "vllm", "vllm-v1", "edf-llm", "neustream-llm"])
def test_02_a_router_sees_how_far_a_batch_has_come(policy, router, here) -> None:
    """What runs many iterations as one event has done some of them when the next request comes: a check, which asks
    at every step as well, finds the same."""
    draw = random.Random(7)
    times = sorted(round(draw.uniform(1.0, 9.0), 3) for _ in range(40))
    steps(here, [(t, draw.randrange(5, 120)) for t in times], grows=True)
    toy(here, [(t, draw.randrange(10, 900), draw.randrange(1, 90)) for t in times])
    more = f"  replicas: 3\n  router: {router}\n  workers:"
    text = (here / ("llm.yaml" if "ll" in policy else "steps.yaml")).read_text().replace("  workers:", more)
    text = text.replace("slo: {seconds: 60.0}", "slo: {factor: 3.0}")
    if policy in ("edf-llm", "neustream-llm"):
        text = text.replace("slo: {limits: {ttft_ms: 500, tpot_ms: 80}}", "slo: {prefill: 3.0, decode: 1.5}")
    (here / "e.yaml").write_text(text)
    code, out, err = call("check", policy, "e.yaml")
    assert code == 0, err
    assert "no fault found" in out


# -- 06: engines whose memory a request outgrows ------------------------------------------------------------------

ENGINES = {
    "06 case: sarathi in chunks of 500": ("sarathi", {"policy__params__chunk": 500}, {"headroom": 1}),
    "06 vllm-v1, a budget of 500": ("vllm-v1", {"policy__params__budget": 500}, {"headroom": 1}),
    "06 without headroom": ("sarathi", {"policy__params__chunk": 500}, {"headroom": 0}),
    "06 two blocks of headroom": ("sarathi", {"policy__params__chunk": 250}, {"headroom": 2}),
    "06 deciding ahead": ("vllm-v1", {"policy__params__budget": 500}, {"headroom": 1, "asynchronous": True}),
    "06 swapping": ("sarathi", {"policy__params__chunk": 500}, {"headroom": 1, "preemption": "swap"}),
    "06 edf-llm": ("edf-llm", {"slo": {"prefill": 99, "decode": 99}}, {"headroom": 1}),
    "06 blocks of 8": ("sarathi", {"policy__params__chunk": 500}, {"headroom": 1, "block_size": 8}),
}


@pytest.mark.parametrize("case", ENGINES.values(), ids=ENGINES)
def test_06_a_request_ends_whether_it_fits_or_not(case, here) -> None:
    """900 tokens of prompt and 200 of output want memory for 1,099: the last one need not be kept."""
    policy, more, engine = case
    toy(here, [(1.0, 900, 200)])
    size = engine.get("block_size", 16)
    edge = math.ceil(1099 / size)
    for blocks in (edge - 7, edge - 6, edge - 5, edge - 1, edge, edge + engine["headroom"]):
        given = {"deployment__workers__0__engine": {**engine, "blocks": blocks}, "time__costs": False, **more}
        found = summary("llm.yaml", "--policy", policy, *sets(**given))
        assert (found["failed"], found["requests"]) == (int(blocks * size < 1099), 1), blocks


@pytest.mark.parametrize("policy", ["vllm", "vllm-v1", "sarathi", "edf-llm", "neustream-llm"])
def test_06_random_small_engines_all_end(policy, here) -> None:
    """Each alone fails if it does not fit, and only then; nobody is left over in company."""
    for seed in range(6):
        draw = random.Random(f"{policy} {seed}")
        size, blocks = draw.choice([1, 4, 16]), draw.randrange(3, 60)
        rows, now = [], 1.0
        for _ in range(draw.randrange(1, 20)):
            now += draw.choice([0.0, 0.0, 0.001, 0.05, 0.3])
            rows.append((now, draw.randrange(1, max(2, int(blocks * size * 1.2))), draw.choice([1, 1, 2, 17, 60])))
        toy(here, rows)
        engine = {
            "blocks": blocks,
            "block_size": size,
            "headroom": draw.choice([0, 1]),
            "max_batched_tokens": 4096,
            "watermark": draw.choice([0.0, 0.2]),
            "asynchronous": draw.random() < 0.4,
        }
        given = {"deployment__workers__0__engine": engine, "time__costs": False}
        if policy in ("edf-llm", "neustream-llm"):
            given["slo"] = {"prefill": 3.0, "decode": 1.5}
        requests, _ = records("llm.yaml", "--policy", policy, *sets(**given), out=here / f"o{seed}")
        assert len(requests) == len(rows)
        for r in requests:
            _, prompt, output = rows[r["id"]]
            if prompt + output - 1 > blocks * size:
                assert r["outcome"] in ("failed", "dropped"), (seed, r["id"])
                assert r["outcome"] == "dropped" or "do" in r["reason"]


def test_06_a_sweep_with_such_a_point_ends(here) -> None:
    toy(here, [(1.0, 900, 200), (2.0, 10, 5)])
    (here / "s.yaml").write_text("""
extends: llm.yaml
set: {policy: {name: sarathi, params: {chunk: 500}}, deployment.workers.0.engine: {headroom: 1, blocks: 63}}
grid: {deployment.workers.0.engine.blocks: [62, 63, 64, 69]}
""")
    code, _, err = call("sweep", "s.yaml", "--out", "rows.csv")
    assert code == 0, err
    header, *lines = [line.split(",") for line in (here / "rows.csv").read_text().splitlines()]
    assert [int(line[header.index("failed")]) for line in lines] == [1, 1, 1, 0]


# -- 12: exactly on the limit -------------------------------------------------------------------------------------

LIMITS = {
    "12 case: end to end": ({"e2el_ms": 400}, 200),
    "12 case: first and other tokens": ({"ttft_ms": 20, "tpot_ms": 20}, 200),
    "12 a nanosecond less": ({"e2el_ms": 399.9999}, 0),
    "12 a nanosecond more": ({"e2el_ms": 400.0001}, 200),
    "12 each gap between tokens": ({"itl_ms": 20}, 200),
    "12 a first token a little sooner": ({"ttft_ms": 19.9999}, 0),
}
SINCE = {"3.7 s apart": (1.0, 3.7), "at tenths": (0.1, 0.7), "after a year": (3.2e7, 1.1), "thirds": (1 / 3, 10 / 3)}


@pytest.mark.parametrize("since", SINCE.values(), ids=SINCE)
@pytest.mark.parametrize("case", LIMITS.values(), ids=LIMITS)
def test_12_all_or_none_are_in_time(case, since, here) -> None:
    """A prompt of 100 tokens takes 20 ms, and so does each of 19 steps: 0.4 s in all."""
    limits, met = case
    begin, gap = since
    toy(here, [(begin + i * gap, 100, 20) for i in range(200)])
    assert summary("llm.yaml", *sets(slo={"limits": limits}))["met"] == met


#: Policy, its parameters, and what it needs beyond 0.2 s: Clockwork plans a millisecond of its own; NeuStream, as in
#: the artifact, gives up who would end exactly when it is due.
SERVING = {
    "fcfs": ("fcfs", {}, 0.0),
    "edf": ("edf", {}, 0.0),
    "neustream": ("neustream", {"policy__params__slo_factor": 2.0}, 5e-7),
    "clockwork": ("clockwork", {}, 0.001),
    "clockwork by its table": ("clockwork", {"policy__params__pacing": "table"}, 0.0),
}


@pytest.mark.parametrize("policy", SERVING.values(), ids=[f"12 {name}" for name in SERVING])
@pytest.mark.parametrize(("beyond", "met"), [(0.0, 200), (-1e-6, 0)], ids=["on it", "beyond it"])
@pytest.mark.parametrize("begin", [0.1, 1000.3])
def test_12_deadlines_of_loops_too(begin, policy, beyond, met, here) -> None:
    """20 iterations of 10 ms, alone."""
    name, more, needs = policy
    steps(here, [(begin + 0.7 * i, 20) for i in range(200)])
    assert summary("steps.yaml", "--policy", name, *sets(slo__seconds=0.2 + needs + beyond, **more))["met"] == met


@pytest.mark.parametrize("policy", ["edf-llm", "neustream-llm"])
@pytest.mark.parametrize("ahead", [False, True], ids=["12 in turn", "12 ahead"])
@pytest.mark.parametrize(("prefill", "met"), [(1.0, 200), (0.999, 0)], ids=["on it", "beyond it"])
def test_12_deadlines_of_tokens_too(policy, ahead, prefill, met, here) -> None:
    """Who is alone has each token exactly when it is due, where the factors are 1."""
    toy(here, [(0.1 + 0.7 * i, 100, 20) for i in range(200)])
    given = {"slo": {"prefill": prefill, "decode": 1.0}, "deployment__workers__0__engine__asynchronous": ahead}
    if policy == "neustream-llm":
        given["policy__params__lenient_steps"] = 0
    assert summary("llm.yaml", "--policy", policy, *sets(**given))["met"] == met


def test_12_an_slo_factor_of_one_is_what_it_takes_alone(here) -> None:
    steps(here, [(0.1 + 0.7 * i, 20) for i in range(100)])
    text = (here / "steps.yaml").read_text().replace("slo: {seconds: 60.0}", "slo: {factor: 1.0}")
    (here / "steps.yaml").write_text(text)
    assert summary("steps.yaml")["met"] == 100
    assert summary("steps.yaml", *sets(slo__factor=0.999))["met"] == 0


# -- 13: tokens of a step -----------------------------------------------------------------------------------------

FEW = {"deployment__workers__0__engine__max_batched_tokens": 8}


@pytest.mark.parametrize("policy", ["vllm", "vllm-v1", "sarathi", "edf-llm", "neustream-llm"])
def test_13_more_requests_than_a_step_has_tokens_are_refused(policy, here) -> None:
    toy(here, [(1.0, 4, 400)] * 3)
    more = {"slo": {"prefill": 3, "decode": 2}} if policy in ("edf-llm", "neustream-llm") else {}
    says = ("limit", "64 requests", "8 tokens", "max_batched_tokens")
    refused("run", "llm.yaml", "--policy", policy, *sets(**FEW, **more), says=says)


REFUSED_BY = {
    "13 in a sweep": ("sweep", "s.yaml", "--out", "rows.csv"),
    "13 in a search": ("search", "llm.yaml", "--seeds", "1", *sets(**FEW, workload__arrivals__rate=1)),
    "13 by check": ("check", "vllm", "few.yaml"),
    "13 with replicas": ("run", "llm.yaml", *sets(deployment__replicas=2, **FEW)),
    "13 deciding ahead": ("run", "llm.yaml", *sets(deployment__workers__0__engine__asynchronous=True, **FEW)),
    "13 said by the profile": ("run", "small.yaml"),
}


@pytest.mark.parametrize("command", REFUSED_BY.values(), ids=REFUSED_BY)
def test_13_by_whatever_command(command, here) -> None:
    toy(here, [(1.0 * i, 4, 400) for i in range(1, 30)])
    (here / "s.yaml").write_text(
        "extends: llm.yaml\ngrid: {deployment.workers.0.engine.max_batched_tokens: [8, 64]}\n"
    )
    (here / "few.yaml").write_text(
        (here / "llm.yaml").read_text().replace("engine: {}", "engine: {max_batched_tokens: 8}")
    )
    (here / "small.yaml").write_text((here / "llm.yaml").read_text().replace("toy.yaml", "small-toy.yaml"))
    small = (here / "toy.yaml").read_text().replace("max_batched_tokens: 4096", "max_batched_tokens: 8")
    (here / "small-toy.yaml").write_text(small)
    code, _, err = call(*command)
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert "8 tokens" in err, err
    assert not (here / "rows.csv").exists()


def test_13_in_python(here) -> None:
    toy(here, [(1.0, 4, 40)])
    with pytest.raises(servetwin.Error, match="8 tokens"):
        servetwin.run("llm.yaml", settings={"deployment.workers.0.engine.max_batched_tokens": 8})


@pytest.mark.parametrize("policy", ["vllm-v1", "sarathi"])
@pytest.mark.parametrize("ahead", [False, True], ids=["13 in turn", "13 ahead"])
def test_13_no_step_computes_more_than_it_may(policy, ahead, here) -> None:
    toy(here, [(1.0 + i / 50, 4 + 7 * (i % 5), 40) for i in range(40)])
    workers = [{"modules": ["llm"], "device": "gpu0", "limit": 8,
                "engine": {"max_batched_tokens": 8, "asynchronous": ahead}}]  # fmt: skip
    _, batches = records("llm.yaml", "--policy", policy, *sets(deployment__workers=workers), out=here / "o")
    tokens = [b["decode"] + sum(n for _, n, _ in b["prefill"]) for b in batches]
    assert max(tokens) == 8
    assert max(b["decode"] for b in batches) <= 8


# -- 15: two workers of one device --------------------------------------------------------------------------------

TWO = [{"modules": ["dit"], "device": "gpu0", "limit": 8}] * 2 + [{"modules": ["vae"], "device": "gpu0", "limit": 4}]
PAIR = "\n    - {modules: [loop], device: gpu0, limit: 8}"
SHARING = {
    "15 case: two lanes of one model": ("dit-xl2-256-h100", {"deployment__workers": TWO}),
    "15 case: two resolutions": ("mixed.yaml", {}),
    "15 two workers of a csv profile": ("pair.yaml", {}),
    "15 replicas on the same device": ("same.yaml", {}),
    "15 a named deployment": ("named.yaml", {"deployment": "both"}),
    "15 two engines": ("engines.yaml", {}),
}


@pytest.fixture
def sharing(here):
    """Experiments whose workers share gpu0, and nothing says what that costs."""
    steps(here, [(1.0 + 0.05 * i, 20) for i in range(100)])
    text = (here / "steps.yaml").read_text()
    line = "    - {modules: [loop], device: gpu0, limit: 8}\n"
    (here / "pair.yaml").write_text(text.replace(line, line * 2))
    (here / "same.yaml").write_text(text.replace(line, line * 3 + "  router: least_loaded\n"))
    (here / "named.yaml").write_text(
        text.replace("  workers:\n" + line, "  name: one\n")
        + f"deployments:\n  one:\n    workers:\n  {line}  both:\n    workers:\n  {line}  {line}"
    )
    rows = ["module,batch,seconds"]
    for name, one, eight in (("clip", 0.002, 0.004), ("u512", 0.01, 0.03), ("u1024", 0.04, 0.2), ("vae", 0.02, 0.1)):
        rows += [f"{name},{n},{one + (eight - one) * (n - 1) / 7!r}" for n in range(1, 9)]
    (here / "mixed.csv").write_text("\n".join(rows) + "\n")
    workers = "".join(f"    - {{modules: [{m}], device: gpu0, limit: 8}}\n" for m in ("clip", "u512", "u1024", "vae"))
    (here / "mixed.yaml").write_text(f"""
name: mixed
pipeline:
  modules: {{clip: {{}}, u512: {{loop: true}}, u1024: {{loop: true}}, vae: {{join: any}}}}
  edges: [[clip, u512], [u512, vae], [u1024, vae]]
  branches: [{{from: clip, to: u1024, probability: 0.3}}]
workload:
  requests: 200
  arrivals: {{process: poisson, rate: 5.0}}
  steps: {{u512: {{draw: constant, steps: 30}}, u1024: {{draw: constant, steps: 30}}}}
slo: {{seconds: 6.0}}
policy: {{name: edf}}
deployment:
  devices: {{gpu0: mixed.csv}}
  workers:
{workers}time: {{noise: false}}
""")
    toy(here, [(1.0 + 0.05 * i, 100, 20) for i in range(100)])
    engine = "    - {modules: [llm], device: gpu0, limit: 64, engine: {}}\n"
    own = "    - {modules: [llm], device: gpu0, limit: 64, engine: {blocks: 400}}\n"
    (here / "engines.yaml").write_text((here / "llm.yaml").read_text().replace(engine, own * 2))
    return here


@pytest.mark.parametrize("case", SHARING.values(), ids=SHARING)
def test_15_what_was_not_measured_is_refused(case, sharing) -> None:
    experiment, more = case
    refused("run", experiment, *sets(**more), says=("share a device", "does not say what they cost"))


COMMANDS = {
    "15 sweep": ("sweep", "s.yaml", "--out", "rows.csv"),
    "15 check": ("check", "edf", "pair.yaml"),
    "15 search": ("search", "pair.yaml", "--seeds", "1", *sets(workload__arrivals__rate=1)),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_15_by_whatever_command(command, sharing) -> None:
    (sharing / "s.yaml").write_text("extends: pair.yaml\ngrid: {slo.seconds: [1, 2]}\n")
    code, _, err = call(*command)
    assert (code, err.count("\n")) == (2, 1), err
    assert "share a device" in err, err


def test_15_in_python(sharing) -> None:
    with pytest.raises(servetwin.Error, match="share a device"):
        servetwin.run("pair.yaml")


@pytest.mark.parametrize("experiment", ["pair.yaml", "same.yaml", "mixed.yaml", "engines.yaml"])
def test_15_shared_in_time_no_device_does_more_than_it_can(experiment, sharing) -> None:
    """The work of all batches, each as long as it takes alone, fits into the time that passed."""
    code, told, err = call("run", experiment, *sets(time__unmeasured="shared"), "--out", sharing / "o")
    assert code == 0, err
    assert "in time: what they cost each other was not measured" in told
    batches = [json.loads(line) for line in (sharing / "o" / "batches.jsonl").read_text().splitlines()]
    table = {tuple(row.split(",")[:2]): float(row.split(",")[2])
             for name in ("steps.csv", "mixed.csv") for row in (sharing / name).read_text().split()[1:]}  # fmt: skip
    work = 0.0
    for b in batches:
        if "prefill" in b:
            tokens = sum(n for _, n, _ in b["prefill"])
            work += 0.01 + 1e-4 * tokens if tokens else 0.02 * len(b.get("ends", [0]))
        else:
            work += sum(table[m, str(len(b["requests"]))] for m in b["modules"]) * len(b.get("ends", [0]))
    passed = max(b["end"] for b in batches) - min(b["start"] for b in batches)
    assert 0.3 * passed < work <= passed * (1 + 1e-9)


def test_15_two_that_share_are_no_quicker_than_one(sharing) -> None:
    """Under load: 20 iterations of 10 ms, 20 requests/s, which want 4 times what a device does one by one."""
    one = summary("steps.yaml", *sets(slo__seconds=0.5))
    two = summary("pair.yaml", *sets(slo__seconds=0.5, time__unmeasured="shared"))
    assert two["met"] <= one["met"]
    assert two["duration"] >= one["duration"] * (1 - 1e-9)


def test_15_engines_that_share_must_say_their_memory(sharing) -> None:
    text = (sharing / "engines.yaml").read_text().replace("engine: {blocks: 400}", "engine: {}")
    (sharing / "engines.yaml").write_text(text)
    refused("run", "engines.yaml", *sets(time__unmeasured="shared"), says=("blocks", "share"))
