"""From a configuration to what a run needs: model, samples, task, validator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glus.api import DTYPES, GLUS
from glus.config import Behaviour, InferenceConfig, ModelConfig, from_dict
from glus.data.datasets import load_records
from glus.data.records import Record
from glus.data.sampling import SampleSource, SamplingRules, open_records, parse_mixture
from glus.data.synthetic.source import SyntheticSource
from glus.errors import InputError
from glus.modeling.pretrained import fresh_model
from glus.text.tokenizer import GlusTokenizer
from glus.training.batches import TrainingSet
from glus.training.config import LoopConfig, ModelSource, TrainConfig, identity, merge, read_content
from glus.training.launch import Place
from glus.training.merge import export_checkpoint
from glus.training.parameters import add_lora, select_trainable
from glus.training.running import Prepared
from glus.training.task import GlusTask
from glus.training.validation import SegmentationValidator, records_held_out, synthetic_held_out

SYNTHETIC = "synthetic"
RELEASED_TRAINING = Behaviour(fp32_islands=False)
"""C10: the original computes the dense position code in bf16 while training, too. Its loader of SAM-2 keeps the
memory encoder's layer scales there (2.6)."""
VALIDATION_SERIES = 0
"""Series of the synthetic validation videos; training draws from another one."""


def build_model(config: TrainConfig) -> GLUS:
    """The model training starts from, on the CPU, LoRA and the trainable set applied.

    Raises:
        InputError: nothing loadable there, or sizes no model can have.
    """
    precision = DTYPES.get(config.loop.precision, DTYPES["fp32"])
    released = RELEASED_TRAINING if config.compat == "released" else None
    glus = starting_model(config.model, config.loop.seed, precision, released)
    glus.model.config = dataclasses.replace(glus.config, inference=inference_of(config))
    add_lora(glus.model, config.lora, config.loop.seed)
    select_trainable(glus.model, config.trainable)
    if config.gradient_checkpointing:
        glus.model.language.decoder.activation_checkpointing_enable({"use_reentrant": False})
    return glus


def starting_model(
    source: ModelSource, seed: int, dtype: torch.dtype = torch.float32, behaviour: Behaviour | None = None
) -> GLUS:
    """A checkpoint, or a new model (always in fp32), on the CPU.

    Raises:
        InputError: nothing loadable there, or sizes no model can have.
    """
    if source.version is not None:
        return GLUS.from_pretrained(
            source.version,
            dtype=dtype,
            device="cpu",
            vision_tower=source.vision_tower,
            sam2_checkpoint=source.sam2_checkpoint,
            image_size=source.image_size,
            behaviour=behaviour,
        )
    assert source.sizes is not None  # checked by ModelSource
    assert source.tokenizer is not None
    tokenizer = GlusTokenizer.from_folder(source.tokenizer)
    content = merge(read_content(source.sizes), {"language": {"vocab_size": len(tokenizer)}})
    if source.image_size is not None:
        content = merge(content, {"sam2": {"image_size": source.image_size}})
    if behaviour is not None:
        content = merge(content, {"behaviour": dataclasses.asdict(behaviour)})
    sizes = from_dict(ModelConfig, content, source.sizes)
    tokenizer = tokenizer.stripping(sizes.behaviour.strip_around_added_tokens)
    return GLUS(fresh_model(sizes, tokenizer, seed), tokenizer)


def build_source(config: TrainConfig) -> SampleSource:
    """Where samples come from.

    Raises:
        InputError: names and rates that do not match, sets that are missing or faulty.
    """
    data = config.data
    rules = SamplingRules(
        context_frames=data.context_frame_num,
        query_frames=data.question_frame_num,
        expressions=data.num_classes_per_sample,
        overlap=config.objective.rules.overlap,
    )
    if data.refer_video_seg_data == SYNTHETIC:
        return SyntheticSource(data.synthetic, rules, data.expressions)
    if data.expressions == "blind":
        raise InputError(
            "data.expressions blind is the control on generated videos: refer_video_seg_data synthetic"
        )
    mixture = parse_mixture(data.refer_video_seg_data, data.sample_rates)
    return open_records(mixture, data.dataset_dir, rules, data.set_name)


def contrastive_records(config: TrainConfig) -> Mapping[str, Callable[[], Iterable[Record]]] | None:
    """What the contrastive loss reads when it first meets a MeViS token (D20); None where it is off."""
    if not config.use_contrastive_loss:
        return None
    return {"mevis": partial(load_records, "mevis", config.data.dataset_dir, config.data.set_name)}


def build_task(config: TrainConfig, glus: GLUS, source: SampleSource, place: Place) -> GlusTask:
    """The GLUS task on samples of `source`."""
    seed = config.loop.seed
    return GlusTask(
        glus.model,
        TrainingSet(source, glus.tokenizer, glus.config, seed),
        config.objective,
        contrastive_records(config),
        use_memory=config.use_mem_bank,
        memory_dropout=config.model.memory_dropout,
        seed=seed,
        rank=place.rank,
    )


def build_validator(config: TrainConfig, tokenizer: GlusTokenizer) -> SegmentationValidator | None:
    """The validation of `config`; None where it is off."""
    if not config.loop.validate_every:
        return None
    asked = config.validation
    if asked.dataset == SYNTHETIC:
        videos = synthetic_held_out(VALIDATION_SERIES, asked.limit, config.data.synthetic, config.data.expressions)
    else:
        folder = asked.dataset_dir or config.data.dataset_dir
        videos = records_held_out(asked.dataset, folder, asked.set_name, asked.limit)
    return SegmentationValidator(videos, tokenizer, inference_of(config), asked.pictures)


def inference_of(config: TrainConfig) -> InferenceConfig:
    """How a model trained by `config` is to walk through a clip: as it learned, the memory's stride apart."""
    return InferenceConfig(
        context_frames=config.data.context_frame_num,
        query_frames=config.data.question_frame_num,
        mem_stride=config.validation.mem_stride,
        use_memory=config.use_mem_bank,
    )


def about(config: TrainConfig, glus: GLUS) -> dict[str, Any]:
    """What a checkpoint says of its run, for `glus.training.merge`."""
    return {"model": glus.config.to_dict(), "config": dataclasses.asdict(config)}


class GlusRecipe:
    """GLUS training as the command runs it (`glus.training.running.Recipe`)."""

    metric = "J&F"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @property
    def loop(self) -> LoopConfig:
        return self.config.loop

    def prepare(self, place: Place) -> Prepared:
        source = build_source(self.config)  # first: its faults show at once, while a large model takes minutes
        glus = build_model(self.config)
        task = build_task(self.config, glus, source, place)
        return Prepared(task, glus.tokenizer, identity(self.config), about(self.config, glus))

    def validator(self, prepared: Prepared) -> SegmentationValidator | None:
        return build_validator(self.config, prepared.tokenizer)

    def export(self, log_dir: Path, out: Path) -> None:
        export_checkpoint(log_dir, out)
