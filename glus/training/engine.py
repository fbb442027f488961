"""DeepSpeed around a task's module: forward, backward, optimizer step, and its files.

DeepSpeed's own loading unpickles; here its files are read with `weights_only=True`, which admits tensors, plain
values and the classes of DeepSpeed's named in `glus.training.shards.DEEPSPEED_CLASSES`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from glus.errors import InputError
from glus.modeling.checkpoints import unpickle
from glus.training.config import LoopConfig, merge
from glus.training.launch import Place, import_deepspeed
from glus.training.shards import DEEPSPEED_CLASSES

PERSISTENT = 100_000
"""ZeRO-3 never splits parameters of up to this many elements. GLUS reads some outside their module's forward
(`no_mem_embed`, the decoder's tokens, `no_mask_embed`); all of those are far smaller in every model size."""


class StepModule(nn.Module):
    """A task's module as DeepSpeed wants it: tensors out, in the run's arithmetic."""

    def __init__(self, module: nn.Module, autocast: bool, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.autocast = autocast
        self.device_type = device.type

    def forward(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # Inside the forward, because DeepSpeed switches off an autocast that surrounds its own call.
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.autocast), self._attention():
            output = self.module(batch)
        return output.loss, dict(output.scalars)

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        """On a CPU torch's fused attention is no faster in bf16 than in fp32; plain products take half as long."""
        if self.device_type != "cpu" or not self.autocast:
            return contextlib.nullcontext()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the CPU's path asks this switch, too
        return sdpa_kernel(SDPBackend.MATH)


def deepspeed_config(config: LoopConfig) -> dict[str, Any]:
    """The configuration DeepSpeed gets (6.1); `config.deepspeed.extra` has the last word."""
    zero: dict[str, Any] = {
        "stage": config.deepspeed.stage,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
        "reduce_scatter": True,
        "reduce_bucket_size": config.deepspeed.bucket_size,
        "allgather_bucket_size": config.deepspeed.bucket_size,
    }
    if config.deepspeed.stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT
    if config.deepspeed.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if config.deepspeed.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.grad_accumulation_steps,
        # DeepSpeed does not tell the norm it clips by without ZeRO: `Engine.step` clips there.
        "gradient_clipping": config.optimizer.grad_clip if config.deepspeed.stage else 0.0,
        "steps_per_print": sys.maxsize,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.precision in ("bf16", "fp16"):
        content[config.precision] = {"enabled": True}
    return merge(content, config.deepspeed.extra)


class Engine:
    """One module, its optimizer and its ranks.

    Args:
        after_cast: called once DeepSpeed has cast and moved the module, which rounds what must stay in fp32.

    Raises:
        InputError: nothing to train, or a precision this device lacks.
    """

    def __init__(
        self, module: nn.Module, config: LoopConfig, place: Place, after_cast: Callable[[], None] | None = None
    ) -> None:
        deepspeed = import_deepspeed()
        if config.precision == "fp16" and place.device.type == "cpu":
            raise InputError("DeepSpeed has no fp16 on a CPU: choose precision fp32, bf16 or bf16_autocast")
        self.config = config
        self.place = place
        self._step_module = StepModule(module, config.precision == "bf16_autocast", place.device)
        self._trained = [p for p in self._step_module.parameters() if p.requires_grad]
        if not self._trained:
            raise InputError("no parameter is trainable")
        settings = config.optimizer
        # torch's fused AdamW serves GPU, CPU and offloaded states: no operator of DeepSpeed's to compile.
        optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        with contextlib.redirect_stdout(sys.stderr):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self._step_module, optimizer=optimizer, config=deepspeed_config(config)
            )
        self._engine.checkpoint_engine = _safe_checkpoint_engine()
        # It copies scripts into every checkpoint folder that unpickle it with full rights.
        self._engine._copy_recovery_script = lambda folder: None
        if after_cast is not None:
            after_cast()
        if config.deepspeed.stage == 3 and (kept := self._optimizer.persistent_parameters):
            kept[0].all_gather(kept)  # DeepSpeed does so after every step, but not before the first

    def forward(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss with graph, and scalars, of a micro-batch on the device."""
        loss, scalars = self._engine(batch)
        return loss, scalars

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients; divides by the number of micro-batches of a step."""
        self._engine.backward(loss)

    def step(self, rate: float) -> float | None:
        """To be called after every backward; the last one of a step changes the weights.

        Returns:
            The gradients' 2-norm before clipping, after the last micro-batch of a step; None otherwise, and
            where fp16 overflowed and the step was left out. Where it is NaN or infinite otherwise, the weights are
            still those before the step.
        """
        last = bool(self._engine.is_gradient_accumulation_boundary())
        norm = None
        fp16 = self.config.precision == "fp16"  # its loss scale may be too high; DeepSpeed lowers it
        if last:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            if not self.config.deepspeed.stage:
                limit = self.config.optimizer.grad_clip or float("inf")
                norm = float(torch.nn.utils.clip_grad_norm_(self._trained, limit))
                if not (fp16 or math.isfinite(norm)):
                    return norm
        skipped = self._engine.skipped_steps
        self._engine.step()
        if not last:
            return None
        if self._engine.skipped_steps > skipped:  # ZeRO does so in every precision, and would for ever
            return None if fp16 else float("nan")
        found = norm if norm is not None else self._engine.get_global_grad_norm()
        return None if found is None else float(found)

    def save(self, folder: Path) -> None:
        """Write module and optimizer into `folder`; every rank calls this."""
        with contextlib.redirect_stdout(sys.stderr):
            self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, optimizer included."""
        with contextlib.redirect_stdout(sys.stderr):
            found, _ = self._engine.load_checkpoint(
                str(folder.parent), tag=folder.name, load_lr_scheduler_states=False
            )
        if found is None:
            raise InputError(f"{folder} holds no DeepSpeed checkpoint")

    @contextlib.contextmanager
    def whole_weights(self) -> Any:
        """For the length of a block every rank's module holds all weights (ZeRO-3 splits them)."""
        if self.config.deepspeed.stage < 3:
            yield
            return
        deepspeed = import_deepspeed()
        with deepspeed.zero.GatheredParameters(list(self._step_module.parameters())):
            yield

    def weight_prefix(self, inner: nn.Module) -> str:
        """What precedes the names of `inner` in the saved module state, e.g. `module.model.`."""
        for name, module in self._step_module.named_modules():
            if module is inner:
                return f"{name}."
        raise ValueError("not a part of the trained module")


def load_file(path: Path) -> Mapping[str, Any]:
    """A file of a checkpoint, onto the CPU, without unpickling anything but data and `DEEPSPEED_CLASSES`.

    Raises:
        InputError: unreadable, damaged, or holding other objects.
    """
    import_deepspeed()
    classes = [getattr(importlib.import_module(module), name) for module, name in DEEPSPEED_CLASSES]
    try:
        # Not mapped: the optimizer goes on with these very tensors, long after the file is deleted.
        content: Mapping[str, Any] = unpickle(path, classes, mapped=False)
    except InputError as error:
        raise InputError(f"{path.name} cannot be read as a checkpoint: {error}") from None
    return content


def _safe_checkpoint_engine() -> Any:
    """DeepSpeed's reader and writer of files, reading data only."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class SafeCheckpointEngine(TorchCheckpointEngine):
        def save(self, state_dict: Any, path: str) -> None:
            torch.save(state_dict, path)

        def load(self, path: str, map_location: Any = None) -> Any:
            return load_file(Path(path))

    return SafeCheckpointEngine()
