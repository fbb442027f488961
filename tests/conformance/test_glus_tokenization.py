"""Prompts and ids against `glus/tokenization.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glus.errors import InputError
from glus.text import prompts
from glus.text.tokenizer import IMAGE_INDEX, GlusTokenizer

LLAMA_MODEL_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"


@pytest.fixture(scope="module")
def data(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("glus") / "tokenization.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(golden: Callable[[str], Path], data: dict[str, Any]) -> GlusTokenizer:
    facts = data["tokenizer"]
    return GlusTokenizer((golden("glus") / facts["file"]).read_bytes(), facts["added_tokens"])


def test_vocabulary(data: dict[str, Any], tokenizer: GlusTokenizer) -> None:
    facts = data["tokenizer"]
    assert len(tokenizer) == facts["vocab_size"]
    assert [tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id] == [
        facts[name] for name in ("bos", "eos", "unk", "pad")
    ]
    added = facts["added_tokens"]
    assert tokenizer.seg_id == added["[SEG]"]
    assert tokenizer.im_start_id == added["<im_start>"]
    assert tokenizer.im_end_id == added["<im_end>"]
    assert tokenizer.im_patch_id == added.get("<im_patch>")
    assert facts["image_token_index"] == IMAGE_INDEX


def test_templates(data: dict[str, Any]) -> None:
    facts = data["templates"]
    assert facts["system"] == prompts.SYSTEM
    context = facts["context_info"][0]
    wrapped = context.replace("<image>", prompts.IMAGE_BLOCK)
    assert prompts.context_block(context.count("<image>")) == wrapped
    assert len(prompts.QUESTIONS) == len(facts["question"])
    for ours, theirs in zip(prompts.QUESTIONS, facts["question"], strict=True):
        assert "<image>\n" + ours == theirs.replace("{class_name}", "{expression}")
    assert list(prompts.ANSWERS) == facts["answer"]
    assert facts["inference_answer"] == prompts.FORCED_ANSWER


def test_text(data: dict[str, Any], tokenizer: GlusTokenizer) -> None:
    assert data["text"]
    for case in data["text"]:
        assert tokenizer.encode(case["text"]) == case["input_ids"], case["text"]
        assert tokenizer.decode(case["input_ids"]) == case["decoded"], case["text"]


def test_single_turn(data: dict[str, Any], tokenizer: GlusTokenizer) -> None:
    assert data["single_turn"]
    for case in data["single_turn"]:
        # recorded below the step that cleans the expression
        prompt = prompts.training_prompt(case["expression"], [case["question"]], [case["answer"]])
        assert prompt == case["prompt"]
        assert tokenizer.encode_with_images(prompt) == case["input_ids"]


@pytest.mark.parametrize("part", ["windows", "hostile"])
def test_windows(data: dict[str, Any], tokenizer: GlusTokenizer, part: str) -> None:
    """The dialog, prompt by prompt, with successes and failures as the stub model produced them."""
    assert data[part]
    for case in data[part]:
        # the hostile cases state only the expression: default frames, every round a success
        context, questions = case.get("context_frames", 4), case.get("question_frames", 4)
        generated = case.get("generated", [tokenizer.seg_id] * len(case["windows"]))
        assert len(generated) == len(case["windows"])
        expression = case["expression"]  # recorded below the step that removes the period
        history: list[bool] = []
        for frame, (window, token) in enumerate(zip(case["windows"], generated, strict=True)):
            where = (case["expression"], frame)
            rounds = min(frame + 1, questions)
            prompt = prompts.window_prompt(expression, rounds, context, history[frame + 1 - rounds :])
            assert prompt == window["prompt"], where
            assert tokenizer.encode_with_images(prompt) == window["input_ids"], where
            assert rounds == window["question_frames"], where
            assert window["rel_pos"] == list(range(frame + 1 - rounds, frame + 1)), where
            assert window["frames"] == context + rounds, where
            history.append(token == tokenizer.seg_id)


def test_released_token_order(data: dict[str, Any], golden: Callable[[str], Path]) -> None:
    """The worked example of the reference (3.3) with the ids of the released checkpoints."""
    model = (golden("glus") / data["tokenizer"]["file"]).read_bytes()
    if hashlib.sha256(model).hexdigest() != LLAMA_MODEL_SHA256:
        pytest.skip("the golden set holds another sentencepiece model than the released checkpoints")
    names = ("<im_patch>", "<im_start>", "<im_end>", "[SEG]")
    tokenizer = GlusTokenizer(model, {name: 32000 + i for i, name in enumerate(names)})
    expression = prompts.clean_expression("The panda that has stayed in place with little movement.")
    windows = [tokenizer.encode_with_images(prompts.window_prompt(expression, rounds)) for rounds in range(1, 5)]
    assert [len(ids) for ids in windows] == [92, 132, 172, 212]
    assert windows[0][31:46] == [3148, 1001, 29901, *[32001, IMAGE_INDEX, 32002] * 4]
    answer = [18585, 29892, 278, 10768, 362, 1121, 338]
    assert windows[0][-8:] == [*answer, 29871]
    assert windows[1][84:100] == [*answer, 32003, 869, 2, 3148, 1001, 29901, 32001, IMAGE_INDEX, 32002]


def test_expression_cleaning(golden: Callable[[str], Path]) -> None:
    """One trailing period goes; recorded with the inference cases."""
    cases = sorted(golden("glus").glob("inference_*.json"))
    assert cases
    for path in cases:
        case = json.loads(path.read_text())
        assert prompts.clean_expression(case["expression"]) == case["target"], path.name


def test_special_tokens_in_expressions_are_refused(data: dict[str, Any]) -> None:
    """They can be tokenized as the original does, but a user who asks for them is told what is wrong."""
    special = ["<image>", "<s>", "</s>", "<unk>", *data["tokenizer"]["added_tokens"]]
    cases = [case["expression"] for case in data["hostile"]]
    hostile = [text for text in cases if any(token in text for token in special)]
    assert hostile
    for text in hostile:
        with pytest.raises(InputError, match="reserves"):
            prompts.check_expression(text)


def test_ordinary_expressions_are_accepted(data: dict[str, Any]) -> None:
    texts = {case["expression"] for case in data["windows"] + data["single_turn"]}
    assert texts
    for text in texts:
        if text.strip(" ."):
            assert prompts.check_expression(text) == text
