"""`python -m glus models`: the weights this package reads, where they come from, and what they are said to score.

Sizes and scores are those the originals state (reference glus.md 2 and 11, field.md 1.4, kfs.md 3); None and ""
where nothing is stated. None of the published scores has been measured with this package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glus.io import read_json

LLAMA = "LLaMA-1 terms through LISA-7B-v1 (non-commercial research)"
_HUB_FILES = {"pytorch_model-00001-of-00002.bin": "9.98 GB", "pytorch_model-00002-of-00002.bin": "4.48 GB"}
_RELEASED_BYTES = 14_454_343_880


@dataclass(frozen=True)
class Weights:
    """One published set of weights.

    Attributes:
        name: what it is called.
        role: what it is for.
        source: hub id, folder, or project.
        files: the files with weights and their sizes as listed.
        bytes: of all tensors; None where not known.
        licence: of the weights, with what they derive from.
        scores: J&F by data set, in percent, as published.
        use: how this package takes them.
        note: what else to know.
    """

    name: str
    role: str
    source: str
    licence: str
    use: str
    files: Mapping[str, str] = field(default_factory=dict)
    bytes: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def _released(name: str, components: str, scores: Mapping[str, float], note: str = "") -> Weights:
    return Weights(
        name,
        f"segmentation: {components}",
        f"Swindl/{name}",
        f"the card says apache-2.0, the code has no licence; {LLAMA}",
        f"--version Swindl/{name}",
        _HUB_FILES,
        _RELEASED_BYTES,
        scores,
        note,
    )


WEIGHTS = (
    _released(
        "GLUS-A",
        "global-local, memory bank, all data",
        {"MeViS valid": 51.3, "Ref-YouTube-VOS valid": 67.3, "ReVOS": 54.9, "ReasonVOS": 49.9},
        "scores of ReVOS and ReasonVOS from others' tables",
    ),
    _released(
        "GLUS-S",
        "global-local, memory bank, contrastive loss",
        {"MeViS valid": 50.3, "Ref-YouTube-VOS valid": 66.6},
        "scores with key frames of the selector, whose weights were never published",
    ),
    _released(
        "GLUS-S-partial",
        "global-local, memory bank",
        {"MeViS valid": 49.5, "Ref-YouTube-VOS valid": 65.2},
        "files assumed to be like those of the other two",
    ),
    Weights(
        "LISA-7B-v1",
        "what training starts from",
        "the LISA project (dvlab-research/LISA)",
        "LLaMA terms",
        "python -m glus train, with sam2_hiera_large.pt",
        {"pytorch_model-00001-of-00002.bin": "9.98 GB", "pytorch_model-00002-of-00002.bin": "6.14 GB"},
    ),
    Weights(
        "CLIP ViT-L/14",
        "vision tower; GLUS, LISA and Chat-UniVi folders do not hold it",
        "openai/clip-vit-large-patch14",
        "MIT",
        "--vision-tower",
    ),
    Weights(
        "SAM 2, hiera-L",
        "mask decoder that training starts from",
        "the SAM 2 project (facebookresearch/sam2)",
        "Apache-2.0",
        "sam2_checkpoint, when training starts from LISA-7B-v1",
        {"sam2_hiera_large.pt": ""},
        note="224,430,130 parameters in 900 tensors",
    ),
    Weights(
        "Chat-UniVi-7B",
        "what a key-frame selector starts from",
        "Chat-UniVi/Chat-UniVi",
        "Apache-2.0; LLaMA/Vicuna terms",
        "python -m kfs train",
    ),
    Weights(
        "KFS",
        "key-frame selector of GLUS-S",
        "never published; its key frames were, as JSON",
        "",
        "--use_kf --score_json FILE, with the published key frames",
    ),
)


def bundled_folders() -> list[Path]:
    """The checkpoint folders that come with the repository this package lies in."""
    root = Path(__file__).resolve().parents[1] / "checkpoints"
    return sorted(path.parent for path in root.glob("*/config.json"))


def bundled() -> list[Weights]:
    """What `bundled_folders` hold, with the sizes of the files there."""
    found = []
    for folder in bundled_folders():
        selector = read_json(folder / "config.json", "checkpoint config").get("format") == "kfs"
        sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        found.append(
            Weights(
                folder.name,
                "small, trained on generated videos; knows nothing of real ones",
                str(folder),
                "Apache-2.0",
                f"--selector {folder}" if selector else f"--version {folder}",
                {name: megabytes(size) for name, size in sizes.items()},
                sum(sizes.values()),
                note=f"scores: docs/{'kfs' if selector else 'tiny'}.md",
            )
        )
    return found


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def lines(weights: Weights) -> list[str]:
    """One entry as text."""
    size = f", {megabytes(weights.bytes)}" if weights.bytes else ""
    rows: list[tuple[str, Any]] = [
        ("from", weights.source),
        ("files", ", ".join(f"{name} ({size})" if size else name for name, size in weights.files.items())),
        ("licence", weights.licence),
        ("J&F", ", ".join(f"{name} {value:.1f}" for name, value in weights.scores.items())),
        ("use", weights.use),
        ("note", weights.note),
    ]
    return [f"{weights.name}: {weights.role}{size}", *(f"  {name:<8}{text}" for name, text in rows if text)]


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="python -m glus models",
        description="Known weights: source, size, licence, expected score. Scores are as published by the "
        "originals, J&F in percent; none was measured with this package.",
    )
    p.add_argument("--json", action="store_true", help="write JSON")
    args = p.parse_args(argv)
    everything = [*bundled(), *WEIGHTS]
    if args.json:
        sys.stdout.write(json.dumps([asdict(one) for one in everything], indent=2) + "\n")
    else:
        sys.stdout.write("\n\n".join("\n".join(lines(one)) for one in everything) + "\n")
    return 0
