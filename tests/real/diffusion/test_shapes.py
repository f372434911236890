"""Requests of several shapes in one run: their images are those that they have alone, and diffusers' own at that
size."""

import json
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from one_request import begin, finish
from servetwin.core import BadInput, Shape
from servetwin.core.invariants.record_checker import check_records
from servetwin.experiments.assembly.build import run
from servetwin.experiments.backends.diffusion import Backend, Setup
from servetwin.experiments.cli import entry
from servetwin.experiments.spec.loading import load
from servetwin.profiles import load as load_profile
from servetwin.profiles.schema import ProfileFile
from servetwin.real import Options, Server, take_profile
from servetwin.real.diffusion.device_slots import DeviceSlots
from servetwin.real.diffusion.model_registry import KINDS
from test_models import PIPELINES, ROUNDING, STEPS, TINY

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

CPU = torch.device("cpu")
#: What a busy machine measures is at times refused as the profile of none.
TRIES = 3
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "request-shapes.md"
#: Another size than the model's own, and a larger one; sides differ.
SIZES = {"tiny-wan": [Shape(16, 32, 5), Shape(32, 16, 9)], "tiny-dit": [Shape(16, 16), Shape(24, 24)]}
USUAL = [Shape(16, 16), Shape(32, 24)]


def shapes_of(name):
    return SIZES.get(name, USUAL)


def slots_of(name, shapes, device=CPU, **options):
    slots = DeviceSlots(KINDS[name], Options(device=str(device), slots=4, **options), device, shapes)
    for module in slots.model.bodies:
        slots.warm(module, 2)
    slots.reset()
    return slots


def alone(slots, number, steps, shape):
    """Its latents and its image."""
    progress = begin(slots, number, steps, shape)
    for _ in range(steps):
        slots.step([progress])
    latents = slots.model.rooms[shape].state["latents"][progress.slot].clone()
    image = finish(slots, progress)
    slots.release(number)
    return latents, image


@pytest.mark.parametrize("guidance", [None, 1])
@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_images_are_those_of_the_pipeline_at_that_size(name, guidance):
    number, kind = 3, KINDS[name]
    shape = shapes_of(name)[1]._replace(guidance=guidance)
    slots = slots_of(name, [shape, shapes_of(name)[0]])
    pipeline, more = PIPELINES[name](slots.model.networks, slots.model.inputs[number])
    pipeline.set_progress_bar_config(disable=True)
    latent = slots.model.rooms[shape].kind.latent
    noise = torch.empty(1, *latent).normal_(generator=torch.Generator().manual_seed(number))
    if name == "tiny-flux":
        noise = pipeline._pack_latents(noise, *noise.shape)
    if kind.frames is not None:
        more["num_frames"] = shape.frames
    if guidance is not None and kind.rows == 2:
        more["guidance_scale"] = 1.0  # by which diffusers is told that there is none
    made = pipeline(
        "a prompt", num_inference_steps=STEPS, latents=noise, height=shape.height, width=shape.width,
        output_type="pt", **more,
    )  # fmt: skip
    wanted = made.frames[0].transpose(0, 1) if kind.frames is not None else made.images[0]
    _, found = alone(slots, number, STEPS, shape)
    assert found.shape == wanted.shape == slots.model.rooms[shape].kind.image_shape
    assert found.float().std() > 10
    assert (found.float() - wanted * 255).abs().max() <= 1.01


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_alone_is_as_among_requests_of_other_shapes(name, precision):
    """They take turns, in the slots of one another, and share batches with their like."""
    shapes = shapes_of(name)
    slots = slots_of(name, shapes, precision=precision)
    numbers = {0: (5, shapes[0]), 1: (3, shapes[1]), 2: (4, shapes[0]), 3: (4, shapes[1])}
    wanted = {number: alone(slots, number, *request) for number, request in numbers.items()}
    batch = {number: begin(slots, number, *request) for number, request in numbers.items()}
    for _ in range(5):
        slots.step([batch[0], batch[2]])
        slots.step([batch[3], batch[1]])
    for number, progress in batch.items():
        found = slots.model.rooms[progress.shape].state["latents"][progress.slot]
        latents, image = wanted[number]
        off = (found - latents).abs().max()
        assert off <= ROUNDING[precision] * max(1.0, latents.abs().max())
        assert found.shape == slots.model.rooms[progress.shape].kind.latent
        if precision == "float32":
            assert (finish(slots, progress).int() - image.int()).abs().max() <= 1


