"""A selector's training from its configuration: model, samples, task, validation, export.

The loop and its settings are GLUS's (`glus.training`). Defaults are the original's recipe (reference kfs.md, 6)
with its defects repaired; `compat: released` brings back those that change what is learned (`RELEASED`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from glus.api import DTYPES, GLUS
from glus.config import from_dict
from glus.errors import InputError
from glus.io import write_json
from glus.modeling.checkpoints import load_state
from glus.modeling.folders import check_vocabulary
from glus.text.tokenizer import GlusTokenizer
from glus.training.config import LoopConfig, loop_identity, merge, read_content
from glus.training.launch import Place
from glus.training.merge import (
    ABOUT_FILE,
    Layout,
    check_target,
    dtype_of,
    find_checkpoint,
    read_trained,
    read_weights,
    replaced,
    tokenizer_folder,
)
from glus.training.parameters import LoraSettings, add_lora
from glus.training.released import TOWER_FOLDER
from glus.training.running import Prepared
from kfs.checkpoints import (
    FP32_PARTS,
    Selector,
    add_score,
    fresh_selector,
    load_selector,
    save_selector,
    selector_tokenizer,
)
from kfs.exporting import STOCK_VISION, write_merged
from kfs.merging import MergingConfig
from kfs.model import SelectorConfig, SelectorModel
from kfs.prompts import SCORE_TOKEN
from kfs.samples import SelectorData, SelectorSet, open_source
from kfs.training import SelectorTask, select_trainable
from kfs.validation import SelectorValidator, held_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectorStart:
    """Where training starts; give one of `version`, `from_glus` and `sizes`.

    Attributes:
        version: a Chat-UniVi folder, or a selector's: ours or the original's merged one; or a hub id.
        vision_tower: folder or hub id of CLIP, for a `version` or `from_glus` without it.
        from_glus: a GLUS folder of ours or as released, whose CLIP tower, projector and language model are taken.
        merging, out_dim: of the selector made of `from_glus`.
        sizes: YAML with the sizes of a new selector (`SelectorConfig`); needs `tokenizer`.
        tokenizer: folder of the new selector's tokenizer, which gets `[SCORE]` if it has none.
    """

    version: str | None = None
    vision_tower: str | None = None
    from_glus: str | None = None
    merging: MergingConfig = field(default_factory=MergingConfig)
    out_dim: int = SelectorConfig.out_dim
    sizes: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("version", "from_glus", "sizes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"give one of model.version, model.from_glus and model.sizes, found {given or 'none'}"
            )
        if (self.sizes is None) != (self.tokenizer is None):
            raise InputError("model.sizes and model.tokenizer make a new selector together; give both or neither")


@dataclass(frozen=True)
class SelectorWeights:
    """Factors of the losses in the total."""

    ce: float = 1.0
    iou: float = 1.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"loss weight {name} must be a finite number from 0, found {value}")


@dataclass(frozen=True)
class SelectorValidation:
    """Held-out expressions, all frames of which are scored; `loop.validate_every` turns it on.

    Attributes:
        dataset: as in `SelectorData.rvos_seg_data`, one of them.
        iou_path: folder of its IoU files.
        dataset_dir: default: that of the training data.
        limit: about so many expressions, on whole videos evenly spread over the set.
        max_images: images of a prompt when scoring, now and by whoever loads what was trained; default: as the
            selector that training starts from.
    """

    dataset: str = "mevis_val"
    iou_path: str = "ious_val"
    dataset_dir: str | None = None
    limit: int = 64
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.limit < 1 or (self.max_images is not None and self.max_images < 1):
            raise InputError(f"validation needs limit and max_images from 1: {self.limit}, {self.max_images}")


@dataclass(frozen=True)
class SelectorTrainConfig:
    """A selector's training run."""

    model: SelectorStart
    compat: Literal["corrected", "released"] = "corrected"
    data: SelectorData = field(default_factory=SelectorData)
    weights: SelectorWeights = field(default_factory=SelectorWeights)
    lora: LoraSettings = field(default_factory=LoraSettings)
    trainable: Literal["released", "all"] = "released"
    gradient_checkpointing: bool = True
    loop: LoopConfig = field(default_factory=LoopConfig)
    validation: SelectorValidation = field(default_factory=SelectorValidation)

    def __post_init__(self) -> None:
        if self.loop.deepspeed.stage == 3:
            raise InputError(
                "the score head computes in fp32 copies of its weights: use loop.deepspeed.stage 0 to 2"
            )


RECIPE: dict[str, Any] = {
    "loop": {"steps": 2000, "batch_size": 1, "grad_accumulation_steps": 16, "checkpoints": {"every": 100}},
}
"""Where the original's loop differs from GLUS's."""

RELEASED: dict[str, Any] = {
    "data": {"normalise_text": False},
    "loop": {"optimizer": {"first_step": "full"}},
}
"""What `compat: released` changes in the defaults; a file or flag that names the field still has the last word."""


def selector_train_config(content: Mapping[str, Any], where: str) -> SelectorTrainConfig:
    """A configuration from parsed YAML, the presets underneath.

    Raises:
        InputError: an unknown key or a value that does not fit; `where` names the file.
    """
    preset = merge(RECIPE, RELEASED) if content.get("compat") == "released" else RECIPE
    return from_dict(SelectorTrainConfig, merge(preset, content), where)


