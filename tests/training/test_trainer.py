"""The loop: what it stops at, what it logs, how it validates, and that every way of running gives the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SPLIT, log_lines, tiny_loop, tiny_task, trainer, weights
from tiny import EXPRESSIONS, tiny_clip, tiny_glus

from glus.config import InferenceConfig
from glus.errors import InputError
from glus.evaluation.metrics import db_eval_boundary, db_eval_iou
from glus.io import write_bytes
from glus.training import logs
from glus.training.config import CheckpointConfig, DeepSpeedConfig, LoggingConfig
from glus.training.failures import NonFiniteLoss, replay
from glus.training.forward import TrainingSample
from glus.training.launch import Place
from glus.training.shards import read_shards
from glus.training.validation import HeldOut, SegmentationValidator, Validation
from glus.video import open_frames


class Faulty:
    """A hook for `runs.Samples` that fails at one sample."""

    def __init__(self, number: int, error: Exception) -> None:
        self.number, self.error = number, error

    def __call__(self, number: int, sample: TrainingSample) -> TrainingSample:
        if number == self.number:
            raise self.error
        return sample


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_data_ends_the_run_and_names_the_sample(tmp_path: Path, place: Place, workers: int) -> None:
    """D32: the original starts its loader again, whatever happened."""
    task = tiny_task(hook=Faulty(3, InputError("mevis, video v0: a.jpg is missing")))
    run = trainer(tmp_path, place, tiny_loop(workers=workers), task)
    with pytest.raises(
        InputError, match=r"^training sample 3 cannot be used: mevis, video v0: a\.jpg is missing$"
    ):
        run.run()
    assert [line["step"] for line in log_lines(tmp_path)] == [1]


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_fault_of_the_loader_comes_through(tmp_path: Path, place: Place, workers: int) -> None:
    """D32."""
    task = tiny_task(hook=Faulty(1, ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        trainer(tmp_path, place, tiny_loop(workers=workers), task).run()


def poison(number: int, sample: TrainingSample) -> TrainingSample:
    """Sample 5, the second of step 3, has a pixel that is not a number."""
    if number == 5:
        sample.sam_pixels[0, 0, 0, 0] = float("nan")
    return sample


def test_a_loss_that_is_not_a_number_stops_the_run_and_can_be_replayed(tmp_path: Path, place: Place) -> None:
    """The weights are those before the step; the replay finds the same losses and the first bad module."""
    run = trainer(tmp_path, place, tiny_loop(), tiny_task(hook=poison, contrastive=False))
    with pytest.raises(NonFiniteLoss, match="step 3: the loss is nan") as error:
        run.run()
    folder = tmp_path / "failure-step-00000003"
    assert str(folder / "batch-rank-0.pt") in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    before, saved = (
        torch.load(path / "mp_rank_00_model_states.pt")["module"]
        for path in (tmp_path / "checkpoints/step-00000002", folder)
    )
    assert all(torch.equal(before[name], saved[name]) for name in before)
    found = replay(folder / "batch-rank-0.pt", tiny_task(contrastive=False), place.device, autocast=False)
    written = run_loss(folder)
    assert found[0].scalars["loss"] == pytest.approx(written[0], rel=1e-6)
    assert found[0].first is None
    assert found[0].samples == ["4 mevis v1 expressions 0,1"]
    assert np.isnan(found[1].scalars["loss"])
    assert found[1].first is not None
    assert found[1].first.startswith("model.sam.image_encoder.")


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (0, "bf16_autocast"), (2, "fp32"), (2, "bf16"), (3, "fp32")]
)
def test_a_gradient_that_is_not_a_number_is_seen_before_the_weights_change(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    """Where all losses are finite; ZeRO by itself would leave out every further step and go on."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # ZeRO-3 puts its own there
    task = tiny_task(contrastive=False)
    zero = DeepSpeedConfig(stage, bucket_size=10**7)
    run = trainer(tmp_path, place, tiny_loop(precision=precision, deepspeed=zero), task)
    before = run.checkpoints.save(run.engine, task, 0, None)
    parameter = next(parameter for parameter in task.module.parameters() if parameter.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"step 1: the gradient norm is nan\. Weights"):
        run._loop(0, None, None, None)
    saved = [read_shards(folder).state for folder in (before, tmp_path / "failure-step-00000001")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def run_loss(folder: Path) -> list[float]:
    from glus.training.failures import _read_batches

    return [part["loss"] for part in _read_batches(folder / "batch-rank-0.pt")]


def test_a_replay_file_with_foreign_objects_is_refused(tmp_path: Path, place: Place) -> None:
    run = trainer(tmp_path, place, tiny_loop(steps=1), tiny_task(contrastive=False))
    checkpoint = run.run().checkpoint
    torch.save({"micro_batches": [Faulty(1, ValueError())]}, checkpoint / "batch-rank-0.pt")
    with pytest.raises(
        InputError, match=r"holds (test_trainer\.Faulty|\w+\.ValueError); only data and dataclasses"
    ):
        replay(checkpoint / "batch-rank-0.pt", tiny_task(contrastive=False), place.device, autocast=False)


class Call:
    """Pickles to a call of one of our own functions."""

    def __init__(self, written: Path) -> None:
        self.written = written

    def __reduce__(self) -> Any:
        return write_bytes, (str(self.written), b"code ran")


def test_a_replay_file_cannot_call_our_functions(tmp_path: Path, place: Place) -> None:
    torch.save({"micro_batches": [Call(tmp_path / "code-ran")]}, tmp_path / "batch-rank-0.pt")
    with pytest.raises(InputError, match=r"holds glus\.io\.write_bytes; only data and dataclasses"):
        replay(tmp_path / "batch-rank-0.pt", tiny_task(contrastive=False), place.device, autocast=False)
    assert not (tmp_path / "code-ran").exists()


def test_a_replay_has_the_runs_bank_and_is_of_its_model(tmp_path: Path, place: Place) -> None:
    """With an empty bank there would be no contrastive term."""
    with pytest.raises(NonFiniteLoss):
        trainer(tmp_path, place, tiny_loop(), tiny_task(hook=poison)).run()
    file = tmp_path / "failure-step-00000003/batch-rank-0.pt"
    assert "contrastive_loss" in replay(file, tiny_task(), place.device, autocast=False)[0].scalars
    other = tiny_task()
    other.module.register_buffer("surplus", torch.zeros(1))
    with pytest.raises(InputError, match=r"failure-step-00000003, with this configuration, .* missing: surplus"):
        replay(file, other, place.device, autocast=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = trainer(tmp_path, place, tiny_loop())

    def fail(batch: Any) -> Any:
        raise error

    monkeypatch.setattr(run.engine, "forward", fail)
    with pytest.raises(
        InputError, match=r"out of memory on rank 0\. Lower loop\.batch_size \(now 1; .*stage \(now 0\)"
    ):
        run.run()


@pytest.mark.parametrize("where", ["Engine", "to_device"])
def test_out_of_memory_says_so_outside_the_forward(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"glus.training.trainer.{where}", fail)
    with pytest.raises(InputError, match=r"out of memory on rank 0\. Lower loop\.batch_size"):
        trainer(tmp_path, place, tiny_loop()).run()


def test_other_errors_of_a_step_are_not_taken_for_it(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, place, tiny_loop())

    def fail(batch: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(run.engine, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run.run()


class Scripted:
    """A validator with given scores that does all a validator may do to the run's state."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.modes: list[bool] = []

    def __call__(self, model: Any, place: Place) -> Validation:
        self.modes.append(model.training)
        torch.rand(3)
        score = self.scores.pop(0)
        return Validation(score, {"J&F": score}, {"frame": np.zeros((8, 8, 3), np.uint8)})


def test_validation_keeps_the_best_checkpoint_and_leaves_no_trace(tmp_path: Path, place: Place) -> None:
    """D31: validation runs, and saving does not depend on it; the same weights come out with and without."""
    loop = tiny_loop(validate_every=2, checkpoints=CheckpointConfig(every=100, keep=1))
    validator = Scripted(0.2, 0.6, 0.4)
    run = trainer(tmp_path / "with", place, loop, validator=validator)
    result = run.run()
    assert validator.modes == [False] * 3
    assert run.task.module.training
    assert result.best is not None
    assert (result.best.step, result.best.score) == (4, 0.6)
    folder = tmp_path / "with/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "step-00000004", "step-00000006"]
    assert json.loads((folder / "best.json").read_text()) == {"step": 4, "score": 0.6}
    assert [line["J&F"] for line in log_lines(tmp_path / "with", "validation")] == [0.2, 0.6, 0.4]
    without = trainer(tmp_path / "without", place, dataclasses.replace(loop, validate_every=0))
    without.run()
    assert sorted(path.name for path in (tmp_path / "without/checkpoints").iterdir()) == ["step-00000006"]
    mine, theirs = weights(run.task), weights(without.task)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_best_is_known_from_the_checkpoint_itself(tmp_path: Path, place: Place) -> None:
    """A kill before `best.json` is written, or a file of a later step, changes nothing."""
    loop = tiny_loop(steps=4, validate_every=2, checkpoints=CheckpointConfig(every=2, keep=2))
    trainer(tmp_path, place, loop, validator=Scripted(0.6, 0.4)).run()
    folder = tmp_path / "checkpoints"
    for left in ({"step": 4, "score": 0.1}, None):
        (folder / "best.json").unlink(missing_ok=True)
        if left is not None:
            (folder / "best.json").write_text(json.dumps(left))
        best = trainer(tmp_path, place, loop, validator=Scripted()).run().best
        assert best is not None
        assert (best.step, best.score) == (2, 0.6)


def test_validation_is_real_inference_and_the_evaluators_measure(place: Place) -> None:
    """D31, D33: the held-out list goes through the engine the user runs, and through J and F."""
    glus = tiny_glus()
    clips = [tiny_clip(3, seed=seed) for seed in (1, 2)]
    texts = [EXPRESSIONS[:2], EXPRESSIONS[2:]]
    truth = [np.random.default_rng(seed).random((len(t), 3, 40, 56)) < 0.3 for seed, t in enumerate(texts)]
    videos = [
        lambda clip=clip, text=text, true=true: HeldOut(open_frames(clip), text, true)
        for clip, text, true in zip(clips, texts, truth, strict=True)
    ]
    found = SegmentationValidator(videos, glus.tokenizer, InferenceConfig(), pictures=2)(glus.model, place)
    wanted = []
    for clip, text, true in zip(clips, texts, truth, strict=True):
        masks = glus.segment(clip, text).masks.numpy()
        for one, mask in zip(true, masks, strict=True):
            wanted.append((np.mean(db_eval_iou(one, mask)), np.mean(db_eval_boundary(one, mask))))
    region, boundary = np.mean(wanted, axis=0)
    assert found.scalars == pytest.approx(
        {"J&F": (region + boundary) / 2, "J": region, "F": boundary, "failed": 0.0}
    )
    assert 0 < found.score < 1
    assert list(found.pictures) == ["frame_000", "frame_002"]
    assert all(picture.shape[1] == 56 and picture.shape[0] > 40 for picture in found.pictures.values())


def test_the_board_counts_steps_over_the_whole_run(tmp_path: Path, place: Place) -> None:
    """D35: a resumed run goes on at the step it is at; pictures and validation lie at the same steps."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = tiny_loop(steps=4, validate_every=2, logging=LoggingConfig(progress=False))
    first = trainer(tmp_path, place, dataclasses.replace(loop, max_minutes=1e-9), validator=Scripted())
    assert first.run().step == 1
    trainer(tmp_path, place, loop, validator=Scripted(0.1, 0.2)).run()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in board.Scalars("validation/J&F")] == [2, 4]
    assert [event.step for event in board.Images("validation/frame")][-1] == 4
    lines = log_lines(tmp_path)
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx([x["loss"] for x in lines])


def test_only_rank_0_writes(tmp_path: Path, place: Place) -> None:
    """D35: by the rank over all nodes, so other nodes' first processes write nothing."""
    other = dataclasses.replace(place, rank=8)
    run = trainer(tmp_path, other, tiny_loop(steps=1), tiny_task())
    run.checkpoints.save = lambda *_: tmp_path  # type: ignore[method-assign]
    run.checkpoints.newest = lambda: None  # type: ignore[method-assign]
    run.run()
    assert list(tmp_path.iterdir()) == []


def test_lines_are_means_and_leave_out_what_is_not_there(tmp_path: Path, place: Place) -> None:
    trainer(tmp_path / "each", place, tiny_loop(steps=4)).run()
    loop = tiny_loop(steps=4, logging=LoggingConfig(every=2, tensorboard=False, progress=False))
    trainer(tmp_path / "pairs", place, loop).run()
    each, pairs = log_lines(tmp_path / "each"), log_lines(tmp_path / "pairs")
    assert [line["step"] for line in pairs] == [2, 4]
    for pair, one, two in zip(pairs, each[::2], each[1::2], strict=True):
        assert pair["loss"] == pytest.approx((one["loss"] + two["loss"]) / 2)
        assert pair["lr"] == two["lr"]
    means = logs.Means()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    means.add({"a": torch.tensor(3.0)})
    assert logs.joined_means([means.totals(), {"b": (0.0, 1)}]) == {"a": 2.0, "b": 2.0}


WAYS = [
    ("fp32", DeepSpeedConfig(1, bucket_size=10**7), 5e-5),
    ("fp32", DeepSpeedConfig(2, bucket_size=10**7), 5e-5),
    ("fp32", DeepSpeedConfig(2, "cpu", 10**7), 5e-5),
    ("fp32", DeepSpeedConfig(3, bucket_size=10**7, extra=SPLIT), 1e-4),
    ("bf16", DeepSpeedConfig(2, bucket_size=10**7), 0.15),
    ("bf16_autocast", DeepSpeedConfig(0), 0.15),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, place: Place) -> list[dict[str, Any]]:
    log_dir = tmp_path_factory.mktemp("plain")
    trainer(log_dir, place, tiny_loop(steps=3), tiny_task(contrastive=False)).run()
    return log_lines(log_dir)


@pytest.mark.parametrize(("precision", "zero", "tolerance"), WAYS)
def test_every_way_of_running_gives_the_same_and_resumes(
    tmp_path: Path,
    place: Place,
    plain: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    zero: DeepSpeedConfig,
    tolerance: float,
) -> None:
    """ZeRO stages, offload and precisions against plain fp32; then stopped after each step and gone on."""
    # ZeRO-3 puts its own linear layer in torch's place, which rounds differently in bf16: not for the next way.
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    loop = tiny_loop(steps=3, precision=precision, deepspeed=zero)
    run = trainer(tmp_path / "whole", place, loop, tiny_task(contrastive=False))
    run.run()
    found = log_lines(tmp_path / "whole")
    for line, wanted in zip(found, plain, strict=True):
        # Adam's first steps hang on the gradients' signs, so bf16 soon has other weights and other gradients.
        for name in ("loss", "grad_norm") if precision == "fp32" or line["step"] == 1 else ("loss",):
            assert line[name] == pytest.approx(wanted[name], rel=tolerance * (3 if name == "grad_norm" else 1)), (
                name
            )
    assert run.task.model.language.decoder.rotary_emb.inv_freq.dtype == torch.float32
    finished = False
    while not finished:
        sliced = dataclasses.replace(loop, max_minutes=1e-9)
        again = trainer(tmp_path / "sliced", place, sliced, tiny_task(contrastive=False))
        finished = again.run().finished
    assert log_lines(tmp_path / "sliced") == found


def test_fp16_on_a_cpu_is_refused(tmp_path: Path, place: Place) -> None:
    if place.device.type != "cpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no fp16 on a CPU"):
        trainer(tmp_path, place, tiny_loop(precision="fp16", deepspeed=DeepSpeedConfig(1)))


def test_nothing_to_train_is_refused(tmp_path: Path, place: Place) -> None:
    task = tiny_task()
    task.module.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter is trainable"):
        trainer(tmp_path, place, tiny_loop(), task)


def test_a_missing_board_is_named_with_its_remedy(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, place, tiny_loop(logging=LoggingConfig(progress=False)))
    found = logs.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "tensorboard" else found(name, *rest)
    )
    with pytest.raises(InputError, match="TensorBoard is not installed: pip install"):
        run.run()
