"""What loads what: light parts start without torch, and nothing needs training, demo or torchvision packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "glus"
NEVER = {"torchvision", "torchcodec", "decord", "deepspeed", "peft", "gradio", "tensorboard", "flash_attn"}
TRAINING = {"deepspeed", "peft", "tensorboard"}
HEAVY = {"torch", "transformers", "sam2", *NEVER}
PAGE = "glus.app.page"
LIGHT = [
    "glus",
    "glus.evaluation",
    "glus.text",
    "glus.data",
    "glus.config",
    "glus.errors",
    "glus.io",
    "glus.masks",
]


def modules_below(*folders: str) -> list[str]:
    files = [file for folder in folders for file in (PACKAGE / folder).rglob("*.py")]
    names = [".".join(("glus", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in `sys.modules` after importing `modules` in a fresh interpreter."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_start_without_torch(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_evaluation_text_and_data_never_need_torch() -> None:
    """Every module of theirs, except the transforms, whose output is tensors."""
    modules = [name for name in modules_below("evaluation", "text", "data") if name != "glus.data.transforms"]
    assert len(modules) > 10
    assert not loaded_by(*modules) & HEAVY


def test_the_whole_package_loads_without_optional_packages() -> None:
    modules = [name for name in modules_below(".") if not name.endswith("__main__") and name != PAGE]
    loaded = loaded_by(*modules)
    assert "torch" in loaded
    assert not loaded & NEVER


def test_no_import_of_them_hides_in_a_function() -> None:
    """Except that training imports its own packages when a run starts, and that the page is made with gradio."""
    for file in PACKAGE.rglob("*.py"):
        never = NEVER - TRAINING if file.parent.name == "training" else NEVER
        never = never - {"gradio"} if file == PACKAGE / "app" / "page.py" else never
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & never, file


def test_public_names() -> None:
    import glus

    for name in glus.__all__:
        assert getattr(glus, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'GLU'"):
        _ = glus.GLU
