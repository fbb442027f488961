"""The language model in 8 and 4 bits: near the whole weights, smaller, and never mistaken for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import tiny_glus

from glus.api import GLUS
from glus.config import LanguageConfig
from glus.errors import InputError
from glus.inference.infer_command import model_settings, parser
from glus.modeling.language import LanguageModel
from glus.modeling.quantise import quantise

CPU = torch.device("cpu")
installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason='bitsandbytes is not installed: pip install -e ".[quant]"',
)


def states_and_bytes(bits: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """What a small language model makes of fixed embeddings, and the bytes of its layers."""
    torch.manual_seed(0)
    language = LanguageModel(LanguageConfig(128, 2, 4, 192, vocab_size=50)).to(dtype).eval()
    language.reset_rotary(CPU)
    if bits is not None:
        quantise(language, bits, CPU)
    embeddings = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        whole = language(embeddings)
        _, prefix = language.begin(embeddings[:1, :4])
        last = language.read(embeddings[:1, 4:], prefix, last=torch.tensor([4]))
    torch.testing.assert_close(last, whole[:1, -1], rtol=0.05, atol=0.05)  # both ways of reading go through it
    return whole.float(), sum(p.nbytes for p in language.decoder.layers.parameters())


@installed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bits", "error"), [(8, 0.03), (4, 0.25)])
def test_it_stays_near_the_whole_weights_and_is_smaller(bits: int, error: float, dtype: torch.dtype) -> None:
    expected, whole_bytes = states_and_bytes(None, dtype)
    found, found_bytes = states_and_bytes(bits, dtype)
    off = (found - expected).norm() / expected.norm()
    assert 0 < off < error
    assert found_bytes < whole_bytes * bits / (8 * dtype.itemsize) * 1.05


@installed
def test_a_checkpoint_is_loaded_in_8_bits_and_cannot_be_saved_so(tmp_path: Path) -> None:
    tiny_glus().save_pretrained(tmp_path / "whole")
    glus = GLUS.from_pretrained(tmp_path / "whole", device="cpu", bits=8)
    kinds = {name: type(module).__name__ for name, module in glus.model.named_modules()}
    assert {kinds[f"language.decoder.layers.1.{name}"] for name in ("self_attn.v_proj", "mlp.up_proj")} == {
        "Linear8bitLt"
    }
    assert {kinds[name] for name in ("language.lm_head", "seg_head.0", "vision.projector")} == {"Linear"}
    assert not [name for name, kind in kinds.items() if "8bit" in kind and "decoder.layers" not in name]
    clip = torch.randint(0, 256, (3, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert glus.segment(clip.numpy(), ["the red square"]).masks.shape == (1, 3, 48, 64)
    with pytest.raises(InputError, match="nothing to compare"):
        glus.self_check()  # the recorded numbers are those of the whole weights
    with pytest.raises(InputError, match="cannot be saved"):
        glus.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_had_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="4 or 8 bits, found 3"):
        GLUS.from_pretrained("nowhere", bits=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'need bitsandbytes: pip install -e "\.\[quant\]"'):
        GLUS.from_pretrained("nowhere", bits=8)


def test_runs_of_other_bits_are_other_runs() -> None:
    """`infer` compares these settings before it continues in a folder."""
    found = [model_settings(parser().parse_args(argv), "cpu")["bits"] for argv in BITS]
    assert found == [None, 8, 4]
    with pytest.raises(SystemExit):
        parser().parse_args(["--load_in_8bit", "--load_in_4bit"])


BITS: list[list[str]] = [[], ["--load_in_8bit"], ["--load_in_4bit"]]
