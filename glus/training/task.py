"""What the loop needs to know of a task, so that one loop trains GLUS, the selector and the pretraining stages."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from glus.data.records import Record
from glus.modeling.glus import GLUSModel
from glus.modeling.multimodal import MultimodalModel
from glus.training.contrastive import ObjectContrastiveLoss, ObjectTable
from glus.training.forward import TrainingForward, TrainingSample
from glus.training.objective import Objective


class Samples(Protocol):
    """Samples by number, without end; a pure function of the number (see `glus.training.batches`)."""

    def __getitem__(self, number: int) -> Any: ...


class StepOutput(Protocol):
    """What a task's module returns."""

    @property
    def loss(self) -> torch.Tensor:
        """Scalar to minimise, with its graph."""
        ...

    @property
    def scalars(self) -> Mapping[str, torch.Tensor]:
        """Scalars to log, detached, by name; averaged over micro-batches and ranks where present."""
        ...


class Task(Protocol):
    """What is trained.

    Attributes:
        name: names the task in checkpoints; another task's checkpoint is refused.
        module: `module(batch)` gives a `StepOutput`. Its parameters with `requires_grad` learn; all are saved.
        dataset: see `Samples`; it is handed to loader workers.
    """

    name: str
    module: nn.Module
    dataset: Samples

    @property
    def model(self) -> MultimodalModel:
        """The model inside `module`, for validation and export."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """Samples to a batch; runs in the loader workers. Tensors, objects with `to(device)`, or lists and
        mappings of such."""
        ...

    def train_mode(self) -> None:
        """Put the module into training mode."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What else, per rank, decides the coming steps: tensors and plain values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        ...


class GlusTask:
    """GLUS training: the whole model on samples of a data mixture.

    Args:
        contrastive_records: data set -> its training records, read when the contrastive loss first meets one of
            its tokens (D20); None for no contrastive loss.
        memory_dropout: see `ModelSource.memory_dropout`.
        rank: of this process; seeds the draws of the contrastive loss.
    """

    name = "glus"

    def __init__(
        self,
        model: GLUSModel,
        dataset: Samples,
        objective: Objective | None = None,
        contrastive_records: Mapping[str, Callable[[], Iterable[Record]]] | None = None,
        use_memory: bool = True,
        memory_dropout: bool = False,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        objective = objective or Objective()
        self.model = model
        self.dataset = dataset
        self.memory_dropout = memory_dropout
        self.contrastive = None
        if contrastive_records is not None:
            draws = random.Random(f"{seed} {rank}")
            table = ObjectTable(contrastive_records)
            self.contrastive = ObjectContrastiveLoss(table, draws, objective.contrastive, objective.rules)
        self.module: nn.Module = TrainingForward(model, objective, self.contrastive, use_memory)

    def collate(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        return samples

    def train_mode(self) -> None:
        """Training mode; SAM-2's memory attention drops out only if asked to (1.8)."""
        self.module.train()
        self.model.sam.memory_attention.train(self.memory_dropout)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.contrastive is None else {"contrastive": self.contrastive.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.contrastive is not None:
            self.contrastive.load_state_dict(state["contrastive"])


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch on `device`, whatever it is made of; see `Task.collate`."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **values)
    return batch


def names_of(samples: Sequence[Any]) -> list[str]:
    """What samples are, for messages: data set, video and expressions where they say."""
    out = []
    for sample in samples:
        parts = [str(getattr(sample, name, "")) for name in ("dataset", "video")]
        ids = ",".join(getattr(sample, "exp_ids", ()))
        named = " ".join(part for part in (*parts, ids and f"expressions {ids}") if part)
        out.append(named or type(sample).__name__)
    return out
