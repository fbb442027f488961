"""Make glus-tiny's tokenizer: a small sentencepiece model of our own.

    python scripts/make_tokenizer.py checkpoints/glus-tiny

Trained on sentences of the synthetic generator and on the prompt; no third-party vocabulary is involved. Seeded:
the same libraries give the same file.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import sentencepiece

from glus.data.synthetic import sample_sentences
from glus.text.prompts import window_prompt
from glus.text.tokenizer import GlusTokenizer

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    make_tokenizer(args.seed).save(args.folder)
    sys.stdout.write(f"wrote {args.folder}/tokenizer.model and added_tokens.json\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
