"""The tokenizer's rule around special tokens, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from glus.errors import InputError
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer


@pytest.fixture(scope="module")
def plain(model_bytes: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model_bytes)


def test_ids_come_from_the_text(tokenizer: GlusTokenizer, vocabulary: int) -> None:
    assert tokenizer.seg_id == vocabulary + 1
    assert tokenizer.im_start_id == vocabulary + 3
    assert tokenizer.im_end_id == vocabulary
    assert tokenizer.im_patch_id == vocabulary + 2
    assert tokenizer.pad_id == tokenizer.unk_id
    assert len(tokenizer) == vocabulary + 4


def test_whitespace_beside_added_tokens_is_stripped(
    tokenizer: GlusTokenizer, plain: sentencepiece.SentencePieceProcessor
) -> None:
    ids = tokenizer.encode("result is \n[SEG] . frame")
    assert ids == [tokenizer.bos_id, *plain.encode("result is"), tokenizer.seg_id, *plain.encode(". frame")]


def test_whitespace_beside_special_tokens_is_kept(
    tokenizer: GlusTokenizer, plain: sentencepiece.SentencePieceProcessor
) -> None:
    ids = tokenizer.encode("result is </s> USER: ")
    wanted = [tokenizer.bos_id, *plain.encode("result is "), tokenizer.eos_id, *plain.encode(" USER: ")]
    assert ids == wanted


def test_stripping_can_be_switched_off(model_bytes: bytes, tokenizer: GlusTokenizer) -> None:
    loose = GlusTokenizer(model_bytes, tokenizer.added_tokens, strip_around_added=False)
    text = "result is [SEG]."
    assert len(loose.encode(text)) > len(tokenizer.encode(text))
    assert loose.encode("result is[SEG].") == tokenizer.encode(text)


def test_longest_token_wins(model_bytes: bytes, vocabulary: int) -> None:
    names = ["[SEG]", "<im_start>", "<im_end>", "[SEG][SEG]"]
    tokenizer = GlusTokenizer(model_bytes, {name: vocabulary + i for i, name in enumerate(names)})
    assert tokenizer.encode("[SEG][SEG][SEG]")[1:] == [vocabulary + 3, vocabulary]


def test_images(tokenizer: GlusTokenizer) -> None:
    ids = tokenizer.encode_with_images("<im_start><image><im_end>\nCan you <image><image>")
    assert ids.count(IMAGE_INDEX) == 3
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[:4] == [tokenizer.bos_id, tokenizer.im_start_id, IMAGE_INDEX, tokenizer.im_end_id]
    assert ids[4:] == [*tokenizer.encode("Can you ")[1:], IMAGE_INDEX, IMAGE_INDEX]


def test_decode(tokenizer: GlusTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("Please segment it: 犬")) == "<s>Please segment it: 犬"
    assert tokenizer.decode(tokenizer.encode("it is [SEG].</s>")) == "<s>it is [SEG]  .</s>"
    for index in (IMAGE_INDEX, len(tokenizer)):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([index])


def test_folder_round_trip(tokenizer: GlusTokenizer, model_bytes: bytes, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    again = GlusTokenizer.from_folder(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == model_bytes
    for name in ("tokenizer.model", "added_tokens.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = "Can you segment the <im_start> [SEG]."
    assert again.encode(text) == tokenizer.encode(text)


def test_added_tokens_file_has_the_released_form(model_bytes: bytes, vocabulary: int, tmp_path: Path) -> None:
    """Sorted keys, two spaces: 88 bytes for the released ids, which have five digits."""
    names = ("<im_patch>", "<im_start>", "<im_end>", "[SEG]")
    GlusTokenizer(model_bytes, {name: vocabulary + i for i, name in enumerate(names)}).save(tmp_path)
    size = (tmp_path / "added_tokens.json").stat().st_size
    assert size + len(names) * (5 - len(str(vocabulary))) == 88


def test_other_tokenizer_config_changes_nothing(tokenizer: GlusTokenizer, tmp_path: Path) -> None:
    """D48: modern libraries read class and `legacy` from this file and then split differently."""
    tokenizer.save(tmp_path)
    config = {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    text = "result is [SEG].</s>USER: <im_start>"
    assert GlusTokenizer.from_folder(tmp_path).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_missing_file(tokenizer: GlusTokenizer, tmp_path: Path, name: str) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"missing: {name}"):
        GlusTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80\x02}q\x00."])
def test_broken_model(tokenizer: GlusTokenizer, tmp_path: Path, content: bytes) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        GlusTokenizer.from_folder(tmp_path)


def test_truncated_model(tokenizer: GlusTokenizer, model_bytes: bytes, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model_bytes[:500])
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        GlusTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ({"<im_start>": 0, "<im_end>": 1}, r"lacks the tokens \[SEG\]"),
        ({"[SEG]": 0, "<im_start>": 1, "<im_end>": 3}, "each once"),
        ({"[SEG]": 0, "<im_start>": 1, "<im_end>": 1}, "each once"),
        ({"[SEG]": -1, "<im_start>": 0, "<im_end>": 1}, "each once"),
        ({"[SEG]": 0, "<im_start>": 1, "<im_end>": 2, "": 3}, "empty text"),
    ],
)
def test_bad_added_tokens(model_bytes: bytes, vocabulary: int, offsets: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GlusTokenizer(model_bytes, {name: vocabulary + offset for name, offset in offsets.items()})


@pytest.mark.parametrize("content", ["[1]", '{"[SEG]": "32000"}', '{"[SEG]": true}', "{"])
def test_bad_added_tokens_file(tokenizer: GlusTokenizer, tmp_path: Path, content: str) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(InputError, match=r"added_tokens\.json"):
        GlusTokenizer.from_folder(tmp_path)
