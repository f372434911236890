"""No block of the documents escapes: each is run here, or by a test that is named here, or is here with a reason.

What `test_documents` runs are ``console`` blocks with the files that ``python`` and ``yaml`` blocks become;
`test_newcomer` runs the page that is a notebook.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from pages import DOCUMENTS, ROOT
from servetwin.experiments.registry.catalog import recording_of

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif("SERVETWIN_WHEEL_TEST" in os.environ, reason="the documents are not in the wheel"),
]

#: Pages that people follow by typing.
FOLLOWED = [d for d in DOCUMENTS if d.is_file() and (d.parent.name in ("tutorials", "guides") or d.parent == ROOT)]

#: `sh` blocks that a test runs where torch or vLLM is installed: page and first words -> the test.
RUN_ELSEWHERE = {
    ("docs/tutorials/validate-on-your-gpu.md", "MODEL=tiny-dit"): "tests/real/diffusion/test_tutorial.py",
    ("docs/tutorials/validate-on-your-gpu.md", "servetwin profile"): "tests/real/diffusion/test_tutorial.py",
    ("docs/tutorials/validate-on-your-gpu.md", "servetwin search"): "tests/real/diffusion/test_tutorial.py",
    ("docs/tutorials/validate-on-your-gpu.md", "servetwin run"): "tests/real/diffusion/test_tutorial.py",
    ("docs/tutorials/validate-on-your-gpu.md", "cat >"): "tests/real/diffusion/test_tutorial.py",
    ("docs/tutorials/validate-on-your-gpu.md", "servetwin trace"): "tests/real/diffusion/test_tutorial.py",
    ("docs/guides/real-execution.md", "servetwin profile tiny-dit"): "tests/real/diffusion/test_tutorial.py",
    ("docs/guides/real-execution.md", "servetwin run two.yaml"): "tests/real/diffusion/test_devices.py",
    ("docs/guides/faults.md", "servetwin run killed.yaml"): "tests/real/diffusion/test_faults.py",
    ("docs/guides/diffusion-models.md", "servetwin profile digits.py"): "tests/real/diffusion/test_own_model.py",
    ("docs/guides/diffusion-models.md", "servetwin profile tiny-sdxl"): "tests/real/diffusion/test_refiner.py",
    ("docs/guides/request-shapes.md", "servetwin profile tiny-dit"): "tests/real/diffusion/test_shapes.py",
    ("docs/guides/explore.md", "servetwin explore"): "tests/experiments/exploring/test_explore_server.py",
    ("docs/guides/vllm.md", "servetwin run tiny-opt-cpu"): "tests/real/vllm/test_guide.py",
    ("docs/guides/vllm.md", "servetwin run chat.yaml --backend vllm"): "tests/real/vllm/test_prefix_runs.py",
    ("docs/guides/policy-package.md", "pip install"): ".ci/wheel-test",
}

PREFIX = "tests/experiments/validation/replay/test_prefix_campaign.py"
#: Replays of whole recordings that reports name: recording -> the test that replays the same runs. The command itself
#: is run on docs/reports/2026-11-h200-chat.md; here it would take minutes, and what it prints is not on the pages.
REPLAYED = {
    "h200-cached/runs-llama-3.1-8b.json.gz": PREFIX,
    "h200-full/runs-llama-3.1-8b.json.gz": "tests/experiments/validation/replay/test_full_campaign.py",
    "h200-full/runs-llama-3.1-8b-caching.json.gz": PREFIX,
    "h200-full/runs-llama-3.1-8b-caching-gpu1.json.gz": "tests/experiments/validation/replay/test_full_campaign.py",
    "h200-full/runs-opt-13b.json.gz": "tests/experiments/validation/replay/test_full_campaign.py",
    "h200-lengths/runs-opt-13b.json.gz": "tests/experiments/validation/replay/test_run_steps.py",
    "h200-policies/runs-opt-13b.json.gz": "tests/experiments/validation/replay/test_own_policies.py",
    "h200-prefix/runs-llama-3.1-8b.json.gz": PREFIX,
    "h200-requests/runs-llama-3.1-8b.json.gz": PREFIX,
    "h200-requests/runs-llama-3.1-8b-caching.json.gz": PREFIX,
    "h200-requests/runs-llama-3.1-8b-elsewhere.json.gz": PREFIX,
    "h200-servers/runs-llama-3.1-8b.json.gz": "tests/experiments/validation/replay/test_servers.py",
}

GPU = "needs a GPU"
SAME = "a command of docs/guides/real-execution.md, which tests/real/diffusion/test_tutorial.py runs"
BENCH = "a server; tests/real/vllm/test_bench_serve.py does the same with a tiny model"
NETWORK = "needs what others publish, from the network"
INSTALL = "installs into the folder that it is run in: what `.ci/run` does at its start"

#: `sh` blocks that no test runs, and why. Their options are checked by `test_documents`.
NOT_RUN = {
    ("docs/guides/faults.md", "servetwin profile tiny-dit"): SAME,
    ("README.md", "make demo"): INSTALL,
    ("docs/tutorials/first-ten-minutes.md", "python3 -m venv"): INSTALL,
    ("docs/tutorials/validate-on-your-gpu.md", "python3 -m venv"): INSTALL,
    ("docs/guides/import-a-profile.md", "servetwin import aiconfigurator"): NETWORK,
    ("docs/guides/import-a-profile.md", "servetwin import splitwise"): NETWORK,
    ("docs/guides/import-a-profile.md", "servetwin import distserve"): NETWORK,
    ("docs/guides/import-a-profile.md", "servetwin import llmservingsim"): NETWORK,
    ("docs/guides/real-execution.md", "servetwin profile dit-s2-256 --device cuda:0"): GPU,
    ("docs/guides/real-execution.md", "servetwin profile dit-xl2-256 --compile"): GPU,
    (
        "docs/guides/check-a-prediction.md",
        "python -m servetwin.experiments.validation.replay.run_steps",
    ): "minutes; test_full_campaign.py and test_host_band.py repeat some of these runs",
    ("docs/guides/check-a-prediction.md", "servetwin profile MODEL"): BENCH,
    ("docs/guides/check-a-prediction.md", "vllm bench serve"): BENCH,
    ("docs/guides/check-a-prediction.md", "servetwin profile my-profile"): BENCH,
    (
        "docs/guides/check-a-prediction.md",
        "servetwin run served.yaml",
    ): "a server, as tests/real/vllm/test_server.py has",
    ("docs/guides/real-execution.md", "servetwin sweep grid.yaml --backend real"): "as the tutorial's, step 5",
    ("docs/guides/vllm.md", "vllm serve"): "a server; tests/real/vllm/test_server.py starts one with this scheduler",
    ("docs/guides/vllm.md", "servetwin run opt-13b-h100-async"): "servers; tests/real/vllm/test_server.py has two",
    ("docs/guides/vllm.md", "servetwin profile meta-llama"): GPU,
    ("docs/guides/vllm.md", "servetwin profile llama-3.1-70b"): GPU,
    ("docs/guides/vllm.md", "python3 tests/real/vllm/async_campaign.py"): GPU,
}


def blocks_in(language: str) -> list[tuple[str, pages.Block]]:
    """The blocks of the followed pages in *language* that become no file, each with its page's name."""
    found = [(pages.name_of(page), block) for page in FOLLOWED for block in pages.blocks(page.read_text())]
    return [(page, block) for page, block in found if block.language == language and not block.file]


