"""Pretraining: its samples, its losses, its run, and the model it ends with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_config
from tiny_pretraining import SMALL, samples, sizes
from tiny_text import tiny_tokenizer

from glus.__main__ import main
from glus.api import GLUS
from glus.config import Behaviour
from glus.errors import InputError
from glus.modeling.pretrained import fresh_model
from glus.text.tokenizer import IMAGE_INDEX
from glus.training.launch import Place
from glus.training.pretraining.command import configuration, parser
from glus.training.pretraining.facts import OUTLINE, PREDICATES, UNKNOWN
from glus.training.pretraining.samples import (
    LanguageSample,
    MaskSample,
    PretrainingConfig,
    PretrainingSample,
    PretrainingSet,
    Side,
    SightSample,
)
from glus.training.pretraining.task import Pretraining, PretrainingTask

SIDES: tuple[Side, ...] = ("sight", "language", "masks")


@pytest.mark.parametrize("side", SIDES)
def test_samples_depend_on_seed_and_number_alone(side: Side) -> None:
    def bytes_of(sample: PretrainingSample) -> list[object]:
        values = [getattr(sample, field.name) for field in dataclasses.fields(sample)]
        return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value for value in values]

    assert bytes_of(samples(side)[4]) == bytes_of(samples(side)[4])
    assert samples(side)[5].video != samples(side)[4].video
    assert samples(side, seed=1)[4].video != samples(side)[4].video


def test_a_sample_of_each_side_fits_together() -> None:
    sight = samples("sight")[0]
    assert isinstance(sight, SightSample)
    pictures, patches = sight.patch_owners.shape
    assert sight.clip_pixels.shape[0] == pictures == 2
    assert sight.looks.shape == (2, 4, 4)
    assert sight.outlines.shape == (2, patches, OUTLINE**2)
    assert bool((sight.outlines[sight.patch_owners >= 0].amax(dim=1) > 0).all())

    language = samples("language")[0]
    assert isinstance(language, LanguageSample)
    assert language.clip_pixels.shape[0] == 5
    assert language.looks.shape == (5, 4, 4)
    assert torch.equal(language.owners < 0, language.looks[..., 0] == UNKNOWN)
    assert language.claims.shape[0] == language.looks.shape[1]
    assert language.paths.shape == (4, 5, 4)
    assert torch.equal(language.paths[:, -1, 0] > 0, language.owners[-1] >= 0)
    assert len(language.rows) == len(language.hints) == len(language.nouns) == 3
    assert all(row.count(IMAGE_INDEX) == 5 for row in language.rows)
    assert tiny_tokenizer().seg_id not in {token for row in language.rows for token in row}

    masks = samples("masks")[0]
    assert isinstance(masks, MaskSample)
    objects, frames = masks.masks.shape[:2]
    assert masks.mask_hints.shape[:2] == (objects, frames) == (3, 2)
    assert masks.sam_pixels.shape[0] == 2


def test_what_is_meant_lies_among_what_the_noun_fits() -> None:
    for number in range(4):
        sample = samples("language")[number]
        assert isinstance(sample, LanguageSample)
        cells = sample.owners.shape[1]
        # hints hold the root of the share
        assert bool((sample.nouns[:, 0] >= sample.hints[:, :cells] ** 2 - 1e-6).all())


def test_of_an_absent_object_nothing_is_to_be_found() -> None:
    sample = samples("language", dataclasses.replace(SMALL, absent=1.0))[0]
    assert isinstance(sample, LanguageSample)
    assert not sample.hints.any()
    assert not sample.nouns[:, 0].any()
    assert bool((sample.named[:, 0] != UNKNOWN).any(dim=1).all()), "yet the sentence names looks"


def test_the_answer_is_asked_what_the_words_claim() -> None:
    batch = [sample for number in range(2) if isinstance(sample := samples("language")[number], LanguageSample)]
    pretraining = Pretraining(fresh_model(sizes(), tiny_tokenizer(), 0), "language")
    scalars = pretraining(batch).scalars
    assert 0 <= float(scalars["said"]) <= 1
    pretraining.zero_grad()
    other = [dataclasses.replace(s, predicates=(s.predicates + 1) % len(PREDICATES)) for s in batch]
    assert pretraining(other).loss.item() != pretraining(batch).loss.item()


def test_the_blind_twin_reads_the_same_words_of_every_object() -> None:
    def tails(config: PretrainingConfig) -> set[tuple[int, ...]]:
        sample = samples("language", config)[0]
        assert isinstance(sample, LanguageSample)
        return {row[max(i for i, t in enumerate(row) if t == IMAGE_INDEX) :] for row in sample.rows}

    blind = tails(dataclasses.replace(SMALL, expressions="blind", sentences=12))
    assert 1 < len(blind) <= 20, "only the templates differ"
    assert len(tails(SMALL)) == 3


def test_image_tokens_must_cover_the_frame_on_a_grid() -> None:
    for behaviour in (Behaviour(clip_view="squash"), Behaviour(token_pooling="grid")):
        with pytest.raises(InputError, match="pretraining needs image tokens"):
            PretrainingSet(SMALL, tiny_config(behaviour=behaviour), tiny_tokenizer(), 0, "sight")
    with pytest.raises(InputError, match=r"pretraining\.sentences must be at least 1"):
        dataclasses.replace(SMALL, sentences=0)


@pytest.mark.parametrize("side", SIDES)
def test_each_side_trains_its_own_parts(side: Side) -> None:
    parts = {
        "sight": {"vision.tower.", "vision.projector."},
        "language": {"language.decoder.", "language.lm_head.", "seg_head."},
        "masks": {"sam.image_encoder.", "sam.memory_attention.", "sam.memory_encoder.", "sam.sam_mask_decoder."},
    }
    model = fresh_model(sizes(), tiny_tokenizer())
    task = PretrainingTask(model, samples(side))
    task.train_mode()
    task.module([samples(side)[0], samples(side)[1]]).loss.backward()
    learned = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    for prefix in parts[side]:
        assert any(name.startswith(prefix) for name in learned), prefix
    assert {name.split(".")[0] for name in learned} == {prefix.split(".")[0] for prefix in parts[side]}


def test_the_prompt_of_a_hint_is_fixed_and_tells_hints_apart() -> None:
    one, two = (Pretraining(fresh_model(sizes(), tiny_tokenizer()), side) for side in ("masks", "language"))
    sample = samples("language")[0]
    assert isinstance(sample, LanguageSample)
    hints = sample.hints
    assert torch.equal(one.prompt(hints), two.prompt(hints))
    assert not torch.allclose(one.prompt(hints[:1]), one.prompt(hints[:1] * 0))


@pytest.mark.parametrize("side", SIDES)
def test_losses_fall(side: Side) -> None:
    """On one batch: the gradients point the right way."""
    torch.manual_seed(0)
    task = PretrainingTask(fresh_model(sizes(), tiny_tokenizer()), samples(side))
    task.train_mode()
    batch = [samples(side)[0]]
    optimizer = torch.optim.AdamW([p for p in task.module.parameters() if p.requires_grad], lr=3e-3)
    seen = []
    for _ in range(15):
        output = task.module(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        seen.append({name: float(value) for name, value in output.scalars.items()})
    falling = {
        "sight": ["place"],
        "language": ["claims", "path", "point", "spoken", "answer", "look", "noun", "other", "track"],
        "masks": ["bce"],
    }
    for name in falling[side]:
        assert seen[-1][name] < 0.9 * seen[0][name], name


def test_a_run_of_the_command_stops_resumes_and_exports(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tmp_path / "tokenizer"
    tiny_tokenizer().save(tokenizer)
    model = sizes().to_dict()
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(model))))
    config = {
        "model": {"sizes": str(tmp_path / "sizes.yaml"), "tokenizer": str(tokenizer)},
        "samples": json.loads(json.dumps(dataclasses.asdict(SMALL))),
        "loop": {
            "steps": 2,
            "batch_size": 1,
            "grad_accumulation_steps": 1,
            "workers": 0,
            "precision": "fp32",
            "deepspeed": {"stage": 0},
            "checkpoints": {"every": 1, "keep": 1},
            "logging": {"tensorboard": False, "progress": False},
        },
    }
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(config))
    command = ["pretrain", "--config", str(tmp_path / "pretrain.yaml")]
    assert main([*command, "--log_dir", str(tmp_path / "masks"), "--side", "masks"]) == 0
    assert '"finished": true' in capsys.readouterr().out
    language = [*command, "--log_dir", str(tmp_path / "sight"), "--side", "sight"]
    assert main([*language, "--max_minutes", "0.000001"]) == 0
    assert capsys.readouterr().out == '{"step": 1, "finished": false}\n'
    assert main(language) == 0
    assert capsys.readouterr().out == '{"step": 2, "finished": true}\n'
    folders = [str(tmp_path / name / "model") for name in ("sight", "masks")]
    assert main(["pretrain", "--join_sides", *folders, "--log_dir", str(tmp_path / "joined")]) == 0
    states = [GLUS.from_pretrained(folder).model.state_dict() for folder in (*folders, tmp_path / "joined/model")]
    for name, tensor in states[2].items():
        assert torch.equal(tensor, states[1 if name.startswith("sam.") else 0][name]), name
    weight = "sam.sam_mask_decoder.iou_token.weight"
    assert not torch.equal(states[0][weight], states[1][weight])
    config["loop"]["deepspeed"]["stage"] = 3
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(config))
    split = ["pretrain", "--config", str(tmp_path / "split.yaml"), "--log_dir", str(tmp_path / "split")]
    assert main([*split, "--side", "masks"]) == 2
    assert "deepspeed.stage 0, 1 or 2" in capsys.readouterr().err
    assert main([*language, "--steps", "3"]) == 2, "another number of steps is another run"
    assert "steps" in capsys.readouterr().err


def test_the_twins_are_options_of_the_command() -> None:
    asked = ["--config", "configs/pretrain_tiny.yaml", "--log_dir", "x", "--side", "language"]
    whole = configuration(parser().parse_args(asked))
    options = ["--context_frames", "0", "--expressions", "blind", "--lr", "0.0005"]
    twin = configuration(parser().parse_args([*asked, *options]))
    samples = dataclasses.replace(whole.samples, context_frames=0, expressions="blind")
    optimizer = dataclasses.replace(whole.loop.optimizer, lr=0.0005)
    assert twin == dataclasses.replace(
        whole, samples=samples, loop=dataclasses.replace(whole.loop, optimizer=optimizer)
    )
    assert whole.samples.context_frames == 4
