"""The LLaMA tokenizer with GLUS's added tokens, in the legacy form the released weights were trained with.

Current transformers tokenizers give other ids around added tokens, without any error, so the rule is written
out here on the sentencepiece library (reference glus.md 3.2, behaviour C1):

1. Cut the text at special tokens (`<s>`, `</s>`, `<unk>`) and added tokens (`[SEG]`, `<im_start>`, ...).
2. Strip whitespace from plain text on the side that touches an added token; drop what becomes empty.
3. Encode every plain piece on its own, so that each begins with a fresh word-start mark.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from glus.errors import InputError
from glus.io import expect, field, read_json, write_bytes, write_json

SEG_TOKEN = "[SEG]"
IM_START_TOKEN = "<im_start>"
IM_END_TOKEN = "<im_end>"
IM_PATCH_TOKEN = "<im_patch>"
IMAGE_PLACEHOLDER = "<image>"
IMAGE_INDEX = -200
"""Stands for one image in an id list; the model splices that image's tokens in its place."""

BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = "<s>", "</s>", "<unk>"
REQUIRED_ADDED = (SEG_TOKEN, IM_START_TOKEN, IM_END_TOKEN)
WORD_START = "\u2581"
MODEL_FILE = "tokenizer.model"
ADDED_FILE = "added_tokens.json"
SETTINGS_FILE = "tokenizer_config.json"


