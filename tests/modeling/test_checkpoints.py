"""Checkpoints that must load: released GLUS, LISA with SAM-2, our own; and the numbers that must survive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders import sam2_state, write_clip, write_json, write_lisa, write_released
from safetensors.torch import load_file, save_file
from tiny import (
    EXPRESSIONS,
    clip_config,
    released_state,
    same_weights,
    tiny_clip,
    tiny_config,
    tiny_glus,
)
from tiny_text import tiny_tokenizer

from glus.api import DTYPES, GLUS
from glus.config import Behaviour
from glus.errors import InputError
from glus.modeling.checkpoints import load_state, read_file
from glus.modeling.folders import resolve
from glus.modeling.glus import GLUSModel
from glus.modeling.language import LanguageModel
from glus.modeling.mask_decoder import Sam2Path
from glus.modeling.pretrained import fresh_seg_head


@pytest.mark.parametrize(("kind", "shards"), [("bin", 2), ("bin", 1), ("safetensors", 3), ("safetensors", 1)])
def test_released_folder(glus: GLUS, clip: Path, tmp_path: Path, kind: str, shards: int) -> None:
    folder = write_released(tmp_path / "released", glus, kind, shards)
    loaded = GLUS.from_pretrained(folder, dtype="fp32", vision_tower=clip, sam2=glus.config.sam2)
    assert loaded.config == glus.config
    assert same_weights(loaded.model, glus.model)
    assert not loaded.model.training
    assert not any(t.is_meta for t in (*loaded.model.parameters(), *loaded.model.buffers()))
    wanted, found = (g.segment(tiny_clip(3), EXPRESSIONS[:2]) for g in (glus, loaded))
    # Memory-mapped weights lie unaligned, which changes the order of additions but no more.
    assert torch.allclose(wanted.scores, found.scores, atol=1e-4)
    assert float((wanted.masks != found.masks).float().mean()) < 1e-3


def test_token_ids_come_from_the_checkpoint(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    """The released order of added tokens is not that of the goldens, nor this one."""
    folder = write_released(tmp_path / "released", glus)
    added = json.loads((folder / "added_tokens.json").read_text())
    names = sorted(added, key=lambda name: -added[name])
    swapped = {name: min(added.values()) + i for i, name in enumerate(names)}
    write_json(folder / "added_tokens.json", swapped)
    loaded = GLUS.from_pretrained(folder, vision_tower=clip, sam2=glus.config.sam2)
    assert loaded.model.seg_id == loaded.tokenizer.seg_id == swapped["[SEG]"] != added["[SEG]"]


def test_safetensors_win_over_bin(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", glus, "safetensors", 1)
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    GLUS.from_pretrained(folder, vision_tower=clip, sam2=glus.config.sam2)


def test_clip_from_safetensors_and_from_a_vision_only_config(glus: GLUS, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", glus)
    tower = write_clip(tmp_path / "clip", glus, "safetensors")
    write_json(tower / "config.json", clip_config(glus.model)["vision_config"])
    loaded = GLUS.from_pretrained(folder, dtype="fp32", vision_tower=tower, sam2=glus.config.sam2)
    assert same_weights(loaded.model, glus.model)


def test_clip_inside_the_checkpoint(glus: GLUS, tmp_path: Path) -> None:
    """Only the tower's config is then asked of the CLIP folder."""
    folder = write_released(tmp_path / "released", glus, with_clip=True)
    write_json(tmp_path / "clip" / "config.json", clip_config(glus.model))
    loaded = GLUS.from_pretrained(folder, dtype="fp32", vision_tower=tmp_path / "clip", sam2=glus.config.sam2)
    assert same_weights(loaded.model, glus.model)


