"""The models a page offers: loaded when first asked for, one at a time, so that memory is that of the largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glus.errors import InputError
from glus.inference.worker import load_glus

if TYPE_CHECKING:
    from glus.api import GLUS
    from kfs.checkpoints import Selector


class Models:
    """Checkpoints by the names that visitors choose among; a visitor cannot name a folder.

    Args:
        offered: name -> settings of `glus.inference.worker.load_glus`.
        selector: folder of a key-frame selector.
        memory_budget: GiB that a job may use beside the models; default by what is free.
        load: loads one of `offered`.
        load_selector: loads `selector`; default on the device and in the precision of the model.
    """

    def __init__(
        self,
        offered: Mapping[str, dict[str, Any]],
        selector: str | Path | None = None,
        memory_budget: float | None = None,
        load: Callable[[Mapping[str, Any]], GLUS] = load_glus,
        load_selector: Callable[[str | Path, GLUS], Selector] | None = None,
    ) -> None:
        if not offered:
            raise InputError("a page needs a model")
        if memory_budget is not None and not memory_budget > 0:
            raise InputError(f"the memory budget must be above 0 GiB, found {memory_budget}")
        self.memory_budget = memory_budget
        self._offered = dict(offered)
        self._folder = selector
        self._load = load
        self._load_selector = load_selector or _load_beside
        self._loaded: tuple[str, GLUS] | None = None
        self._selector: Selector | None = None

    @property
    def names(self) -> list[str]:
        return list(self._offered)

    @property
    def has_selector(self) -> bool:
        return self._folder is not None

    def check(self, name: str) -> str:
        """The name, if it is offered."""
        if name not in self._offered:
            raise InputError(f"there is no model {name!r:.80} here; choose one of {', '.join(self._offered)}")
        return name

    def get(self, name: str) -> GLUS:
        """The model of that name; of another that was loaded nothing is kept."""
        self.check(name)
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = self._selector = None
            self._loaded = (name, self._load(self._offered[name]))
        return self._loaded[1]

    def selector(self, glus: GLUS) -> Selector | None:
        """The key-frame selector, if there is one."""
        if self._selector is None and self._folder is not None:
            self._selector = self._load_selector(self._folder, glus)
        return self._selector


def _load_beside(folder: str | Path, glus: GLUS) -> Selector:
    from kfs.checkpoints import load_selector

    return load_selector(folder, device=glus.model.device, dtype=glus.model.language.embedding.weight.dtype)
