"""A model in a file of its own, as docs/guides/diffusion-models.md shows it: profiled, run, compared; and what is
wrong with such a file is said in one line."""

import json
import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from servetwin.core import BadInput
from servetwin.real.diffusion import model_registry
from servetwin.real.diffusion.model_registry import class_of, find

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "diffusion-models.md"

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the guide."""
    for name, text in re.findall(r"^```\w+\n# ([\w.]+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVETWIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_guide(folder, servetwin):
    (block,) = re.findall(r"^```sh\n(servetwin profile digits.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        code, out, err = servetwin(*line.split()[1:])
        assert code == 0, (line, err)
    assert "iteration" in out
    assert "attainment" in out
    meta = json.loads((folder / "runs/real/meta.json").read_text())
    assert (meta["model"], meta["options"]["scheduler"]) == ("digits", "dpm++2m")
    assert len(meta["model_file"]) > 20
    assert json.loads((folder / "runs/real/summary.json").read_text())["requests"] == 40


def test_by_file_module_and_name(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    kind = find("digits.py")
    assert kind.name == "digits"
    assert class_of(kind).__name__ == "Digits"
    assert find("digits.py:digits") == kind
    assert find("digits:digits").code == "digits:Digits"
    offers = EntryPoint("digits", "digits:Digits", model_registry.GROUP)
    monkeypatch.setattr(model_registry, "offered", lambda: {"digits": (offers.module, offers.attr)})
    assert find("digits").code == "digits:Digits"
    assert "digits" in {kind.name for kind in model_registry.known()}


EDITS = {
    "no such file": (None, "there is no such file of a model"),
    "does not load": (lambda t: t + "\n1 / 0\n", "the file cannot be loaded: ZeroDivisionError"),
    "no model": (lambda t: "x = 1\n", "there is no diffusion model there"),
    "no loop": (lambda t: t.replace('("unet", True)', '("unet", False)'), "digits has no module that loops"),
    "a module without a method": (
        lambda t: t.replace('(("unet", True),)', '(("unet", True), ("vae", False))'),
        "nothing of the module 'vae'",
    ),
    "groups with more than the loop": (
        lambda t: t.replace('(("unet", True),)', '(("unet", True), ("output", False)), groups=(("unet", "output"),)'),
        "digits: a worker of the loop has other modules",
    ),
    "no prediction": (lambda t: t.replace("def predict", "def guess"), "it predicts nothing"),
    "a network of no module": (lambda t: t.replace('"unet": {', '"other": {'), "a network 'other' and no such"),
    "another sampler": (lambda t: t.replace("dpm++2m", "flow-euler"), "digits is sampled by 'flow-euler'"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_is_wrong_with_a_file_is_one_line(folder, servetwin, case):
    edit, says = EDITS[case]
    name = f"wrong_{list(EDITS).index(case)}.py"
    if edit is not None:
        (folder / name).write_text(edit((folder / "digits.py").read_text()))
    code, out, err = servetwin("profile", name, "--device", "cpu", "--out", "made.yaml")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert not (folder / "made.yaml").exists()


def test_a_name_that_is_not_there(folder):
    with pytest.raises(BadInput, match="no model 'letters' there"):
        find("digits.py:letters")
    with pytest.raises(BadInput, match="there is no module 'no_such'"):
        find("no_such:digits")
    with pytest.raises(BadInput, match=r"unknown model 'sdxl-1025' \(right would be: sdxl-1024"):
        find("sdxl-1025")


def test_its_networks_are_built_on_the_device_that_is_asked_for(folder):
    kind = find("digits.py")
    with torch.device("meta"):
        network = class_of(kind)(kind, torch.device("meta"), torch.float32).build("unet", dict(kind.networks["unet"]))
    assert {p.device.type for p in network.parameters()} == {"meta"}
