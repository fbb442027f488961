"""Write a glus-tiny checkpoint with MADE-UP weights: it runs every code path and segments nothing sensibly.

    python scripts/make_tiny_checkpoint.py checkpoints/glus-tiny

Seeded, so the same libraries give the same file. The tokenizer is a small sentencepiece model of our own, trained
on sentences of the synthetic generator and on the prompt; no third-party vocabulary or weights are involved.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from pathlib import Path

import sentencepiece
import torch

from glus.api import GLUS
from glus.config import ModelConfig, load_yaml
from glus.data.synthetic import sample_sentences
from glus.modeling.pretrained import fresh_model
from glus.text.prompts import window_prompt
from glus.text.tokenizer import GlusTokenizer

ROOT = Path(__file__).resolve().parents[1]
SENTENCES, VOCABULARY = 4000, 1024
ADDED = ("<im_patch>", "<im_start>", "<im_end>", "[SEG]")


def make_tokenizer(seed: int) -> GlusTokenizer:
    """LLaMA's tokenizer settings (byte fallback, dummy prefix, white space kept) on our own sentences."""
    sentences = sample_sentences(SENTENCES, seed)
    lines = [window_prompt(text, 2) for text in sentences[:50]] + sentences
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([part for line in lines for part in line.split("\n")]),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=-1,
    )
    base = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    return GlusTokenizer(model.getvalue(), {text: base + i for i, text in enumerate(ADDED)})


def make(seed: int) -> GLUS:
    tokenizer = make_tokenizer(seed)
    config = load_yaml(ModelConfig, ROOT / "configs" / "glus_tiny.yaml")
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=len(tokenizer)))
    model = fresh_model(config, tokenizer, seed)
    # Without training nothing makes the model answer [SEG]: tie its output row to the last prompt token's state.
    last = tokenizer.encode_with_images(window_prompt("it", 1))[-1]
    with torch.no_grad():
        direction = torch.randn(config.language.hidden_size, generator=torch.Generator().manual_seed(seed))
        model.language.lm_head.weight[tokenizer.seg_id] = direction
        model.language.embedding.weight[last] += direction
    return GLUS(model.to(torch.bfloat16), tokenizer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make(args.seed).save_pretrained(args.folder)
    sys.stdout.write(f"wrote {args.folder}: made-up weights, for trying the code only\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