def test_every_shell_block_is_run_or_here_with_a_reason() -> None:
    known = [*RUN_ELSEWHERE, *NOT_RUN]
    met: set[tuple[str, str]] = set()
    for page, block in blocks_in("sh"):
        fits = [key for key in known if key[0] == page and block.text.startswith(key[1])]
        assert fits, f"{page}: nothing runs {block.text!r}: a console block, or a line in {Path(__file__).name}"
        met.add(max(fits, key=lambda key: len(key[1])))
    assert met == set(known)


@pytest.mark.parametrize("test", sorted(set(RUN_ELSEWHERE.values())))
def test_the_tests_that_run_them_read_these_pages(test: str) -> None:
    text = (ROOT / test).read_text()
    for page in {page for (page, _), where in RUN_ELSEWHERE.items() if where == test}:
        assert Path(page).stem in text


@pytest.mark.parametrize(("page", "block"), blocks_in("python"), ids=lambda x: x if isinstance(x, str) else "")
def test_python_that_becomes_no_file_runs(page: str, block: pages.Block) -> None:
    """By itself; but for the cells of the notebook, which `test_newcomer` runs one after the other."""
    if page != "docs/tutorials/in-a-notebook.md":
        exec(compile(block.text, page, "exec"), {"__name__": "guide"})


def test_what_reports_replay_is_there_and_a_test_replays_it() -> None:
    met = set()
    for page in (ROOT / "docs" / "reports").glob("*.md"):
        for block in pages.blocks(page.read_text()):
            for line in block.text.splitlines() if block.language == "sh" else ():
                if line.startswith("python -m servetwin.experiments.validation.replay.chat "):
                    met.add(line.split()[-1])
    assert met == set(REPLAYED)
    for recording, test in REPLAYED.items():
        assert recording_of(recording).is_file()
        assert recording.partition("/")[0] in (ROOT / test).read_text()


def test_toml_is_of_the_package_that_is_installed() -> None:
    project = (ROOT / "docs" / "guides" / "policy-package" / "pyproject.toml").read_text()
    found = blocks_in("toml")
    assert {page for page, _ in found} == {"docs/guides/policy-package.md"}
    assert [block.text for _, block in found if block.text not in project] == []


def test_no_other_language_stands_in_pages_that_are_followed() -> None:
    """A block without a language, or in another one, would be run by nobody; ``text`` is what a cell shows."""
    languages = {
        (pages.name_of(page), block.language) for page in FOLLOWED for block in pages.blocks(page.read_text())
    }
    odd = {found for found in languages if found[1] not in ("console", "sh", "python", "yaml", "toml")}
    assert odd <= {("docs/tutorials/in-a-notebook.md", "text")}


def keys_of(value: Any, free: bool = False) -> set[str]:
    """The keys of an experiment's part, but for names that are the experiment's own."""
    own = ("modules", "steps", "lengths", "devices", "routers", "params", "seconds", "deployments", "variants")
    if isinstance(value, list):
        return set().union(*(keys_of(v) for v in value))
    if not isinstance(value, dict):
        return set()
    keys: set[str] = set() if free else {*map(str, value)}
    return keys.union(*(keys_of(inner, key in own) for key, inner in value.items()))


@pytest.mark.parametrize(("page", "block"), blocks_in("yaml"), ids=lambda x: x if isinstance(x, str) else "")
def test_keys_of_parts_of_experiment_files_exist(page: str, block: pages.Block) -> None:
    reference = (ROOT / "docs" / "reference" / "experiment-files.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", reference, re.MULTILINE)) | {"process", "draw", "time"}
    assert keys_of(yaml.safe_load(block.text)) - told == set()


@pytest.mark.parametrize("page", ["policies.md", "profiles.md"])
def test_python_of_the_reference_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [b for b in pages.blocks((ROOT / "docs" / "reference" / page).read_text()) if b.language == "python"]
    unnamed = [block for block in found if not block.file]
    assert unnamed
    for block in unnamed:
        exec(compile(block.text, page, "exec"), {"tasks": [], "hopeless": []})
