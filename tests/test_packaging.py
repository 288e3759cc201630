"""What is installed, and which way imports run."""

import ast
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"textgym": "textgym", "agents": "textgym/agents", "envs": "textgym/envs"}


def tracked(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    return {line for line in listed.stdout.splitlines() if (ROOT / line).is_file() and not (ROOT / line).is_symlink()}


def test_a_wheel_from_a_zip_without_links_holds_every_file(tmp_path):
    """``git archive --format=zip`` loses links silently; the package mapping must not need them."""
    expected = {FOLDERS[folder] + name.removeprefix(folder) for folder in FOLDERS for name in tracked(folder)}
    archive = tmp_path / "source.zip"
    subprocess.run(["git", "archive", "--format=zip", "-o", archive, "HEAD"], cwd=ROOT, check=True)
    with zipfile.ZipFile(archive) as source:
        source.extractall(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*command, tmp_path / "source"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        names = {name for name in built.namelist() if ".dist-info/" not in name}
    assert names == expected


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("textgym", ("textgym.agents", "textgym.envs")), ("agents", ("textgym.envs",)), ("envs", ("textgym.agents",))],
)
def test_imports_run_one_way(folder, forbidden):
    for path in sorted((ROOT / folder).rglob("*.py")):
        inside = path.relative_to(ROOT).parts
        if inside[:2] in (("textgym", "agents"), ("textgym", "envs")) or inside == ("textgym", "cli.py"):
            continue
        wrong = {name for name in imports_of(path) if name.startswith((*forbidden, "agents.", "envs."))}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("module", ["textgym", "textgym.rewards", "textgym.agents", "textgym.errors"])
def test_public_names_exist_and_are_documented(module):
    loaded = import_module(module)
    assert loaded.__all__ == sorted(loaded.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        assert isinstance(thing, (tuple, str, dict)) or thing.__doc__, f"{module}.{name} has no docstring"


def test_importing_the_agents_does_not_bring_the_trainers():
    """Which take as long as everything else."""
    code = "import sys, textgym.agents; print(sorted({'transformers.trainer', 'peft', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["[]"]


def test_no_validation_by_assert():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)], path
