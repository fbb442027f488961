"""Bad input through the commands: each kind ends with status 2 and one clear message, and loses nothing.

Every row works on a folder that holds a half-finished run, a finished one, scores and an overlay video, in a path
with a space. The rows of a kind are few; the tests of each part go through its faults one by one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import clip_config, clip_state, released_config, tiny_glus

from glus.__main__ import guarded
from glus.__main__ import main as glus_main
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.writer import SetArguments, write_set
from glus.inference import infer_command
from glus.masks import encode_rle, write_mask_png

WORKER = (sys.executable, str(Path(__file__).parent / "inference" / "fake_worker.py"))
SMALL = SyntheticConfig(
    width=96, height=80, frames=8, min_objects=3, max_objects=3, min_sentences=6, max_sentences=6
)
META, MASKS = "data/mevis/valid_u/meta_expressions.json", "data/mevis/valid_u/mask_dict.json"
FIRST, LAST = "syn1_00000", "syn1_00001"
FRAMES = "data/mevis/valid_u/JPEGImages"

INFER = "infer --version fake --device cpu --dataset_dir {}/data --vis_save_path {}/masks"
EVAL = (
    f"eval mevis --mevis_exp_path {{}}/{META} --mevis_mask_path {{}}/{MASKS} --mevis_pred_path {{}}/pred "
    "--save_name {}/original.json --json {}/scores.json --iou_path {}/iou --workers 1"
)
SEGMENT = f"segment {{}}/{FRAMES}/{FIRST} thing -o {{}}/overlay.mp4 --masks {{}}/own --device cpu"
OURS, RELEASED = f"{SEGMENT} --version {{}}/ours", f"{SEGMENT} --version {{}}/released --vision-tower {{}}/clip"
SUBMIT = f"data submit --meta {{}}/{META} --masks {{}}/pred --out {{}}/out.zip"
REPORT = (
    "report --dataset_dir {}/data --vis_save_path {}/pred --eval_json {}/scores.json "
    f"--mask_path {{}}/{MASKS} --out {{}}/report"
)


def call(command: str, world: Path, disk: Path | None = None) -> int:
    """Run a command line in which `{}` is the folder, and `[]` another one."""
    argv = [word.replace("{}", str(world)).replace("[]", str(disk)) for word in command.split()]
    if argv[0] == "infer":
        return guarded(partial(infer_command.main, worker_command=WORKER), argv[1:])
    return glus_main(argv)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("refusals") / "a world"
    write_set(world / "data", SetArguments("valid_u", 2, 1, SMALL))
    glus = tiny_glus()
    glus.save_pretrained(world / "ours")
    for name, config, state in (
        ("released", {**released_config(glus.model), "out_dim": 256}, {}),  # the command knows SAM-2 large only
        ("clip", clip_config(glus.model), clip_state(glus.model)),
    ):
        (world / name).mkdir()
        (world / name / "config.json").write_text(json.dumps(config))
        torch.save(state, world / name / "pytorch_model.bin")
    glus.tokenizer.save(world / "released")
    (world / "keys.json").write_text(json.dumps({f"{FIRST}_0": "00003"}))
    for command in (f"{INFER} --limit 7", INFER.replace("/masks", "/pred"), EVAL, SUBMIT, REPORT, OURS):
        assert call(command, world) == 0, command
    return world


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "a world"))


def contents(world: Path) -> dict[str, bytes]:
    """What a user would miss: all files but the input that a test damages and a run's notes about itself."""
    inputs = ("data", "ours", "released", "clip", "keys.json")
    notes = ("summary.json", ".glus/lock", ".glus/run.json", ".glus/launch.json")
    files = {p.relative_to(world).as_posix(): p for p in world.rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith(inputs) and not name.endswith(notes)
    }


# -- what is done to the folder ------------------------------------------------------------------------------

Damage = Callable[[Path], Any]


