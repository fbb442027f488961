"""The attention that pretraining teaches is the attention that the language model uses."""

from __future__ import annotations

import pytest
import torch
from tiny import fill
from tiny_pretraining import samples, sizes
from tiny_text import tiny_tokenizer

from glus.data.synthetic import generate_video
from glus.modeling.pretrained import fresh_model
from glus.text.tokenizer import IMAGE_INDEX
from glus.training.pretraining.attention import (
    GATHER,
    LOOK,
    NOUN,
    TRACK,
    attention_loss,
    look,
    neighbour,
    read,
)
from glus.training.pretraining.facts import fitting
from glus.training.pretraining.task import with_neighbours


def test_scores_are_those_of_the_language_model() -> None:
    model = fill(fresh_model(sizes(), tiny_tokenizer()), tiny_tokenizer()).eval()
    batch = [samples("language")[0], samples("language")[1]]
    images = model.encode_clip(torch.cat([sample.clip_pixels for sample in batch]))
    with torch.no_grad():
        reading = read(model, [sample.rows for sample in batch], images)
        row = batch[1].rows[2]
        frames = len(batch[1].clip_pixels)
        whole = model.assemble([row], images[frames:]).embeddings
        model.language.decoder.config._attn_implementation = "eager"
        plain = model.language.decoder(inputs_embeds=whole, output_attentions=True, output_hidden_states=True)
    cells = images.shape[1]
    length = reading.look.shape[-1]
    number = len(batch[0].rows) + 2
    for layer, scores in ((LOOK, reading.look), (NOUN, reading.noun)):
        used = plain.attentions[layer][0, :, -1, :length]
        assert torch.allclose(scores[number].softmax(-1), used / used.sum(-1, keepdim=True), atol=1e-5)
    own = plain.attentions[TRACK][0, :, length - cells : length, :length]
    assert torch.allclose(reading.track[1].softmax(-1), own, atol=1e-5)
    assert torch.allclose(reading.answers[number], plain.last_hidden_state[0, -1], atol=1e-4)
    assert torch.allclose(reading.facts[1], plain.hidden_states[NOUN - 1][0, length - cells : length], atol=1e-4)
    assert torch.allclose(reading.paths[1], plain.hidden_states[TRACK][0, length - cells : length], atol=1e-4)
    before = row[: row.index(IMAGE_INDEX)]
    assert reading.frames[0] == len(before)
    assert torch.equal(whole[0, reading.frames[-1] : reading.frames[-1] + cells], images[-1])


def test_sight_is_that_of_the_clip_tower() -> None:
    model = fill(fresh_model(sizes(), tiny_tokenizer()), tiny_tokenizer()).eval()
    pixels = samples("sight")[0].clip_pixels
    with torch.no_grad():
        sight = look(model, pixels)
        assert torch.equal(sight.tokens, model.encode_clip(pixels))
        used: list[torch.Tensor] = []
        for layer in model.vision.tower.encoder.layers:
            layer.self_attn.config._attn_implementation = "eager"
            layer.self_attn.register_forward_hook(lambda module, inputs, output: used.append(output[1]))
        model.encode_clip(pixels)
    assert len(sight.attention) == GATHER + 1
    for scores, weights in zip(sight.attention, used, strict=False):
        assert torch.allclose(scores.softmax(-1), weights[:, :, 1:], atol=1e-5)


def test_neighbours_stop_at_the_border() -> None:
    left = neighbour(3, (0, -1), torch.device("cpu"))
    assert left.nonzero().tolist() == [[1, 1], [2, 2], [4, 4], [5, 5], [7, 7], [8, 8]]
    below = neighbour(3, (1, 0), torch.device("cpu"))
    assert below.nonzero().tolist() == [[patch, 1 + patch + 3] for patch in range(6)]


def test_outlines_around_a_patch_are_those_of_its_neighbours() -> None:
    own = torch.arange(9 * 2.0).reshape(1, 9, 2)
    around = with_neighbours(own).reshape(9, 2, 3, 3)
    assert torch.equal(around[4].permute(1, 2, 0).reshape(9, 2), own[0])
    assert torch.equal(around[0, :, 1:, 1:].permute(1, 2, 0).reshape(4, 2), own[0, [0, 1, 3, 4]])
    assert around[0, :, 0].abs().sum() == 0


def test_attention_loss_is_the_cross_entropy_over_what_can_be_found() -> None:
    scores = torch.zeros(3, 2, 4)
    wanted = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]])
    assert attention_loss(scores, wanted).item() == pytest.approx(1.3863, abs=1e-3)
    scores[2, :, 3] = 30
    assert attention_loss(scores, wanted).item() == pytest.approx(1.3863 / 2, abs=1e-3)
    assert attention_loss(scores, wanted * 0).item() == 0


def test_a_noun_fits_the_objects_meant_and_the_second_object_is_one() -> None:
    several = 0
    for index in range(12):
        video = generate_video(3, index)
        for sentence in video.sentences:
            fits = fitting(video, sentence.noun)
            assert set(sentence.targets) <= set(fits), sentence
            if sentence.predicate == "looks":
                assert tuple(fits) == sentence.targets
            else:
                several += len(fits) > len(sentence.targets)
            assert len(fitting(video, sentence.other)) == (sentence.other is not None)
    assert several > 20
