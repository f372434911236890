"""What is installed is a package that can be imported, not a folder of its name."""

from pathlib import Path

from servetwin.core.installed import not_installed


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "a_clone" / "vllm").mkdir(parents=True)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "a_clone")
    assert not_installed("a_clone", "a_package", "nowhere_to_be_found", "json") == ["a_clone", "nowhere_to_be_found"]


def test_no_folder_of_tests_passes_for_a_package():
    """Pytest puts the folders of test files on the path: one with a folder `vllm` beside its files is vLLM."""
    extras = {"torch", "diffusers", "transformers", "vllm", "ray", "pandas", "polars", "matplotlib", "plotly"}
    tests = Path(__file__).parents[1]
    found = [p for p in tests.rglob("*") if p.is_dir() and p.name in extras and any(p.parent.glob("*.py"))]
    assert found == []
