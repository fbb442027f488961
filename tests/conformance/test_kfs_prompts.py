"""Prompts, ids, labels, positions and frame choices of the selector (conformance kfs/README.md)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glus.modeling.assemble import plan_layout
from glus.text.labels import IGNORE_INDEX, collate, label_conversation
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer
from kfs import frames, prompts


@pytest.fixture(scope="module")
def data(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("kfs") / "tokenization.json").read_text())


@pytest.fixture(scope="module")
def tokenizers(golden: Callable[[str], Path], data: dict[str, Any]) -> dict[str, GlusTokenizer]:
    model = (golden("glus") / "tokenizer.model").read_bytes()
    added = {prompts.SCORE_TOKEN: data["special"]["score"]}
    return {f"legacy_{flag}".lower(): prompts.make_tokenizer(model, added, flag) for flag in (False, True)}


def test_special_ids(data: dict[str, Any], tokenizers: dict[str, GlusTokenizer]) -> None:
    special = data["special"]
    for tokenizer in tokenizers.values():
        ours = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id]
        assert ours == [special[name] for name in ("bos", "eos", "unk", "pad")]
        assert tokenizer.added_id(prompts.SCORE_TOKEN) == special["score"]
    assert [special["image_placeholder"], special["ignore"]] == [IMAGE_INDEX, IGNORE_INDEX]


def test_conversations(data: dict[str, Any], tokenizers: dict[str, GlusTokenizer]) -> None:
    assert data["cases"]
    for case in data["cases"]:
        tokenizer, score = tokenizers[case["tokenizer"]], data["special"]["score"]
        kind, question = case["question"]
        asked = {"short": prompts.QUESTIONS, "long": prompts.LONG_QUESTIONS}[kind]
        assert prompts.questions_for(case["expression"]) == asked
        text = prompts.conversation(case["expression"], case["reference_frames"], question, case["answer"])
        assert text == case["prompt"]
        ids, labels = label_conversation(text, tokenizer)
        assert [ids, labels] == [case["input_ids"], case["labels"]]
        assert ids.index(score) == case["score_index"]
        images = ids.count(IMAGE_INDEX)
        layout = plan_layout([ids], 1 + (case["expanded_length"] - len(ids)) // images, score)
        assert layout.lengths == [case["expanded_length"]]
        assert layout.seg_columns == [case["score_hidden_index_expanded"]]


def test_batches(data: dict[str, Any], tokenizers: dict[str, GlusTokenizer]) -> None:
    assert data["batches"]
    for case in data["batches"]:
        batch = collate(case["samples"], tokenizers[case["tokenizer"]])
        for name in ("input_ids", "labels", "attention_mask", "offset"):
            np.testing.assert_array_equal(getattr(batch, name), case[name], err_msg=name)
        np.testing.assert_array_equal(np.diff(batch.offset), case["num_conv_list"])
        images = [(row == IMAGE_INDEX).sum() for row in batch.input_ids[batch.offset[:-1]]]
        assert images == case["num_frame_list"]


def test_frames(golden: Callable[[str], Path]) -> None:
    data = json.loads((golden("kfs") / "frame_sampling.json").read_text())
    for case in data["eval"]:
        assert frames.reference_step(case["length"], case["max_image_token"]) == case["step"]
        for target in range(case["length"]):
            wanted = case["by_residue"][target % case["step"]]
            assert frames.reference_frames(case["length"], target, case["max_image_token"]) == wanted
    for name, values in data["frame_count_list"].items():
        low, high = map(int, name.split(","))
        ours = itertools.islice(frames.balanced([1] * (high - low + 1)), len(values))
        assert [low + choice for choice in ours] == values
    choices = data["dataset_list"]
    assert list(itertools.islice(frames.balanced(choices["weights"]), len(choices["values"]))) == choices["values"]
    for case in data["uniform_split_points"]:
        assert frames.segment_borders(case["length"], case["n"]) == case["points"]