def starting_selector(start: SelectorStart, seed: int, dtype: torch.dtype = torch.float32) -> Selector:
    """What training starts from, on the CPU.

    Raises:
        InputError: nothing loadable there, or sizes no selector can have.
    """
    if start.version is not None:
        return load_selector(start.version, vision=start.vision_tower, dtype=dtype)
    if start.from_glus is not None:
        return from_glus(start.from_glus, start.merging, start.out_dim, start.vision_tower)
    assert start.sizes is not None  # checked by SelectorStart
    assert start.tokenizer is not None
    tokenizer = GlusTokenizer.from_folder(start.tokenizer, legacy=None, required=())
    if SCORE_TOKEN not in tokenizer.added_tokens:
        tokenizer = tokenizer.adding(SCORE_TOKEN)
    content = merge(read_content(start.sizes), {"language": {"vocab_size": len(tokenizer)}})
    return fresh_selector(from_dict(SelectorConfig, content, start.sizes), tokenizer, seed)


def from_glus(folder: str, merging: MergingConfig, out_dim: int, vision_tower: str | None = None) -> Selector:
    """A selector with the CLIP tower, projector and language model of a GLUS; `[SCORE]` and the head are new."""
    glus = GLUS.from_pretrained(folder, dtype=torch.float32, device="cpu", vision_tower=vision_tower)
    language, vision = glus.config.language, dataclasses.replace(glus.config.vision, pool=1)
    config = SelectorConfig(language, vision, merging, out_dim, glus.config.behaviour.clip_view)
    taken = ("language.", "vision.")
    state = {key: value for key, value in glus.model.state_dict().items() if key.startswith(taken)}
    add_score(state, config, Path(folder))
    config = dataclasses.replace(
        config, language=dataclasses.replace(language, vocab_size=language.vocab_size + 1)
    )
    tokenizer = glus.tokenizer.stripping(True).adding(SCORE_TOKEN)
    with torch.device("meta"):
        model = SelectorModel(config, tokenizer.added_id(SCORE_TOKEN))
    load_state(model, state, torch.float32, source=folder)
    return Selector(model.eval(), tokenizer)


class SelectorRecipe:
    """Selector training as the command runs it (`glus.training.running.Recipe`)."""

    metric = "mean IoU at the chosen frame"

    def __init__(self, config: SelectorTrainConfig) -> None:
        self.config = config

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop

    def prepare(self, place: Place) -> Prepared:
        """See `Recipe`; the samples come first: their faults show at once, a large model takes minutes."""
        config, seed = self.config, self.loop.seed
        source = open_source(config.data)
        selector = starting_selector(config.model, seed, DTYPES.get(self.loop.precision, torch.float32))
        model = selector.model
        if config.validation.max_images is not None:
            model.config = dataclasses.replace(model.config, max_images=config.validation.max_images)
        add_lora(model, config.lora, seed)
        select_trainable(model, config.trainable)
        if config.gradient_checkpointing:
            model.language.decoder.activation_checkpointing_enable({"use_reentrant": False})
        samples = SelectorSet(source, selector.tokenizer, model.config, seed)
        task = SelectorTask(model, samples, config.weights.ce, config.weights.iou)
        about = {"model": dataclasses.asdict(model.config), "config": dataclasses.asdict(config)}
        return Prepared(task, selector.tokenizer, identity(config), about)

    def validator(self, prepared: Prepared) -> SelectorValidator | None:
        if not self.loop.validate_every:
            return None
        asked = self.config.validation
        folder = asked.dataset_dir or self.config.data.dataset_dir
        videos = held_out(asked.dataset, folder, Path(asked.iou_path), asked.limit)
        return SelectorValidator(videos, prepared.tokenizer)

    def export(self, log_dir: Path, out: Path) -> None:
        export_selector(log_dir, out)


def identity(config: SelectorTrainConfig) -> dict[str, Any]:
    """The part of the configuration that decides the numbers."""
    content = {**dataclasses.asdict(config), "loop": loop_identity(config.loop)}
    del content["validation"], content["gradient_checkpointing"]
    return content


def export_selector(
    source: str | Path,
    out: str | Path,
    layout: Layout = "ours",
    dtype: torch.dtype | str | None = None,
    which: Literal["newest", "best"] = "newest",
) -> Path:
    """Write the selector of a training checkpoint as a loadable folder, LoRA folded in.

    Arguments, result and errors are those of `glus.training.merge.export_checkpoint`.
    """
    checkpoint = find_checkpoint(Path(source), which)
    trained = read_trained(checkpoint, SelectorConfig)
    config, target = trained.config, Path(out)
    check_target(target)
    folder = tokenizer_folder(checkpoint)
    tokenizer = selector_tokenizer(folder)
    check_vocabulary(folder, tokenizer, config.language.vocab_size)

    def build() -> SelectorModel:
        return SelectorModel(config, tokenizer.added_id(SCORE_TOKEN))

    state = read_weights(checkpoint, trained, build)
    stored = dtype_of(dtype) or trained.dtype
    with replaced(target) as temporary:
        if layout == "ours":
            with torch.device("meta"):
                model = build()
            load_state(model, state, stored, "cpu", str(checkpoint), FP32_PARTS)
            save_selector(Selector(model.eval(), tokenizer), temporary)
        else:
            all_trained = trained.content["about"]["config"]["trainable"] == "all"
            own_tower = target / TOWER_FOLDER if all_trained or config.vision != STOCK_VISION else None
            write_merged(temporary, config, state, tokenizer, stored, own_tower)
        write_json(temporary / ABOUT_FILE, trained.content)
    logger.info("exported %s to %s (%s layout)", checkpoint, target, layout)
    return checkpoint
