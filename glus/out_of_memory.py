"""How running out of memory shows."""

from __future__ import annotations

import torch

_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU mostly by type; the CPU's allocator and the GPU's libraries say it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _NO_MEMORY
    )
