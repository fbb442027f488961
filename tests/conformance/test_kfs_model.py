"""Frames to scores: pixels, features, the spliced sequence, every score (conformance kfs/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kfs_golden import golden_tensors, load

from glus.data.transforms import clip_image
from glus.modeling.keys import KeyTable
from glus.text.labels import label_conversation
from glus.text.tokenizer import GlusTokenizer
from kfs import frames, prompts
from kfs.model import CHAT_UNIVI, RELEASED, SelectorConfig, SelectorModel


@pytest.fixture(scope="module")
def videos(kfs_root: Path, kfs_model: SelectorModel) -> dict[str, torch.Tensor]:
    """Our tokens of the frames of every video of the set."""
    _, arrays = load(kfs_root, "image_tokens")
    names = [key.removesuffix("_frames") for key in arrays if key.endswith("_frames")]
    assert names
    size = kfs_model.config.vision.image_size
    clips = {name: torch.stack([clip_image(frame, size) for frame in arrays[f"{name}_frames"]]) for name in names}
    return {name: kfs_model.encode_clip(clip) for name, clip in clips.items()}


def test_weights_are_the_golden_ones(kfs_root: Path) -> None:
    spec = json.loads((kfs_root / "tiny_model.json").read_text())
    for key, value in golden_tensors(kfs_root, spec["shapes"]).items():
        sums = [value.double().sum().item(), value.double().abs().sum().item()]
        np.testing.assert_allclose(sums, spec["weight_sums"][key], rtol=1e-9, atol=1e-9, err_msg=key)


def test_frames_to_tokens(kfs_root: Path, kfs_model: SelectorModel, videos: dict[str, torch.Tensor]) -> None:
    _, arrays = load(kfs_root, "image_tokens")
    for name, tokens in videos.items():
        clip = torch.stack([clip_image(f, kfs_model.config.vision.image_size) for f in arrays[f"{name}_frames"]])
        wanted = arrays[f"{name}_pixel_values_frame0_stride4"]
        np.testing.assert_allclose(clip[0, :, ::4, ::4], wanted, rtol=0, atol=1e-5)
        features = kfs_model.vision.patches(clip)
        np.testing.assert_allclose(features, arrays[f"{name}_features"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(tokens, arrays[f"{name}_tokens"], rtol=0, atol=1e-4)


def test_scores(
    kfs_root: Path, kfs_model: SelectorModel, kfs_tokenizer: GlusTokenizer, videos: dict[str, torch.Tensor]
) -> None:
    spec, arrays = load(kfs_root, "scores")
    meta = json.loads((kfs_root / "meta_expressions.json").read_text())["videos"]
    assert spec["items"]
    for number, item in enumerate(spec["items"]):
        video, expression, frame = Path(item["output"]).with_suffix("").parts[-3:]
        names, target = meta[video]["frames"], item["target_index"]
        assert names.index(frame) == target
        references = frames.reference_frames(len(names), target)
        assert references == item["reference_indices"]
        said = prompts.clean_expression(meta[video]["expressions"][expression]["exp"])
        text = prompts.conversation(said, len(references))
        assert text == item["prompt"]
        ids, _ = label_conversation(text, kfs_tokenizer)
        wanted = arrays["input_ids"][number]
        assert ids == wanted[wanted != -1].tolist()
        assert [len(ids), len(references) + 1] == [item["input_length"], item["num_images"]]
        batch = kfs_model.assemble([ids], videos[video][[*references, target]])
        hidden = kfs_model.score_states(kfs_model.states(batch), batch)
        np.testing.assert_allclose(hidden[0], arrays["hidden"][number], rtol=0, atol=5e-5)
        assert abs(float(kfs_model.score_of(hidden)) - item["score"]) <= 5e-5, item["output"]


def test_scores_of_a_batch_are_those_of_single_rows(
    kfs_root: Path, kfs_model: SelectorModel, videos: dict[str, torch.Tensor]
) -> None:
    spec, arrays = load(kfs_root, "scores")
    chosen = [0, len(spec["items"]) - 1]  # of different lengths, so that one is padded
    rows = [[int(token) for token in arrays["input_ids"][number] if token != -1] for number in chosen]
    items = [spec["items"][number] for number in chosen]
    used = [
        videos[Path(item["output"]).parts[-3]][[*item["reference_indices"], item["target_index"]]]
        for item in items
    ]
    assert len(rows[0]) != len(rows[1])
    scores = kfs_model.score(rows, torch.cat(used))
    np.testing.assert_allclose(scores, [item["score"] for item in items], rtol=0, atol=5e-5)


def test_sequence(kfs_root: Path, kfs_model: SelectorModel, videos: dict[str, torch.Tensor]) -> None:
    _, arrays = load(kfs_root, "sequence")
    ids = arrays["input_ids"][0].tolist()
    items, known = load(kfs_root, "scores")
    same = [n for n, row in enumerate(known["input_ids"]) if row[row != -1].tolist() == ids]
    fitting = []
    for number in same:  # the same prompt is asked of several frames: the embeddings tell which
        item = items["items"][number]
        clip = videos[Path(item["output"]).parts[-3]]
        batch = kfs_model.assemble([ids], clip[[*item["reference_indices"], item["target_index"]]])
        if np.abs(batch.embeddings[0].numpy() - arrays["inputs_embeds"]).max() <= 1e-4:
            fitting.append(batch)
    assert fitting
    batch = fitting[0]
    np.testing.assert_array_equal(batch.attention_mask[0], arrays["attention_mask"].astype(bool))
    states = kfs_model.states(batch)[0]
    np.testing.assert_allclose(states[::16], arrays["final_hidden_stride16"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(states[-8:], arrays["final_hidden_last8"], rtol=0, atol=1e-4)


def own_shapes(table: KeyTable, recorded: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    named = {table.to_own(key): tuple(shape) for key, shape in recorded.items()}
    return {key: shape for key, shape in named.items() if key is not None}


def test_recorded_layouts_are_ours(kfs_root: Path) -> None:
    """Names and shapes of the 7B directories: no key unknown, none missing."""
    with torch.device("meta"):
        kfs_model = SelectorModel(SelectorConfig(), score_id=32000)
    shapes = {key: tuple(value.shape) for key, value in kfs_model.state_dict().items()}
    language = {key: shape for key, shape in shapes.items() if not key.startswith("vision.tower.")}
    merged = json.loads((kfs_root / "manifest_kfs_7b_hf.json").read_text())
    assert own_shapes(RELEASED, merged) == language
    start = own_shapes(CHAT_UNIVI, json.loads((kfs_root / "manifest_chatunivi_7b.json").read_text()))
    embedding, head = "language.decoder.embed_tokens.weight", "language.lm_head.weight"
    words = {key: (shapes[key][0] - 1, shapes[key][1]) for key in (embedding, head)}  # [SCORE] is not there yet
    assert start == {key: shape for key, shape in language.items() if not key.startswith("score_head.")} | words
