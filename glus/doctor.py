"""`python -m glus doctor`: what this machine has, what will run on it, and what to do about the rest."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import torch
from packaging.requirements import Requirement
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from glus.api import GLUS
from glus.errors import InputError
from glus.evaluation.parallel import default_workers
from glus.inference.budget import GIB, free_host_memory
from glus.io import read_json
from glus.registry import WEIGHTS, bundled_folders
from glus.training.launch import import_deepspeed
from glus.video.writing import ALPHA_ENCODER, ENCODERS
from kfs.checkpoints import FORMAT as SELECTOR_FORMAT
from kfs.checkpoints import load_selector

PACKAGES = ("glus", "torch", "transformers", "sam2", "safetensors", "av", "numpy")
BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
# Weights that --load_in_8bit and --load_in_4bit shrink in a 7B model: 32 layers of widths 4096 and 11008.
_SHRINKABLE = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
_ROOM = 1.15  # a guess: what a small --memory_budget, CLIP and torch itself take beside the weights
_LITTLE_DISK = 5.0  # GiB

Facts = dict[str, Any]


def gather() -> Facts:
    """Everything the command knows, as plain values; sizes in GiB."""
    return {
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "machine": {
            "system": platform.platform(),
            "cores": default_workers(),
            "torch_threads": torch.get_num_threads(),
            "memory": round(total_memory() / GIB, 1),
            "memory_free": round(free_host_memory() / GIB, 1),
        },
        "gpus": [gpu(index) for index in range(torch.cuda.device_count())],
        "torch_cuda": torch.version.cuda,
        "nvidia_driver": shutil.which("nvidia-smi") is not None,
        "attention": {place: attention(place) for place in ("cuda", "cpu") if place == "cpu" or _cuda()},
        "video_encoders": {name: name in av.codecs_available for name in (*ENCODERS, ALPHA_ENCODER)},
        "extras": extras(),
        "deepspeed": deepspeed(),
        "disk": disk(),
        "checkpoints": [checkpoint(folder) for folder in bundled_folders()],
    }


def _cuda() -> bool:
    return torch.cuda.device_count() > 0


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def total_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return free_host_memory()


def gpu(index: int) -> Facts:
    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": facts.name,
        "memory": round(total / GIB, 1),
        "memory_free": round(free / GIB, 1),
        "capability": f"{facts.major}.{facts.minor}",
        "bf16": facts.major >= 8,
    }


def attention(place: str) -> dict[str, bool]:
    """Which of torch's attention kernels work there, by trying each."""
    dtype = torch.bfloat16 if place == "cuda" else torch.float32
    tensor = torch.zeros(1, 2, 16, 64, dtype=dtype, device=place)
    works = {}
    for name in BACKENDS:
        try:
            with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, name)):
                warnings.simplefilter("ignore")
                F.scaled_dot_product_attention(tensor, tensor, tensor)
            works[name.lower()] = True
        except RuntimeError:
            works[name.lower()] = False
    return works


