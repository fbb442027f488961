"""Work of a model, counted: for tests and benchmarks, which hold schedules to what they claim."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from glus.modeling.glus import GLUSModel
from glus.modeling.multimodal import MultimodalModel

_aten = torch.ops.aten
WAITING = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default}
"""Operations whose result the host needs before it can go on: a value, or the size of what comes out."""
INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class Waits(TorchDispatchMode):
    """Counts how often the host asks a tensor for a value, or for how many of its entries are true.

    On a GPU each is a wait for the device. Copies to the host are not among them: `tolist` and `cpu` look alike on
    a CPU, whether they wait or not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in WAITING or (function in INDEXING and _by_mask(args[1]))
        return function(*args, **(kwargs or {}))


def _by_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made within the block, by this thread, and still exist.

    Attributes:
        now: at this moment.
        most: at any moment, exactly: by operations, not by what an allocator holds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(tensor.untyped_storage(), True)  # from outside, or seen before
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _tensors(things: Any) -> list[torch.Tensor]:
    return [thing for thing in tree_leaves(things) if isinstance(thing, torch.Tensor)]


@contextmanager
def counted(model: MultimodalModel) -> Iterator[dict[str, int]]:
    """Items that each part is given within the block: frames, positions, or calls."""
    first = model.language.decoder.layers[0]

    def items(args: Any) -> int:
        return len(args[0])

    def positions(args: Any) -> int:
        return int(args[0][..., 0].numel())

    def calls(_: Any) -> int:
        return 1

    parts: dict[str, tuple[nn.Module, Callable[[Any], int]]] = {
        "clip_frames": (model.vision, items),
        "llm_calls": (first, calls),
        "llm_positions": (first, positions),
        "lm_head_positions": (model.language.lm_head, positions),
    }
    if isinstance(model, GLUSModel):
        parts |= {
            "sam2_image_encodings": (model.sam.image_encoder, items),
            "seg_head_positions": (model.seg_head, positions),
            "memory_attention_calls": (model.sam.memory_attention, calls),
            "mask_decoder_calls": (model.sam.sam_mask_decoder.transformer, calls),
            "memory_encoder_calls": (model.sam.memory_encoder, calls),
        }
    seen = dict.fromkeys(parts, 0)

    def note(name: str, measure: Callable[[Any], int]) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any) -> None:  # of a call by keyword, `args` is empty
            seen[name] += measure(args)

        return hook

    handles = [part.register_forward_pre_hook(note(name, measure)) for name, (part, measure) in parts.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