class GlusTokenizer:
    """Text <-> ids. Ids are looked up by token text, never assumed: checkpoints differ in their order.

    Args:
        model_bytes: content of a sentencepiece `tokenizer.model`.
        added_tokens: token text -> id; ids must continue the sentencepiece vocabulary without gaps.
        strip_around_added: strip whitespace beside added tokens (C1; False only for experiments).
        legacy: rule 3. Without it, text right after a token has no word-start mark unless a space stands there,
            as checkpoints say that have `legacy` false in their `tokenizer_config.json`; GLUS's have not.
        required: added tokens that must be there.

    Raises:
        InputError: not a sentencepiece model, a required token missing, or ids that clash or leave gaps.
    """

    def __init__(
        self,
        model_bytes: bytes,
        added_tokens: Mapping[str, int],
        strip_around_added: bool = True,
        legacy: bool = True,
        required: Sequence[str] = REQUIRED_ADDED,
    ) -> None:
        self._model_bytes = model_bytes
        self._sp = _load_sentencepiece(model_bytes)
        self._added = dict(added_tokens)
        self._strip = strip_around_added
        self._legacy = legacy
        self._required = tuple(required)
        _check_added(self._added, self._sp.vocab_size(), required)
        self._special = {text: self._piece_id(text) for text in (BOS_TOKEN, EOS_TOKEN, UNK_TOKEN)}
        self._ids = {**self._special, **self._added}
        self._texts = {index: text for text, index in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._cutter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        strip_around_added: bool = True,
        legacy: bool | None = True,
        required: Sequence[str] = REQUIRED_ADDED,
    ) -> GlusTokenizer:
        """Read `tokenizer.model` and `added_tokens.json` from a checkpoint folder.

        Args:
            legacy: rule 3. GLUS sets it: whatever class or `legacy` flag `tokenizer_config.json` names, the ids
                stay those the weights were trained with (defect D48). None takes the flag from there, true where
                it is absent. An `added_tokens.json` may be absent if nothing is `required`.

        Raises:
            InputError: a file is missing or unusable; the message names it.
        """
        folder = Path(path)
        wanted = (MODEL_FILE, ADDED_FILE) if required else (MODEL_FILE,)
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: tokenizer files missing: {', '.join(missing)}")
        added_path = folder / ADDED_FILE
        content = read_json(added_path, "added tokens") if required or added_path.is_file() else {}
        added = expect(content, dict, added_path, "(top level)")
        for text, index in added.items():
            expect(index, int, added_path, text)
        if legacy is None:
            legacy = _stored_legacy(folder / SETTINGS_FILE)
        try:
            return cls((folder / MODEL_FILE).read_bytes(), added, strip_around_added, legacy, required)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    def stripping(self, strip_around_added: bool) -> GlusTokenizer:
        """This tokenizer with the switch C1 set."""
        if strip_around_added == self._strip:
            return self
        return GlusTokenizer(self._model_bytes, self._added, strip_around_added, self._legacy, self._required)

    def adding(self, text: str) -> GlusTokenizer:
        """This tokenizer with one more token, which takes the next id and is required from now on."""
        added, required = {**self._added, text: len(self)}, (*self._required, text)
        return GlusTokenizer(self._model_bytes, added, self._strip, self._legacy, required)

    @property
    def legacy(self) -> bool:
        return self._legacy

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.model` (same bytes as loaded) and `added_tokens.json` into `folder`.

        A `tokenizer_config.json` says so where the tokenizer is not `legacy`.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_bytes(target / MODEL_FILE, self._model_bytes)
        write_json(target / ADDED_FILE, dict(sorted(self._added.items())))
        if not self._legacy:
            write_json(target / SETTINGS_FILE, {"legacy": False})

    def __len__(self) -> int:
        """Rows an embedding table needs: base vocabulary plus added tokens."""
        return int(self._sp.vocab_size()) + len(self._added)

    def added_id(self, text: str) -> int:
        """Id of an added token; `KeyError` if there is none of that text."""
        return self._added[text]

    @property
    def seg_id(self) -> int:
        return self._added[SEG_TOKEN]

    @property
    def im_start_id(self) -> int:
        return self._added[IM_START_TOKEN]

    @property
    def im_end_id(self) -> int:
        return self._added[IM_END_TOKEN]

    @property
    def im_patch_id(self) -> int | None:
        """None when the checkpoint has no such token; GLUS never emits it."""
        return self._added.get(IM_PATCH_TOKEN)

    @property
    def bos_id(self) -> int:
        return self._special[BOS_TOKEN]

    @property
    def eos_id(self) -> int:
        return self._special[EOS_TOKEN]

    @property
    def unk_id(self) -> int:
        return self._special[UNK_TOKEN]

    @property
    def pad_id(self) -> int:
        """Padding uses `<unk>`, as in training."""
        return self._special[UNK_TOKEN]

    @property
    def added_tokens(self) -> dict[str, int]:
        return dict(self._added)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with a leading `<s>`, no `</s>` at the end. `<image>` is plain text here."""
        ids = [self.bos_id]
        parts = self._cutter.split(text)  # plain, token, plain, token, ..., plain
        for position, part in enumerate(parts):
            if position % 2:
                ids.append(self._ids[part])
                continue
            if self._strip and position > 0 and parts[position - 1] in self._added:
                part = part.lstrip()
            if self._strip and position + 1 < len(parts) and parts[position + 1] in self._added:
                part = part.rstrip()
            if part and (self._legacy or position == 0 or part.startswith(" ")):
                ids.extend(self._sp.encode(part))
            elif part:
                ids.extend(self._encode_unmarked(part))
        return ids

    def _encode_unmarked(self, text: str) -> list[int]:
        """Ids of text that begins no word: the mark sentencepiece puts in front is taken off its first piece."""
        first, *others = self._sp.encode(text, out_type=str)
        pieces = [first.removeprefix(WORD_START), *others]
        return [int(self._sp.piece_to_id(piece)) for piece in pieces if piece]

    def encode_with_images(self, prompt: str) -> list[int]:
        """Ids of a prompt in which every literal `<image>` becomes one IMAGE_INDEX. Leading `<s>` once."""
        first, *others = prompt.split(IMAGE_PLACEHOLDER)
        ids = self.encode(first)
        for part in others:
            ids.append(IMAGE_INDEX)
            ids.extend(self.encode(part)[1:])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens kept and added tokens set off by spaces, as the original decoder.

        Raises:
            ValueError: an id outside the vocabulary (IMAGE_INDEX included).
        """
        sections: list[str] = []
        run: list[int] = []
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(f"token id {index} is outside the vocabulary of {len(self)}")
            if self._texts.get(index) in self._added:
                if run:
                    sections.append(self._decode_run(run))
                sections.append(self._texts[index])
                run = []
            else:
                run.append(index)
        if run:
            sections.append(self._decode_run(run))
        return " ".join(sections)

    def _decode_run(self, run: Sequence[int]) -> str:
        """Decode ids without added tokens. Text that runs into a special token gets a space in front."""
        out = ""
        plain: list[int] = []
        for index in run:
            if index not in self._texts:
                plain.append(index)
                continue
            if plain:
                out += " " + self._sp.decode(plain)
                plain = []
            out += self._texts[index]
        return out + (self._sp.decode(plain) if plain else "")

    def _piece_id(self, text: str) -> int:
        index = int(self._sp.piece_to_id(text))
        if self._sp.id_to_piece(index) != text:
            raise InputError(f"{MODEL_FILE} has no token {text}; a LLaMA sentencepiece model is needed")
        return index


def _stored_legacy(path: Path) -> bool:
    if not path.is_file():
        return True
    content = expect(read_json(path, "tokenizer settings"), dict, path, "(top level)")
    return bool(field({"legacy": True, **content}, "legacy", bool, path, "(top level)"))


def _load_sentencepiece(model_bytes: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model_bytes)
        size = processor.vocab_size()
    except (RuntimeError, OSError) as error:
        raise InputError(f"{MODEL_FILE} is not a sentencepiece model: {error}") from None
    if size == 0:
        raise InputError(f"{MODEL_FILE} is an empty sentencepiece model")
    return processor


def _check_added(added: Mapping[str, int], base: int, required: Sequence[str]) -> None:
    missing = [text for text in required if text not in added]
    if missing:
        raise InputError(f"{ADDED_FILE} lacks the tokens {', '.join(missing)}")
    if "" in added:
        raise InputError(f"{ADDED_FILE} holds a token with an empty text")
    if sorted(added.values()) != list(range(base, base + len(added))):
        raise InputError(
            f"{ADDED_FILE}: ids must be {base} to {base + len(added) - 1}, each once, because the base "
            f"vocabulary has {base} tokens; found {dict(added)}"
        )