def edit(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(world: Path) -> None:
        content = json.loads((world / name).read_text())
        change(content)
        (world / name).write_text(json.dumps(content))

    return damage


def video(change: Callable[[Any], Any]) -> Damage:
    return edit(META, lambda meta: change(meta["videos"][LAST]))


def expression(text: Any) -> Damage:
    return video(lambda entry: entry["expressions"]["0"].update(exp=text))


def codes(change: Callable[[list[Any]], Any]) -> Damage:
    """Change the list of run-length codes of the first annotation."""
    return edit(MASKS, lambda masks: change(next(iter(masks.values()))))


def first_code(change: Callable[[Any], Any]) -> Damage:
    return codes(lambda track: change(next(code for code in track if code is not None)))


def cut(name: str) -> Damage:
    return lambda world: (world / name).write_bytes(
        (world / name).read_bytes()[: (world / name).stat().st_size // 2]
    )


def remove(name: str) -> Damage:
    return lambda world: (world / name).unlink()


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(world: Path) -> None:
        path = world / "ours" / "model.safetensors"
        state = {key: tensor.clone() for key, tensor in load_file(path).items()}
        change(state)
        save_file(state, path)

    return damage


class RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def hide_code(world: Path) -> None:
    torch.save({"lm_head.weight": RunsCode(world / "it ran")}, world / "released" / "pytorch_model.bin")


def mask(shape: tuple[int, int]) -> Damage:
    return lambda world: write_mask_png(world / "pred" / LAST / "2" / "00003.png", np.ones(shape, bool))


def nothing(_: Path) -> None:
    pass


NORM = "language.decoder.norm.weight"
ROWS: dict[str, tuple[Damage, str, str]] = {
    "missing frame file": (remove(f"{FRAMES}/{LAST}/00004.jpg"), INFER, "00004.jpg"),
    "truncated JPEG": (cut(f"{FRAMES}/{LAST}/00004.jpg"), INFER, "00004.jpg is truncated"),
    "truncated JPEG of one's own": (cut(f"{FRAMES}/{FIRST}/00004.jpg"), OURS, "00004.jpg is truncated"),
    "broken JSON": (cut(META), INFER, "meta_expressions.json is not valid JSON"),
    "broken JSON for the evaluator": (cut(META), EVAL, "meta_expressions.json is not valid JSON"),
    "broken mask dictionary": (cut(MASKS), EVAL, "mask_dict.json is not valid JSON"),
    "broken scores for the report": (cut("scores.json"), REPORT, "scores.json is not valid JSON"),
    "missing field": (video(lambda v: v.pop("frames")), INFER, "has no field 'frames'"),
    "missing field for the evaluator": (video(lambda v: v.pop("frames")), EVAL, "frames"),
    "wrong-typed field": (video(lambda v: v.update(frames=3)), INFER, "frames must be list"),
    "wrong-typed text": (expression(7), INFER, "exp must be str"),
    "video id with ../": (edit(META, lambda m: m["videos"].update({"../x": m["videos"][LAST]})), INFER, "'../x'"),
    "video id with ../ for the evaluator": (
        edit(META, lambda m: m["videos"].update({"../x": m["videos"][LAST]})), EVAL, "'../x'",
    ),
    "overlong video id": (
        edit(META, lambda m: m["videos"].update({"x" * 300: m["videos"][LAST]})), EVAL, "longer than 200 bytes",
    ),
    "overlong frame name": (video(lambda v: v["frames"].append("é" * 101)), INFER, "longer than 200 bytes"),
    "frame name with ../": (video(lambda v: v["frames"].append("../x")), SUBMIT, "'../x'"),
    "fewer RLEs than frames": (codes(lambda track: track.pop()), EVAL, "7 masks for 8 frames"),
    "more RLEs than frames": (codes(lambda track: track.append(None)), EVAL, "9 masks for 8 frames"),
    "fewer RLEs than frames in the report": (codes(lambda track: track.pop()), REPORT, "7 masks for 8 frames"),
    "RLE of another size": (codes(lambda track: track.__setitem__(0, encode_rle(np.ones((9, 9))))), EVAL, "9x9"),
    "corrupt RLE": (first_code(lambda code: code.update(counts=code["counts"][:-3])), EVAL, "corrupt RLE"),
    "RLE without counts": (first_code(lambda code: code.pop("counts")), EVAL, "counts"),
    "empty expression": (expression(" . "), INFER, "empty"),
    "empty sentence": (nothing, OURS.replace(" thing ", " . "), "sentence 1 is empty"),
    "expression with [SEG]": (expression("the [SEG] one"), INFER, "[SEG]"),
    "expression with <image>": (expression("an <image>"), INFER, "<image>"),
    "zero frames": (video(lambda v: v.update(frames=[])), INFER, "frames is empty"),
    "no images": (lambda w: (w / "void").mkdir(), OURS.replace(f"{FRAMES}/{FIRST}", "void"), "holds no images"),
    "unknown data set": (nothing, f"{INFER} --val_set mevi", "unknown data set 'mevi'; known: mevis"),
    "unknown split": (nothing, f"{INFER} --set_name valid_x", "splits there: valid_u"),
    "unknown data set for the check": (nothing, "data check mevi --data_dir {}/data", "unknown data set"),
    "unwritable output": (nothing, INFER.replace("/masks", "/scores.json/masks"), "cannot write"),
    "unwritable video": (nothing, OURS.replace("/overlay", "/scores.json/overlay"), "cannot write"),
    "unwritable scores": (nothing, EVAL.replace("{}/scores.json", "{}/no/folder/scores.json"), "no/folder"),
    "unwritable zip": (nothing, SUBMIT.replace("/out.zip", "/scores.json/out.zip"), "cannot write"),
    "unwritable report": (nothing, REPORT.replace("{}/report", "{}/scores.json/report"), "cannot write"),
    "checkpoint lacks a key": (weights(lambda s: s.pop(NORM)), OURS, f"1 missing: {NORM}"),
    "checkpoint with a key too many": (weights(lambda s: s.update(x=torch.ones(1))), OURS, "1 surplus: x"),
    "checkpoint with a key misshaped": (weights(lambda s: s.update({NORM: torch.ones(3)})), OURS, "shape (3,)"),
    "truncated safetensors": (cut("ours/model.safetensors"), OURS, "model.safetensors is damaged or truncated"),
    "pickle with code in it": (hide_code, RELEASED, "could run code"),
    "key frame that is none": (
        edit("keys.json", lambda keys: keys.update({f"{FIRST}_0": "00099"})),
        f"{INFER} --use_kf --score_json {{}}/keys.json",
        f"{FIRST}_0 = '00099' names no frame",
    ),
    "mask missing": (remove(f"pred/{LAST}/2/00003.png"), EVAL, f"{LAST}/2/00003: missing"),
    "mask missing in a submission": (remove(f"pred/{LAST}/2/00003.png"), SUBMIT, f"{LAST}/2/00003.png: missing"),
    "mask of wrong size": (mask((9, 9)), EVAL, f"{LAST}/2/00003"),
    "mask of wrong size in a submission": (mask((9, 9)), SUBMIT, f"{LAST}/2/00003.png: 9x9"),
    "mask of wrong size in a report": (mask((9, 9)), REPORT, "00003.png is 9x9"),
    "truncated mask": (cut(f"pred/{LAST}/2/00003.png"), EVAL, f"{LAST}/2/00003"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(name: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, command, told = ROWS[name]
    damage(world)
    before = contents(world)
    assert call(command, world) == 2
    error = capfd.readouterr().err
    assert "error: " in error
    assert told in error, error
    assert "Traceback" not in error
    after = contents(world)
    assert before.items() <= after.items()
    assert all(name.startswith("masks/") for name in after.keys() - before.keys()), "half an output was left"
    assert not list(world.parent.glob("[!a]*"))


def test_what_is_whole_is_finished_beside_a_broken_video(world: Path) -> None:
    """Both videos share the run of "missing frame file": the other one's masks are completed by it."""
    (world / FRAMES / LAST / "00004.jpg").unlink()
    assert call(INFER, world) == 2
    names = {path.relative_to(world / "pred") for path in (world / "pred" / FIRST).rglob("*.png")}
    assert names == {path.relative_to(world / "masks") for path in (world / "masks" / FIRST).rglob("*.png")}


@pytest.fixture
def full_disk(small_disk: Path) -> Path:
    (small_disk / "filler").write_bytes(b"x" * (1 << 20))
    return small_disk


@pytest.mark.parametrize(
    ("command", "moved"),
    [
        (INFER, "{}/masks"),
        (OURS, "{}/overlay.mp4"),
        (OURS, "{}/own"),
        (EVAL, "{}/scores.json"),
        (EVAL, "{}/iou"),
        (SUBMIT, "{}/out.zip"),
        (REPORT, "{}/report"),
        ("data synthetic --videos 1 --seed 1 --out {}/set", "{}/set"),
    ],
)
def test_disk_full(
    command: str, moved: str, world: Path, full_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(world)
    words = ["[]/" + Path(word).name if word == moved else word for word in command.split()]
    assert call(" ".join(words), world, full_disk) == 2
    error = capfd.readouterr().err
    assert "No space left on device; free some space" in error, error
    assert "Traceback" not in error
    assert before.items() <= contents(world).items()
    assert not [p for p in full_disk.rglob("*") if p.suffix in (".mp4", ".zip") or ".tmp-" in p.name]


def test_disk_full_for_a_checkpoint(full_disk: Path) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        tiny_glus().save_pretrained(full_disk / "model")
    assert not (full_disk / "model" / "config.json").exists()
