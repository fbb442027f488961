"""Configuration of a training run: frozen dataclasses, read strictly from YAML.

`LoopConfig` is what the loop needs whatever is trained; `TrainConfig` adds what makes a GLUS run. Defaults are the
released recipe (reference glus.md 6.1) with its defects repaired; `compat: released` brings those back
(`RELEASED`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from glus.config import InferenceConfig, from_dict
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.source import Reading
from glus.errors import InputError
from glus.training.objective import Objective
from glus.training.parameters import LoraSettings


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the learning rate."""

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest 2-norm of all gradients together; 0 for no limit."""
    warmup_steps: int = 100
    decay: Literal["linear", "cosine", "constant"] = "linear"
    final: float = 0.0
    """Where linear and cosine decay end, as a share of `lr`."""
    first_step: Literal["warmup", "full"] = "warmup"
    """D36: `full` is the original's: step 1 at the whole rate, step 2 at 0, then one step behind."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1e3:
            raise InputError(f"optimizer.lr must be above 0, found {self.lr}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(
                f"optimizer.beta1 and beta2 must lie in 0..1 (1 excluded): {self.beta1}, {self.beta2}"
            )
        for name in ("weight_decay", "grad_clip", "warmup_steps", "final"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimizer.{name} must be at least 0, found {getattr(self, name)}")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """ZeRO and its memory; `extra` is merged into DeepSpeed's own configuration last."""

    stage: int = 2
    """0: every rank holds everything; 1: optimizer states are split; 2: gradients too; 3: weights too."""
    offload: Literal["none", "cpu"] = "none"
    bucket_size: int = 500_000_000
    """Elements reduced or gathered at once."""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise InputError(f"deepspeed.stage must be 0, 1, 2 or 3, found {self.stage}")
        if self.offload == "cpu" and self.stage == 0:
            raise InputError("deepspeed.offload cpu needs deepspeed.stage 1, 2 or 3")
        if self.bucket_size < 1:
            raise InputError(f"deepspeed.bucket_size must be at least 1, found {self.bucket_size}")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every: int = 500
    """Steps between two; the last step always writes one."""
    keep: int = 2
    """The newest ones kept, beside the best."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise InputError(f"checkpoints need every and keep from 1, found {self.every} and {self.keep}")


@dataclass(frozen=True)
class LoggingConfig:
    """What is written down while training."""

    every: int = 1
    """Steps per line of the log; a line is the mean of its steps."""
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"logging.every must be at least 1, found {self.every}")


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs, whatever it trains.

    Attributes:
        steps: optimizer steps of the whole run; the learning rate decays to its end there.
        batch_size: samples per rank and micro-batch.
        grad_accumulation_steps: micro-batches per optimizer step.
        workers: loader processes per rank; 0 loads in the training process. The samples are the same.
        precision: `bf16` and `fp16` hold the weights in that type with fp32 masters in the optimizer (DeepSpeed);
            `bf16_autocast` holds them in fp32 and computes in bf16 where torch deems it safe.
        max_minutes: stop in good order, with a checkpoint, after this time; 0 for no limit. The same command goes
            on from there.
        validate_every: steps between two validations; 0 for none.
    """

    steps: int = 5000
    batch_size: int = 2
    grad_accumulation_steps: int = 10
    workers: int = 2
    seed: int = 0
    precision: Literal["bf16", "fp16", "fp32", "bf16_autocast"] = "bf16"
    max_minutes: float = 0.0
    validate_every: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "grad_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"loop.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("workers", "seed", "max_minutes", "validate_every"):
            if not getattr(self, name) >= 0:
                raise InputError(f"loop.{name} must be at least 0, found {getattr(self, name)}")
        if self.precision in ("bf16", "fp16") and self.deepspeed.stage == 0:
            raise InputError(
                f"loop.precision {self.precision} keeps fp32 masters in ZeRO's optimizer: use deepspeed.stage 1 "
                "or above, or precision fp32 or bf16_autocast"
            )


@dataclass(frozen=True)
class ModelSource:
    """Where training starts: a checkpoint, or nothing.

    Attributes:
        version: checkpoint folder or hub id: LISA-7B-v1 (with `sam2_checkpoint`), a released GLUS, or ours.
        sizes: a `configs/*.yaml` with the sizes of a new model, instead of `version`; needs `tokenizer`.
        tokenizer: folder of the new model's tokenizer.
        vision_tower, sam2_checkpoint, image_size: see `glus.GLUS.from_pretrained`.
        memory_dropout: dropout of SAM-2's memory attention while training. The original has it on although
            that part is frozen (1.8).
    """

    version: str | None = None
    sizes: str | None = None
    tokenizer: str | None = None
    vision_tower: str | None = None
    sam2_checkpoint: str | None = None
    image_size: int | None = None
    memory_dropout: bool = False

    def __post_init__(self) -> None:
        if (self.version is None) == (self.sizes is None):
            raise InputError("give model.version (a checkpoint) or model.sizes (a YAML of a new model), not both")
        if self.sizes is not None and self.tokenizer is None:
            raise InputError("model.sizes makes a new model, which needs model.tokenizer (a folder)")
        if self.version is not None and self.tokenizer is not None:
            raise InputError("a checkpoint has its own tokenizer: model.tokenizer goes with model.sizes only")


@dataclass(frozen=True)
class DataConfig:
    """The mixture of data sets and how samples are drawn (4.4, 4.5)."""

    dataset_dir: str = "data"
    refer_video_seg_data: str = "mevis||refyoutube_vos"
    """Names joined by `||`; or `synthetic` alone, for videos generated on the fly."""
    sample_rates: str = "1,1"
    set_name: str = "train"
    num_classes_per_sample: int = 3
    """Most expressions of a sample."""
    context_frame_num: int = 4
    question_frame_num: int = 4
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Of the videos of `synthetic`, here and in validation."""
    expressions: Reading = "read"
    """`blind`, for `synthetic` alone: the same words instead of every expression, here and in validation; the
    control that shows what the sentence is worth."""


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out expressions, segmented as in real inference and scored by J&F (D31); `loop.validate_every` turns it
    on. `limit` expressions are taken evenly over the split."""

    dataset: str = "mevis"
    """Or `synthetic`: generated videos that training never draws."""
    set_name: str = "valid_u"
    dataset_dir: str | None = None
    """Default: that of the training data."""
    limit: int = 32
    mem_stride: int = InferenceConfig.mem_stride
    """Numbers of frames, and whether there is memory, are those of the training."""
    pictures: int = 4
    """Frames of the first expression shown in TensorBoard."""

    def __post_init__(self) -> None:
        if self.limit < 1 or self.pictures < 0:
            raise InputError(f"validation needs limit from 1 and pictures from 0: {self.limit}, {self.pictures}")


@dataclass(frozen=True)
class TrainConfig:
    """A GLUS training run."""

    model: ModelSource
    compat: Literal["corrected", "released"] = "corrected"
    data: DataConfig = field(default_factory=DataConfig)
    objective: Objective = field(default_factory=Objective)
    use_contrastive_loss: bool = False
    use_mem_bank: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)
    trainable: Literal["released", "all"] = "released"
    gradient_checkpointing: bool = True
    loop: LoopConfig = field(default_factory=LoopConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)