def test_a_shape_that_is_the_models_own_gives_its_images():
    """To the bit, though the slots are larger than it needs."""
    own = Shape(16, 16)
    with_others = slots_of("tiny-sdxl", [own, Shape(32, 32)])
    plain = slots_of("tiny-sdxl", [None])
    for number in range(2):
        found, wanted = (alone(s, number, 4, shape) for s, shape in ((with_others, own), (plain, None)))
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_a_slot_takes_what_the_largest_shape_does():
    small, large = Shape(16, 16), Shape(32, 32)
    slots = DeviceSlots(KINDS["tiny-dit"], Options(device="cpu", slots=4), CPU, [small, large])
    # Latents of 4 x 8 x 8 in single precision, an image of 3 x 16 x 16 bytes, and a label.
    assert slots.model.slot_bytes == {small: 4 * 64 * 4 + 3 * 256 + 8, large: 4 * 256 * 4 + 3 * 1024 + 8}
    assert sum(t.numel() * t.element_size() for t in slots.model.whole.values()) == 4 * slots.model.slot_bytes[large]
    runners = slots.warm("dit", {small: 2, large: 1})
    assert runners.limits == {small: 2, large: 1}
    slots.lay_out([small])  # it has room for that
    assert slots.runners
    slots.lay_out([None])
    assert not slots.runners
    assert [*slots.model.rooms] == [None]
    with pytest.raises(BadInput, match=r"slots for 1000000000 requests of up to 32x32 take .*GiB of cpu are free"):
        DeviceSlots(KINDS["tiny-dit"], Options(device="cpu", slots=10**9), CPU, [small, large])


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("sdxl-1024", Shape(1024, 1020), r"1024x1020: sides of sdxl-1024 are multiples of 8 .*1024x1024"),
        ("flux1-dev-1024", Shape(1032, 1024), r"sides of flux1-dev-1024 are multiples of 16 .*1024x1024"),
        ("palette-256", Shape(4, 8), r"multiples of 8 pixels .*8x8"),
        ("dit-s2-256", Shape(256, 512), r"images of dit-s2-256 are square .*256x256"),
        ("sd3-medium-1024", Shape(1024, 4096), r"knows no positions beyond 3072 pixels"),
        ("sdxl-1024", Shape(1024, 1024, 2), r"sdxl-1024 makes images"),
        ("wan-1.3b-480p", Shape(480, 832, 80), r"one more than a multiple of 4 .*frames: 81"),
        ("sdxl-1024", Shape(1024, 1024, images=2), r"makes one image of each prompt"),
        ("flux1-dev-1024", Shape(1024, 1024, guidance=2), r"runs 1 row an image .*guidance: 1, or left out"),
        ("sdxl-1024", Shape(1024, 1024, guidance=3), r"runs 2 rows an image .*guidance: 2, or 1 for none"),
    ],
)
def test_shapes_that_a_model_cannot_serve(name, shape, said):
    with pytest.raises(BadInput, match=said):
        KINDS[name].at(shape)


