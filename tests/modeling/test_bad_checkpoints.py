"""Damaged checkpoints: each is refused with an InputError that names the key, the field or the file."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import (
    INDEX,
    OTHER_SHARD,
    RELEASED_KEY,
    SHARD,
    Damage,
    both,
    code_in,
    drop,
    edit_json,
    edit_safetensors,
    edit_shard,
    put,
    remove,
    rename_shard,
    replace_by,
    truncate,
)
from folders import sam2_state, write_clip, write_json, write_lisa, write_released

from glus.api import GLUS
from glus.config import ModelConfig
from glus.errors import InputError
from glus.modeling.checkpoints import read_file

Row = tuple[str, Damage, str]
OUT = "language.decoder.norm.weight"


OWN: list[Row] = [
    ("a key is missing", edit_safetensors(lambda s: s.pop(OUT)), f"1 missing: {OUT}"),
    ("a key is surplus", edit_safetensors(lambda s: s.update(a=torch.ones(1))), "1 surplus: a"),
    ("a shape differs", edit_safetensors(lambda s: s.update({OUT: torch.ones(31)})), rf"{OUT} has shape \(31,\)"),
    (
        "a tensor holds integers",
        edit_safetensors(lambda s: s.update({OUT: torch.ones(32, dtype=torch.int32)})),
        f"{OUT} must be floating point",
    ),
    ("cut weights", truncate("model.safetensors"), r"model\.safetensors is damaged or truncated"),
    ("cut in the header", truncate("model.safetensors", 0.001), r"model\.safetensors is damaged or truncated"),
    ("empty weights", replace_by("model.safetensors", b""), r"model\.safetensors is damaged or truncated"),
    ("no weights", remove("model.safetensors"), r"not found: .*model\.safetensors"),
    ("no config", remove("config.json"), r"not found: .*config\.json"),
    ("no tokenizer", remove("tokenizer.model"), r"tokenizer files missing: tokenizer\.model"),
    ("cut tokenizer", truncate("tokenizer.model"), r"tokenizer\.model"),
    ("no added tokens", remove("added_tokens.json"), r"tokenizer files missing: added_tokens\.json"),
    ("cut config", truncate("config.json"), r"config\.json is not valid JSON"),
    ("config is a list", replace_by("config.json", b"[]"), r"config\.json: field file must be dict"),
    ("config is binary", replace_by("config.json", b"\xff\xfe\x00"), r"config\.json"),
    ("config without model", drop("model"), r"config\.json: .*no field 'model'"),
    ("model of wrong type", put("model", value=[1]), r"config\.json: .*model must be dict"),
    (
        "unknown key",
        put("model", "language", "layers", value=3),
        r"config\.json: model: language: unknown key 'layers'",
    ),
    ("unknown part", put("model", "audio", value={}), "unknown key 'audio'"),
    ("size as text", put("model", "language", "hidden_size", value="32"), "hidden_size must be int, found '32'"),
    ("switch as number", put("model", "behaviour", "lower_case", value=1), "lower_case must be bool, found 1"),
    ("unknown choice", put("model", "behaviour", "clip_view", value="half"), "clip_view must be one of"),
    ("stages as number", put("model", "sam2", "stages", value=3), "stages must be a list of integers"),
    ("image size", put("model", "sam2", "image_size", value=250), "image_size must be 256 or more"),
    ("other vocabulary", put("model", "language", "vocab_size", value=99), "the tokenizer has .* vocab_size 99"),
    ("other size", put("model", "language", "hidden_size", value=48), "does not fit the model: .*shape"),
    (
        "heads do not divide",
        put("model", "language", "num_heads", value=5),
        r"config\.json: no model can be built",
    ),
    ("zero heads", put("model", "vision", "num_heads", value=0), r"config\.json: no model can be built"),
    ("negative size", put("model", "sam2", "memory_dim", value=-8), r"config\.json: no model can be built"),
    ("activation", put("model", "language", "hidden_act", value="glow"), r"config\.json: no model can be built"),
    ("future format", put("format_version", value=99), "format_version 99 is unknown"),
    ("format version as text", put("format_version", value="1"), "format_version must be int"),
    ("no format version", drop("format_version"), "no field 'format_version'"),
    ("not our format", put("format", value="kfs"), "holds format 'kfs', no GLUS; kfs is a key-frame selector"),
    ("fingerprint of wrong type", put("fingerprint", value="x"), "fingerprint must be dict"),
    ("fingerprint lacks a field", drop("fingerprint", "low_res"), "fingerprint has unknown or missing .*low_res"),
    ("fingerprint dtype", put("fingerprint", "dtype", value="int4"), r"fingerprint\.dtype 'int4'"),
    ("fingerprint values", put("fingerprint", "iou", value=["a"]), r"fingerprint\.iou must be int or float"),
]

RELEASED: list[Row] = [
    ("a key is missing", edit_shard(lambda s: s.pop(RELEASED_KEY)), f"disagree with {INDEX}: {RELEASED_KEY}"),
    ("a key is surplus", edit_shard(lambda s: s.update(a=torch.ones(1))), f"disagree with {INDEX}: a"),
    (
        "a shape differs",
        edit_shard(lambda s: s.update({RELEASED_KEY: torch.ones(4)})),
        r"lm_head.* has shape \(4,\)",
    ),
    (
        "a tensor holds integers",
        edit_shard(lambda s: s.update({RELEASED_KEY: s[RELEASED_KEY].long()})),
        "lm_head.* must be floating point",
    ),
    (
        "index and shards name an unknown key",
        both(edit_shard(lambda s: s.update(a=torch.ones(1))), rename_shard("a", SHARD)),
        "a not part of the released GLUS layout",
    ),
    (
        "index and shards lack a key",
        both(
            edit_shard(lambda s: s.pop(RELEASED_KEY)),
            edit_json(INDEX, lambda i: i["weight_map"].pop(RELEASED_KEY) and None),
        ),
        r"1 missing: language\.lm_head\.weight",
    ),
    (
        "a key in two shards",
        edit_shard(lambda s: s.update({RELEASED_KEY: torch.ones(1)}), OTHER_SHARD),
        "disagree",
    ),
    ("a shard is missing", remove(OTHER_SHARD), f"are missing: {OTHER_SHARD}"),
    ("a shard is cut", truncate(SHARD), f"{SHARD} is damaged or truncated"),
    ("a shard is cut early", truncate(SHARD, 0.01), f"{SHARD} is damaged or truncated"),
    ("a shard is empty", replace_by(SHARD, b""), f"{SHARD} is damaged or truncated"),
    ("a shard is text", replace_by(SHARD, b"<html>not found</html>"), f"{SHARD} "),
    ("a shard holds code", code_in(SHARD, legacy=False), f"{SHARD} holds objects other than tensors"),
    ("a plain pickle holds code", code_in(SHARD, legacy=True), f"{SHARD} holds objects other than tensors"),
    ("a shard is a list", lambda f: torch.save([torch.ones(1)], f / SHARD), "no mapping from names to tensors"),
    ("a shard has numbers", lambda f: torch.save({"a": 1}, f / SHARD), "no mapping from names to tensors"),
    ("keys are numbers", lambda f: torch.save({1: torch.ones(1)}, f / SHARD), "no mapping from names to tensors"),
    (
        "index leaves the folder",
        rename_shard(RELEASED_KEY, "../evil"),
        r"weight_map.*'\.\./evil' is not a plain file",
    ),
    ("index is absolute", rename_shard(RELEASED_KEY, "/etc/passwd"), "'/etc/passwd' is not a plain file"),
    ("index holds a number", edit_json(INDEX, lambda i: i["weight_map"].update(a=3)), "must be a file name"),
    ("index without map", edit_json(INDEX, lambda i: {"metadata": {}}), f"{INDEX}: .*no field 'weight_map'"),
    ("cut index", truncate(INDEX), f"{INDEX} is not valid JSON"),
    (
        "no weights",
        lambda f: [p.unlink() for p in f.glob("pytorch*")] and None,
        "holds no weights; expected one of",
    ),
    ("no hidden size", drop("hidden_size"), r"config\.json: .*no field 'hidden_size'"),
    ("layers as text", put("num_hidden_layers", value="2"), "num_hidden_layers must be int, found str"),
    ("layers as float", put("num_hidden_layers", value=2.0), "num_hidden_layers must be int"),
    ("epsilon as text", put("rms_norm_eps", value="1e-6"), "rms_norm_eps must be int or float"),
    ("no epsilon", drop("rms_norm_eps"), "no field 'rms_norm_eps'"),
    ("theta as text", put("rope_theta", value="many"), "rope_theta must be int or float"),
    ("architecture", put("architectures", value=["LlavaForCausalLM"]), "architectures .*Llava.* is not one of"),
    ("architecture as text", put("architectures", value="GLUSForCausalLM"), "architectures must be list"),
    ("no architecture", drop("architectures"), "no field 'architectures'"),
    ("vocabulary", put("vocab_size", value=32000), "the tokenizer has .* vocab_size 32000"),
    ("grouped heads", put("num_key_value_heads", value=1), "num_key_value_heads"),
    ("scaled positions", put("rope_scaling", value={"type": "linear", "factor": 2.0}), "rope_scaling"),
    ("no image markers", put("mm_use_im_start_end", value=False), "mm_use_im_start_end"),
    ("image markers unsaid", drop("mm_use_im_start_end"), "mm_use_im_start_end"),
    ("class token too", put("mm_vision_select_feature", value="cls_patch"), "mm_vision_select_feature"),
    ("layer outside", put("mm_vision_select_layer", value=-9), "select_layer -9"),
    ("projector width", put("mm_hidden_size", value=17), "mm_hidden_size"),
    ("head width", put("out_dim", value=17), "out_dim 17"),
    ("activation", put("hidden_act", value="glow"), r"config\.json: no model can be built"),
]

CLIP: list[Row] = [
    ("no weights", remove("pytorch_model.bin"), "holds no weights"),
    ("no config", remove("config.json"), r"not found: .*config\.json"),
    ("config is a list", replace_by("config.json", b"[]"), r"config\.json: field file must be dict"),
    ("nested config is null", put("vision_config", value=None), "vision_config must be dict"),
    ("size as text", put("vision_config", "hidden_size", value="16"), "hidden_size must be int"),
    ("a size is missing", drop("vision_config", "num_hidden_layers"), r"vision\.tower\.encoder\.layers"),
    ("patch size", put("vision_config", "patch_size", value=15), "no multiple of patch_size 15"),
    (
        "unknown key",
        edit_shard(lambda s: s.update(a=torch.ones(1)), "pytorch_model.bin"),
        "a not part of the CLIP",
    ),
    (
        "a key is missing",
        edit_shard(lambda s: s.pop("vision_model.pre_layrnorm.weight"), "pytorch_model.bin"),
        r"1 missing: vision\.tower\.pre_layrnorm\.weight",
    ),
    ("cut", truncate("pytorch_model.bin"), r"pytorch_model\.bin is damaged or truncated"),
    ("code", code_in("pytorch_model.bin", legacy=False), "holds objects other than tensors"),
]

SAM: list[Row] = [
    (
        "a key is missing",
        edit_shard(lambda s: s["model"].pop("no_mem_embed"), "sam2.pt"),
        r"1 missing: sam\.no_mem_embed",
    ),
    (
        "SAM 2.1 has more",
        edit_shard(lambda s: s["model"].update(no_obj_embed_spatial=torch.ones(1, 8)), "sam2.pt"),
        r"1 surplus: sam\.no_obj_embed_spatial",
    ),
    ("cut", truncate("sam2.pt"), r"sam2\.pt is damaged or truncated"),
    ("code", code_in("sam2.pt", legacy=False), "holds objects other than tensors"),
]


@pytest.fixture(scope="module")
def templates(glus: GLUS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("templates")
    glus.save_pretrained(root / "own")
    write_clip(root / "clip", glus)
    write_released(root / "released", glus)
    write_lisa(root / "lisa", glus)
    torch.save({"model": sam2_state(glus)}, root / "lisa" / "sam2.pt")
    return root


def refuse(folder: Path, words: str, **options: Any) -> None:
    with pytest.raises(InputError, match=words):
        GLUS.from_pretrained(folder, **options)
    assert not (folder / "code-ran").exists()


def by_name(rows: list[Row]) -> dict[str, Any]:
    assert len({name for name, _, _ in rows}) == len(rows)
    return {"argvalues": rows, "ids": [name for name, _, _ in rows]}


@pytest.mark.parametrize(("name", "damage", "words"), **by_name(OWN))
def test_own(templates: Path, tmp_path: Path, name: str, damage: Damage, words: str) -> None:
    folder = Path(shutil.copytree(templates / "own", tmp_path / "own"))
    damage(folder)
    refuse(folder, words)


@pytest.mark.parametrize(("name", "damage", "words"), **by_name(RELEASED))
def test_released(templates: Path, tmp_path: Path, glus: GLUS, name: str, damage: Damage, words: str) -> None:
    folder = Path(shutil.copytree(templates / "released", tmp_path / "released"))
    damage(folder)
    refuse(folder, words, vision_tower=templates / "clip", sam2=glus.config.sam2)


@pytest.mark.parametrize(("name", "damage", "words"), **by_name(CLIP))
def test_clip(templates: Path, tmp_path: Path, glus: GLUS, name: str, damage: Damage, words: str) -> None:
    tower = Path(shutil.copytree(templates / "clip", tmp_path / "clip"))
    damage(tower)
    refuse(templates / "released", words, vision_tower=tower, sam2=glus.config.sam2)
    assert not (tower / "code-ran").exists()


@pytest.mark.parametrize(("name", "damage", "words"), **by_name(SAM))
def test_sam2(templates: Path, tmp_path: Path, glus: GLUS, name: str, damage: Damage, words: str) -> None:
    folder = Path(shutil.copytree(templates / "lisa", tmp_path / "lisa"))
    damage(folder)
    refuse(
        folder,
        words,
        vision_tower=templates / "clip",
        sam2_checkpoint=folder / "sam2.pt",
        sam2=glus.config.sam2,
    )


def test_the_untouched_folders_load(templates: Path, glus: GLUS) -> None:
    """Else the tables above would prove nothing."""
    GLUS.from_pretrained(templates / "own").self_check()
    options = {"vision_tower": templates / "clip", "sam2": glus.config.sam2}
    GLUS.from_pretrained(templates / "released", **options)
    GLUS.from_pretrained(templates / "lisa", sam2_checkpoint=templates / "lisa" / "sam2.pt", **options)


def test_the_pickle_does_run_code_where_it_is_trusted(tmp_path: Path) -> None:
    """The proof that `code-ran` would appear if anything unpickled the file."""
    code_in("x.bin", legacy=True)(tmp_path)
    pickle.loads((tmp_path / "x.bin").read_bytes())
    assert (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("part", ["vision_tower", "sam2_checkpoint", "sam2"])
def test_our_format_takes_no_parts(templates: Path, glus: GLUS, part: str) -> None:
    value = glus.config.sam2 if part == "sam2" else templates / "clip"
    refuse(templates / "own", f"is complete; do not pass {part}", **{part: value})


def test_every_size_of_the_config_is_checked(templates: Path, tmp_path: Path, glus: GLUS) -> None:
    """No field of our config.json may be changed to another type, or dropped into nonsense, unnoticed."""
    written = json.loads((templates / "own" / "config.json").read_text())["model"]
    assert written == json.loads(json.dumps(ModelConfig.to_dict(glus.config)))
    folder = Path(shutil.copytree(templates / "own", tmp_path / "own"))
    for part, fields in written.items():
        for name in fields:
            content = json.loads((templates / "own" / "config.json").read_text())
            content["model"][part][name] = None
            write_json(folder / "config.json", content)
            refuse(folder, name)


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_a_weights_file(tmp_path: Path, seed: int) -> None:
    """Random bytes, bare and behind the magic numbers of each format, never end in another exception."""
    noise = torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    data = noise.numpy().tobytes()
    for head in (
        b"",
        b"\x80\x02",
        b"\x80\x02}q\x00X",
        b"PK\x03\x04",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M",
    ):
        for name in ("x.bin", "x.safetensors"):
            (tmp_path / name).write_bytes(head + data)
            with pytest.raises(InputError, match=name):
                read_file(tmp_path / name)