def extras() -> dict[str, Facts]:
    """The optional parts of the package: what each lacks, and the line that installs it."""
    try:
        about = importlib.metadata.metadata("glus")
    except importlib.metadata.PackageNotFoundError:  # a folder on the path, not installed
        return {}
    wanted = [Requirement(text) for text in importlib.metadata.requires("glus") or ()]
    out = {}
    for extra in sorted(about.get_all("Provides-Extra") or ()):
        mine = [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": extra})]
        lacking = [str(r).split(";")[0].strip() for r in mine if not _satisfied(r)]
        out[extra] = {"installed": not lacking, "missing": lacking, "install": f"pip install -e '.[{extra}]'"}
    return out


def _satisfied(requirement: Requirement) -> bool:
    found = version_of(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def deepspeed() -> Facts | None:
    """DeepSpeed's choice of accelerator, or why it cannot be imported; None where it is not installed."""
    if version_of("deepspeed") is None:
        return None
    with contextlib.redirect_stdout(sys.stderr):  # it talks while it is imported
        try:
            package = import_deepspeed()
            name = package.accelerator.get_accelerator().device_name()
        except (ImportError, OSError, RuntimeError, AssertionError) as error:
            return {"version": version_of("deepspeed"), "accelerator": None, "problem": str(error)}
    return {"version": version_of("deepspeed"), "accelerator": name}


def disk() -> list[Facts]:
    """Free space where things are written: here, and in the caches of the hub and of this package."""
    places = {
        "this folder": Path.cwd(),
        "downloads (HF_HOME)": Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"),
        "indexes (GLUS_CACHE)": Path(os.environ.get("GLUS_CACHE") or Path.home() / ".cache" / "glus"),
    }
    out = []
    for what, path in places.items():
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        writable = os.access(there, os.W_OK)
        free = round(shutil.disk_usage(there).free / GIB, 1)
        out.append({"what": what, "path": str(path), "free": free, "writable": writable})
    return out


def checkpoint(folder: Path) -> Facts:
    """Whether a bundled checkpoint loads and gives the numbers stored in it."""
    try:
        if read_json(folder / "config.json", "checkpoint config").get("format") == SELECTOR_FORMAT:
            load_selector(folder)
            return {"path": str(folder), "works": True, "detail": "a key-frame selector (docs/kfs.md)"}
        report = GLUS.from_pretrained(folder, device="cpu").self_check()
    except InputError as error:
        return {"path": str(folder), "works": False, "detail": str(error)}
    return {"path": str(folder), "works": True, "detail": f"deviates by {report.worst:.1e} from its own record"}


def runs(facts: Facts) -> list[str]:
    """What will run here, by the memory there is."""
    stated = next(w.bytes for w in WEIGHTS if w.name == "GLUS-A") or 0
    needs = {
        "bf16": stated,
        "8 bits (--load_in_8bit)": stated - _SHRINKABLE,
        "4 bits (--load_in_4bit)": stated - _SHRINKABLE * 3 // 2,
    }
    told = []
    for number, card in enumerate(facts["gpus"]):
        fits = next((how for how, size in needs.items() if size * _ROOM <= card["memory"] * GIB), None)
        told.append(
            f"a released 7B model on GPU {number}: {f'yes, in {fits}' if fits else 'no, too little memory'}"
        )
    if not facts["gpus"]:
        needs = {"fp32": 2 * stated, "bf16 (--precision bf16)": stated}
        fits = next(
            (how for how, size in needs.items() if size * _ROOM <= facts["machine"]["memory_free"] * GIB), None
        )
        least = f"no, about {stated * _ROOM / GIB:.0f} GiB of free memory are needed"
        told.append(f"a released 7B model on the CPU: {f'yes, slowly, in {fits}' if fits else least}")
    for one in facts["checkpoints"]:
        told.append(f"{Path(one['path']).name} on the CPU: {'yes' if one['works'] else 'no'}")
    train = facts["extras"].get("train", {"installed": facts["deepspeed"] is not None})
    told.append(f"training: {'yes' if train['installed'] else 'no, needs the extra train'}")
    return told


def advice(facts: Facts) -> list[str]:
    """What to do, most important first."""
    told = [f"{one['path']} does not work: {one['detail']}" for one in facts["checkpoints"] if not one["works"]]
    told += [f"{name} is missing: bash scripts/setup.sh" for name, found in facts["versions"].items() if not found]
    if not facts["gpus"]:
        if facts["nvidia_driver"]:
            build = f"its build is for CUDA {facts['torch_cuda']}" if facts["torch_cuda"] else "it is a CPU build"
            told.append(f"there is an NVIDIA driver, but torch sees no GPU ({build}); see docs/install.md")
        else:
            told.append("no GPU: small models run well, a 7B model is very slow; use a machine with one")
    for number, card in enumerate(facts["gpus"]):
        if not card["bf16"]:
            told.append(f"GPU {number} ({card['name']}) has no fast bf16: use --precision fp16")
    machine = facts["machine"]
    if machine["torch_threads"] < machine["cores"]:
        given = f"{machine['torch_threads']} of {machine['cores']} cores"
        told.append(f"torch uses {given}; unset OMP_NUM_THREADS to use all, unless several runs share them")
    if not any(facts["video_encoders"][name] for name in ("libx264", "libopenh264")):
        told.append("no H.264 encoder: overlays become MPEG-4, which browsers do not play; reinstall av from PyPI")
    if facts["deepspeed"] and facts["deepspeed"]["accelerator"] is None:
        told.append(f"deepspeed cannot be imported ({facts['deepspeed']['problem']}); training will not start")
    for place in facts["disk"]:
        if not place["writable"]:
            told.append(f"{place['path']} ({place['what']}) takes no files")
        elif place["free"] < _LITTLE_DISK:
            told.append(f"only {place['free']} GiB free in {place['path']} ({place['what']})")
    for name, extra in facts["extras"].items():
        if not extra["installed"]:
            told.append(f"extra {name} is not installed ({', '.join(extra['missing'])}): {extra['install']}")
    return told


def text(facts: Facts) -> str:
    """The report for people."""
    machine = facts["machine"]
    rows = [
        ("versions", ", ".join(f"{name} {found or 'missing'}" for name, found in facts["versions"].items())),
        ("system", machine["system"]),
        ("processor", f"{machine['cores']} cores, torch uses {machine['torch_threads']} threads"),
        ("memory", f"{machine['memory']} GiB, {machine['memory_free']} free"),
    ]
    for number, card in enumerate(facts["gpus"]):
        free = f"{card['memory']} GiB, {card['memory_free']} free"
        rows.append((f"GPU {number}", f"{card['name']}, {free}, capability {card['capability']}"))
    if not facts["gpus"]:
        rows.append(("GPU", "none that torch can use"))
    rows += [(f"attention, {place}", _marked(works)) for place, works in facts["attention"].items()]
    rows.append(("encoders", _marked(facts["video_encoders"])))
    rows.append(("extras", _marked({name: extra["installed"] for name, extra in facts["extras"].items()})))
    engine = facts["deepspeed"]
    rows.append(("deepspeed", f"{engine['version']}, accelerator {engine['accelerator']}" if engine else "none"))
    rows += [(f"disk, {place['what']}", f"{place['free']} GiB free, {place['path']}") for place in facts["disk"]]
    for one in facts["checkpoints"]:
        rows.append((Path(one["path"]).name, f"{'works' if one['works'] else 'does not work'}, {one['detail']}"))
    width = max(len(name) for name, _ in rows) + 2
    parts = ["\n".join(f"{name:<{width}}{value}" for name, value in rows)]
    parts.append("\n".join(["will it run:", *(f"  {line}" for line in facts["runs"])]))
    parts.append("\n".join(["advice:", *(f"  {line}" for line in facts["advice"] or ["nothing to do"])]))
    return "\n\n".join(parts) + "\n"


def _marked(works: Mapping[str, bool]) -> str:
    return ", ".join(f"{name} {'yes' if fine else 'no'}" for name, fine in works.items()) or "unknown"


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="python -m glus doctor",
        description="What this machine has, what will run on it, and what to do about the rest. Exit status 0.",
    )
    p.add_argument("--json", action="store_true", help="write JSON")
    args = p.parse_args(argv)
    facts = gather()
    facts |= {"runs": runs(facts), "advice": advice(facts)}
    sys.stdout.write(json.dumps(facts, indent=2) + "\n" if args.json else text(facts))
    return 0