def test_sizes_of_full_models():
    sized = KINDS["wan-1.3b-480p"].at(Shape(832, 480, 49))
    assert (sized.latent, sized.image_shape, sized.rows) == ((16, 13, 104, 60), (3, 49, 832, 480), 2)
    sized = KINDS["flux1-dev-1024"].at(Shape(768, 1344))
    assert (sized.latent, sized.tokens(sized.latent)) == ((16, 96, 168), 48 * 84)
    assert KINDS["sdxl-1024"].at(Shape(1024, 1024, guidance=1)).rows == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_graphs_of_two_shapes_give_what_eager_steps_give(name):
    """Within what half precision leaves, as `test_gpu` has it of one; the graphs of both share their memory."""
    near = 0.01 if KINDS[name].precision == "float16" else 0.08
    device, shapes = torch.device("cuda", 0), shapes_of(name)
    made = []
    for eager in (True, False):
        slots = slots_of(name, shapes, device, eager=eager)
        batches = [[begin(slots, 2 * i + k, 6, shape) for k in range(2)] for i, shape in enumerate(shapes)]
        for _ in range(6):
            for batch in batches:
                slots.step(batch)
        torch.cuda.synchronize()
        flat = [progress for batch in batches for progress in batch]
        made.append([slots.model.rooms[p.shape].state["latents"][p.slot].clone() for p in flat])
    for eager, graph in zip(*made, strict=True):
        assert torch.isfinite(eager).all()
        assert eager.std() > 0
        assert (graph - eager).norm() / eager.norm() < near


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_profile_says_what_shapes_take_of_a_gpus_memory():
    server = Server("tiny-sdxl", Options(device="cuda:0", slots=16))
    content = take_profile(server, "gpu/tiny", limit=2, seconds=0.05, brief=True, shapes=[Shape(32, 32)])
    shapes = ProfileFile.model_validate(content).shapes
    assert 0.0 < shapes.weights_gib < 1.0
    own, larger = shapes.memory, shapes.measured[0].memory
    assert 0.0 < own.slot_gib < larger.slot_gib
    for one, other in zip(own.peak.gib, larger.peak.gib, strict=True):
        assert 0.0 < one <= other


# -- runs -----------------------------------------------------------------------------------------------------