RELEASED: dict[str, Any] = {
    "objective": {
        "rules": {
            "overlap": "sum",
            "single_contrastive_token": False,
            "same_object_negatives": True,
            "fp32": False,
        }
    },
    "loop": {"optimizer": {"first_step": "full"}},
    "model": {"memory_dropout": True},
}
"""What `compat: released` changes in the defaults; a file or flag that names the field still has the last word."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        mine = out.get(key)
        out[key] = merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return out


def train_config(content: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration from parsed YAML or JSON, the preset it names underneath.

    Raises:
        InputError: an unknown key or a value that does not fit; `where` names the file.
    """
    preset = RELEASED if content.get("compat") == "released" else {}
    return from_dict(TrainConfig, merge(preset, content), where)


def read_content(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, not checked yet."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"config file {path} is not valid YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content or {}


def differing_fields(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ, with both values."""
    out: list[str] = []
    for key in [*one, *(key for key in other if key not in one)]:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            out += differing_fields(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs:
            out.append(f"{prefix}{key} {mine!r} instead of {theirs!r}")
    return out


def loop_identity(loop: LoopConfig) -> dict[str, Any]:
    """The part of a loop's configuration that decides the numbers; a run resumes under no other."""
    content = dataclasses.asdict(loop)
    for name in ("workers", "max_minutes", "validate_every", "checkpoints", "logging"):
        del content[name]
    return content


def without_places(content: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without where the data lies: with that folder moved, a run is the same."""
    data = content.get("data")
    if not isinstance(data, Mapping):
        return dict(content)
    return {**content, "data": {key: value for key, value in data.items() if key != "dataset_dir"}}


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of the configuration that decides the numbers."""
    content = {**dataclasses.asdict(config), "loop": loop_identity(config.loop)}
    del content["validation"], content["gradient_checkpointing"]
    return content