def test_missing_clip_names_what_is_wanted(glus: GLUS, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", glus)
    with pytest.raises(InputError, match=r"vision_tower=FOLDER.*config\.json.*safetensors"):
        GLUS.from_pretrained(folder, sam2=glus.config.sam2)
    with pytest.raises(InputError, match="no checkpoint folder"):
        GLUS.from_pretrained(folder, sam2=glus.config.sam2, vision_tower=tmp_path / "nowhere")


def test_hub_without_network() -> None:
    """Offline, a hub id is refused at once with the files to fetch (HF_HUB_OFFLINE is set in conftest.py)."""
    with pytest.raises(
        InputError, match=r"nobody/no-such-model.*config\.json, tokenizer\.model, added_tokens\.json"
    ):
        GLUS.from_pretrained("nobody/no-such-model")


@pytest.mark.parametrize("source", ["a..b/c", "-x/y", "x/y.", "a--b/c"])
def test_hub_ids_that_are_none(source: str) -> None:
    with pytest.raises(InputError, match="pass their folder"):
        GLUS.from_pretrained(source)


def test_a_mistyped_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no checkpoint folder at checkpoints/glus-tny"):
        GLUS.from_pretrained("checkpoints/glus-tny")


def test_lisa_with_sam2(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    folder = write_lisa(tmp_path / "lisa", glus)
    torch.save({"model": sam2_state(glus)}, tmp_path / "sam2.pt")
    options = {"dtype": "fp32", "vision_tower": clip, "sam2": glus.config.sam2}
    loaded = GLUS.from_pretrained(folder, sam2_checkpoint=tmp_path / "sam2.pt", **options)
    again = GLUS.from_pretrained(folder, sam2_checkpoint=tmp_path / "sam2.pt", **options)
    own, wanted = loaded.model.state_dict(), glus.model.state_dict()
    head = fresh_seg_head(glus.config)
    for key, value in own.items():
        assert torch.equal(value, head[key] if key.startswith("seg_head.") else wanted[key]), key
    assert same_weights(loaded.model, again.model)  # the fresh head is seeded
    assert float(own["seg_head.0.weight"].std()) > 0
    with pytest.raises(InputError, match="sam2_checkpoint"):
        GLUS.from_pretrained(folder, **options)
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        GLUS.from_pretrained(folder, sam2_checkpoint=tmp_path / "nowhere.pt", **options)


def test_fresh_seg_head_leaves_the_generator_alone(glus: GLUS) -> None:
    before = torch.get_rng_state()
    assert not torch.equal(
        fresh_seg_head(glus.config)["seg_head.0.weight"], fresh_seg_head(glus.config, 1)["seg_head.0.weight"]
    )
    assert torch.equal(before, torch.get_rng_state())


def test_a_released_folder_takes_no_second_sam2(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", glus)
    with pytest.raises(InputError, match="already holds SAM-2"):
        GLUS.from_pretrained(folder, vision_tower=clip, sam2_checkpoint=tmp_path / "x.pt", sam2=glus.config.sam2)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_own_format_round_trips_bit_by_bit(glus: GLUS, tmp_path: Path, dtype: str) -> None:
    glus.save_pretrained(tmp_path / "fp32")
    first = GLUS.from_pretrained(tmp_path / "fp32", dtype=dtype)
    assert first.model.dtype == DTYPES[dtype]
    assert {p.dtype for p in first.model.parameters()} == {DTYPES[dtype]}
    first.self_check()
    first.save_pretrained(tmp_path / "again")
    second = GLUS.from_pretrained(tmp_path / "again", dtype=dtype)
    assert same_weights(first.model, second.model)
    assert first.config == second.config
    assert first.tokenizer.added_tokens == second.tokenizer.added_tokens
    second.self_check()
    names = {p.name for p in (tmp_path / "again").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model", "added_tokens.json"}
    second.save_pretrained(tmp_path / "third")
    for name in names:
        assert (tmp_path / "third" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_saving_over_the_folder_it_was_loaded_from(glus: GLUS, tmp_path: Path) -> None:
    glus.save_pretrained(tmp_path)
    loaded = GLUS.from_pretrained(tmp_path, dtype="fp32")
    loaded.save_pretrained(tmp_path)
    assert same_weights(GLUS.from_pretrained(tmp_path, dtype="fp32").model, glus.model)


def test_own_format_keeps_the_behaviour(tmp_path: Path) -> None:
    config = tiny_config(behaviour=Behaviour(memory_features="raw", clip_view="pad"))
    switched = tiny_glus(config)
    switched.save_pretrained(tmp_path)
    assert GLUS.from_pretrained(tmp_path).config == config
    assert GLUS.from_pretrained(tmp_path, compat="released").config.behaviour == Behaviour.preset("released")
    assert GLUS.from_pretrained(tmp_path, behaviour=Behaviour()).config.behaviour == Behaviour()
    with pytest.raises(InputError, match="not both"):
        GLUS.from_pretrained(tmp_path, behaviour=Behaviour(), compat="released")


def test_image_size_is_an_argument(glus: GLUS, tmp_path: Path) -> None:
    glus.save_pretrained(tmp_path)
    larger = GLUS.from_pretrained(tmp_path, image_size=320)
    assert larger.config.sam2.image_size == 320
    assert larger.segment(tiny_clip(2), EXPRESSIONS[0]).masks.shape == (1, 2, 40, 56)
    with pytest.raises(InputError, match="fingerprint"):
        larger.self_check()
    GLUS.from_pretrained(tmp_path, image_size=256).self_check()  # the checkpoint's own size keeps it
    with pytest.raises(InputError, match="multiple of 64"):
        GLUS.from_pretrained(tmp_path, image_size=300)


def test_gamma_is_loaded_and_the_released_slip_is_a_switch(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    """C11, D7: the original renames keys with `gamma` and runs with 1e-6."""
    folder = write_released(tmp_path / "released", glus)
    options = {"dtype": "fp32", "vision_tower": clip, "sam2": glus.config.sam2}
    loaded = GLUS.from_pretrained(folder, **options)
    slipped = GLUS.from_pretrained(folder, compat="released", **options)
    gammas = {k: v for k, v in released_state(glus.model).items() if k.endswith(".gamma")}
    assert len(gammas) == glus.config.sam2.fuser_layers
    tiny = GLUS.from_pretrained(
        write_released(
            tmp_path / "reset",
            glus,
            state={**released_state(glus.model), **{k: torch.full_like(v, 1e-6) for k, v in gammas.items()}},
        ),
        **options,
    )
    clip_frames, text = tiny_clip(4), EXPRESSIONS[0]
    true, as_released, as_tiny = (g.segment(clip_frames, text) for g in (loaded, slipped, tiny))
    assert torch.equal(as_released.scores, as_tiny.scores)
    assert torch.equal(true.scores[:, 0], as_tiny.scores[:, 0])  # no memory yet
    assert not torch.equal(true.scores[:, 1:], as_tiny.scores[:, 1:])
    slipped.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for key, value in gammas.items():
        assert torch.equal(saved[key.replace("model.visual_model.", "sam.")], value)


@pytest.mark.parametrize("part", [LanguageModel, Sam2Path])
def test_parts_are_built_once(saved: Path, monkeypatch: pytest.MonkeyPatch, part: type) -> None:
    """D26: the original builds its language model twice and SAM-2 two or three times."""
    built: list[object] = []
    original = part.__init__

    def count(self: object, *args: object) -> None:
        built.append(self)
        original(self, *args)  # type: ignore[misc]

    monkeypatch.setattr(part, "__init__", count)
    GLUS.from_pretrained(saved)
    assert len(built) == 1


def test_stored_inverse_frequencies_are_not_used(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    state = released_state(glus.model)
    for key in state:
        if key.endswith("inv_freq"):
            state[key] = torch.full_like(state[key], 5.0)
    folder = write_released(tmp_path / "released", glus, state=state)
    loaded = GLUS.from_pretrained(folder, dtype="fp32", vision_tower=clip, sam2=glus.config.sam2)
    assert torch.equal(
        loaded.model.language.decoder.rotary_emb.inv_freq, glus.model.language.decoder.rotary_emb.inv_freq
    )


def _rotary(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    states = torch.zeros(1, 1, 1, dtype=torch.float32)
    cos, sin = model.decoder.rotary_emb(states, torch.tensor([[700]]))
    return cos, sin


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rotary_frequencies_stay_fp32(glus: GLUS, tmp_path: Path, dtype: str) -> None:
    glus.save_pretrained(tmp_path)
    exact = _rotary(glus.model.language)
    low = _rotary(GLUS.from_pretrained(tmp_path, dtype=dtype).model.language)
    assert torch.equal(exact[0], low[0])
    assert torch.equal(exact[1], low[1])
    rounded = 10000.0 ** (-torch.arange(8) / 8)
    wrong = torch.cos(700 * rounded.to(DTYPES[dtype]).float())
    assert float((wrong - exact[0][0, 0, :8]).abs().max()) > 0.02  # what casting them would do


def test_clip_position_ids_are_rebuilt(glus: GLUS, tmp_path: Path) -> None:
    glus.save_pretrained(tmp_path)
    loaded = GLUS.from_pretrained(tmp_path)
    ids = loaded.model.vision.tower.embeddings.position_ids
    assert ids.dtype == torch.int64
    assert ids.tolist() == [list(range(17))]


# -- the parts -----------------------------------------------------------------------------------------------


def test_mixed_stored_dtypes_need_a_choice(glus: GLUS) -> None:
    state = {k: v.clone() for k, v in glus.model.state_dict().items()}
    state["language.lm_head.weight"] = state["language.lm_head.weight"].to(torch.bfloat16)
    model = GLUSModel(glus.config, glus.tokenizer.seg_id)
    with pytest.raises(InputError, match="stored dtypes differ"):
        load_state(model, state)
    load_state(model, state, torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_released_folder_mixes_dtypes(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    """A released directory holds a bf16 language model and fp32 SAM-2 (2.4)."""
    state = released_state(glus.model)
    mixed = {k: v if "visual_model" in k or "text_hidden" in k else v.to(torch.bfloat16) for k, v in state.items()}
    folder = write_released(tmp_path / "released", glus, state=mixed)
    loaded = GLUS.from_pretrained(folder, dtype="bf16", vision_tower=clip, sam2=glus.config.sam2)
    assert {t.dtype for t in loaded.model.state_dict().values()} == {torch.bfloat16}


def test_reading_pt_files_with_and_without_wrapper(tmp_path: Path) -> None:
    tensor = {"a.b": torch.arange(3.0)}
    for name, content in (("plain.pt", tensor), ("wrapped.pt", {"model": tensor})):
        torch.save(content, tmp_path / name)
        assert read_file(tmp_path / name).keys() == {"a.b"}
    torch.save(tensor, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_file(tmp_path / "old.bin")["a.b"], tensor["a.b"])
    save_file(tensor, tmp_path / "x.safetensors")
    assert torch.equal(read_file(tmp_path / "x.safetensors")["a.b"], tensor["a.b"])


def test_tokenizer_and_vocabulary_agree(glus: GLUS, clip: Path, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released", glus)
    added = tiny_tokenizer().added_tokens
    added.pop("<im_patch>")
    base = min(tiny_tokenizer().added_tokens.values())
    write_json(folder / "added_tokens.json", {name: base + i for i, name in enumerate(added)})
    with pytest.raises(InputError, match=r"the tokenizer has .* vocab_size"):
        GLUS.from_pretrained(folder, vision_tower=clip, sam2=glus.config.sam2)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_hub_gives_one_form_of_the_weights(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that holds both forms is fetched as safetensors alone; one of pickles only is still found."""
    asked: list[list[str]] = []

    def fetch(source: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        name = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
        if any(Path(name).match(pattern) for pattern in allow_patterns):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve("someone/glus", ["config.json"]) == tmp_path
    assert all("config.json" in patterns for patterns in asked)
    assert len(asked) == (1 if form == "safetensors" else 2)
    assert [p.suffix for p in tmp_path.iterdir()] == [f".{form}"]