#: Each policy object must be shown what the profile says of both shapes, in both worlds.
POLICY = """
from servetwin.core import Decision, Policy, Shape

SMALL, LARGE = Shape(16, 16), Shape(32, 32)


class Own(Policy):
    heeds_shapes = True

    def start(self, view):
        assert view.limit_of(SMALL) == 2 and view.limit_of(LARGE) == {large}, "limits"
        module = view.stage.modules[0]
        seen = [view.estimate(module, 1, shape) for shape in (SMALL, LARGE)]
        assert seen == {times}[module], "estimates"

    def decide(self, view, now):
        groups = {{}}
        for task in [*view.running, *view.waiting]:
            groups.setdefault(task.shape, []).append(task)
        if not groups:
            return Decision()
        shape, group = max(groups.items(), key=lambda item: (len(item[1]), item[0]))
        return Decision(group[: view.limit_of(shape)])
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Of a tiny DiT at its own size and a larger one: what the guide's commands leave."""
    folder = tmp_path_factory.mktemp("shapes")
    (text,) = re.findall(r"^```yaml\n# shapes.yaml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "shapes.yaml").write_text(text)
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands.splitlines():
            patch.setattr("sys.argv", shlex.split(line))
            tries = TRIES if "servetwin profile" in line else 1
            assert any(entry._run() == 0 for _ in range(tries)), line
    return folder / "tiny-shapes.yaml"


def test_the_guides_runs_are_of_both_shapes(profile):
    for world in ("real", "simulated"):
        check_records(profile.parent / "runs" / world)
        lines = (profile.parent / "runs" / world / "requests.jsonl").read_text().splitlines()
        assert {json.loads(line)["shape"]["height"] for line in lines} == {16, 32}
    assert (profile.parent / "scored.csv").read_text().count("\n") == 2


def experiment(profile, policy="edf", **changes):
    workers = [{"modules": [module], "device": "gpu0", "limit": 2} for module in ("dit", "vae")]
    return load(
        {
            "name": "shapes",
            "pipeline": {"modules": {"dit": {"loop": True}, "vae": {}}},
            "workload": {
                "requests": 12,
                "arrivals": {"process": "poisson", "rate": 40.0},
                "steps": {"dit": {"draw": "uniform", "low": 3, "high": 6}},
                "shape": {"draw": "choice", "values": ["16x16", "32x32"]},
                **changes,
            },
            "slo": {"factor": 400.0},
            "policy": {"name": str(policy)},
            "deployment": {"devices": {"gpu0": str(profile)}, "workers": workers},
        }
    )


def test_a_profile_of_several_shapes(profile):
    said = yaml.safe_load(profile.read_text())["shapes"]
    assert (said["between"], said["fixed"]) == ("refused", [])
    (larger,) = said["measured"]
    assert larger["size"] == [32, 32]
    assert {m: [*t["tables"]] for m, t in larger["modules"].items()} == {
        "dit": ["scheduler", "measured"],
        "vae": ["scheduler"],
    }
    at = load_profile(str(profile)).at(Shape(32, 32))
    assert at.table("dit", "measured").sizes == (1, 2)
    with pytest.raises(BadInput, match="nobody measured 24x24"):
        load_profile(str(profile)).at(Shape(24, 24))


def test_both_worlds_serve_and_record_the_same(profile, tmp_path):
    """The same requests, views, words; batches of one shape."""
    known = [load_profile(str(profile)).at(shape) for shape in (Shape(16, 16), Shape(32, 32))]
    times = {module: [p.table(module, "scheduler")(1) for p in known] for module in ("dit", "vae")}
    policy = tmp_path / "own.py"
    policy.write_text(POLICY.format(large=2, times=times))
    said = []
    Backend(Setup(("cpu",))).run(experiment(profile, policy), tmp_path / "real", said.append)
    run(experiment(profile, policy), tmp_path / "simulated")
    found = {}
    for world in ("real", "simulated"):
        check_records(tmp_path / world)
        lines = (tmp_path / world / "requests.jsonl").read_text().splitlines()
        requests = {r["id"]: r for r in map(json.loads, lines)}
        of = {number: tuple(r["shape"].values()) for number, r in requests.items()}
        batches = map(json.loads, (tmp_path / world / "batches.jsonl").read_text().splitlines())
        assert all(len({of[i] for i in batch["requests"]}) == 1 for batch in batches)
        assert {r["outcome"] for r in requests.values()} == {"met"}
        words = {key for r in requests.values() for key in r}
        summary = json.loads((tmp_path / world / "summary.json").read_text())
        found[world] = (of, words, summary["shapes"])
    assert found["real"] == found["simulated"]
    assert Counter(shape[:2] for shape in found["real"][0].values()).keys() == {(16, 16), (32, 32)}
    assert "256 slots on gpu0, each as large as its largest: " in " ".join(said)
    assert "to be warmed up for dit: batches of up to 2 of 16x16, 2 of 32x32" in said
    told = json.loads((tmp_path / "real" / "real.json").read_text())
    assert {key.partition(" of ")[2] for key in told["iteration_ms"]["dit"]} == {"16x16", "32x32"}
    (ratio,) = told["over_profile"].values()
    assert ratio > 0.2  # a busy host takes any number of times as long


def test_the_network_stays_when_shapes_change_and_slots_do_not(profile):
    backend = Backend(Setup(("cpu",)))
    backend.run(experiment(profile))
    (server,) = backend.servers.values()
    slots = server.by_device["gpu0"]
    network, runner = slots.model.networks["dit"], slots.runners["dit"]
    backend.run(experiment(profile, shape={"draw": "constant", "size": "32x32"}))
    assert slots.runners["dit"] is runner  # it can do more than that
    backend.run(experiment(profile, shape=None))
    assert [*slots.model.rooms] == [None]
    assert server.by_device["gpu0"].model.networks["dit"] is network
    assert slots.runners["dit"] is not runner
    backend.close()
    assert not backend.servers


def test_in_processes_too(profile, tmp_path):
    backend = Backend(Setup(("cpu",), processes=True))
    report = backend.run(experiment(profile, requests=6), tmp_path / "run")
    assert report.summary.met == 6
    check_records(tmp_path / "run")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("24x20", r"workload.shape: 24x20: images of tiny-dit are square .*24x24"),
        ("17x17", r"workload.shape: 17x17: sides of tiny-dit are multiples of 4 pixels .*16x16"),
        ({"size": "16x16", "images": 2}, r"a real run makes one image of each prompt .*images: 1"),
        ({"size": "16x16", "guidance": 2}, r"tiny-dit runs 1 row an image .*guidance: 1"),
    ],
)
def test_shapes_are_refused_before_anything_is_built(profile, shape, said, tmp_path):
    shapes = {"draw": "choice", "values": [shape]}
    with pytest.raises(BadInput, match=said):
        Backend(Setup(("cpu",))).run(experiment(profile, shape=shapes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiled_networks_have_one_size(profile, tmp_path):
    with pytest.raises(BadInput, match=r"--compile: a compiled network is served at one size"):
        Backend(Setup(("cpu",), compile="blocks", foreign=True)).run(experiment(profile))
