"""Rules on the source code that no linter checks. `make check` checks the layers with import-linter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "semiseg"
MODULES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_only_the_engine_knows_about_processes():
    found = {
        name
        for name, tree in MODULES.items()
        if any(used.startswith(("torch.distributed", "accelerate")) for used in imports(tree))
    }
    assert found == {"engine/runtime.py"}


def test_a_step_never_waits_for_the_device():
    """Checks the modules that run on the device. Intensity operations may read their draws, which are on the CPU."""
    waits = {"item", "cpu", "tolist", "numpy", "synchronize"}
    modules = (
        "methods/",
        "hardness.py",
        "losses.py",
        "models/ema.py",
        "models/predict.py",
        "augment/blend.py",
        "augment/cutmix.py",
        "augment/features.py",
        "augment/pairs.py",
        "augment/views.py",
        "method.py",
    )
    found = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in MODULES.items()
        if name.startswith(modules)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in waits
    ]
    assert found == []


def test_annotations_are_kept_for_the_shape_checks():
    assert [name for name, tree in MODULES.items() if "__future__.annotations" in imports(tree)] == []


def test_files_are_named_after_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    assert [name for name in MODULES if vague & {*Path(name).with_suffix("").parts}] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("methods/") and "__init__" not in name])
def test_a_method_is_one_short_file(name):
    assert len((SOURCE / name).read_text().splitlines()) <= 200
    defined = {node.name for node in MODULES[name].body if isinstance(node, ast.ClassDef)}
    assert {"Config", "Method"} <= defined


def test_prints_are_the_business_of_the_command_line():
    printing = {"print", "rich.print", "console.print"}
    found = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing
    }
    assert found <= {"cli.py", "api.py", "demo.py", "engine/progress.py", "init/request.py", "init/run.py"}
