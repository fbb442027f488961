"""The whole of it learns: the trainer drives four generated clips, each with a sentence, to a J&F above 95."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny import tiny_config
from tiny_text import tiny_tokenizer

from glus.api import GLUS
from glus.config import Behaviour, InferenceConfig
from glus.data.sampling import ClipSample
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.video import generate_video
from glus.modeling.pretrained import fresh_model
from glus.training.batches import TrainingSet
from glus.training.config import DeepSpeedConfig, LoggingConfig, LoopConfig, OptimizerConfig, loop_identity
from glus.training.forward import TrainingSample
from glus.training.launch import Place
from glus.training.task import GlusTask
from glus.training.trainer import Trainer
from glus.training.validation import HeldOut, SegmentationValidator
from glus.video import open_frames

CLIPS, FRAMES, SIDE = 4, 3, 64
STEPS = 500


def clip(index: int) -> ClipSample:
    """Three frames of a generated video, and the sentence about its largest object."""
    video = generate_video(7, index, SyntheticConfig(width=SIDE, height=SIDE, frames=9))
    sentence = max(video.sentences, key=lambda one: video.target(one).sum())
    frames = video.frames[::3]
    return ClipSample(
        dataset="synthetic",
        video=f"7-{index}",
        exp_ids=("0",),
        texts=(sentence.text,),
        context=(frames[1],),
        query=tuple(frames),
        masks=video.target(sentence)[None, ::3].astype(np.uint8),
        frames=tuple(f"{i:05d}" for i in range(FRAMES)),
    )


class Clips:
    """The same clips over and over; question and answer templates vary."""

    def __init__(self, glus: GLUS, clips: list[ClipSample]) -> None:
        self.inputs = TrainingSet(None, glus.tokenizer, glus.config, 0)  # type: ignore[arg-type]
        self.clips = clips

    def __getitem__(self, number: int) -> TrainingSample:
        rng = np.random.default_rng([0, number])
        return self.inputs.sample(self.clips[number % CLIPS], rng)


def overfit(log_dir: Path, place: Place, steps: int = STEPS, lr: float = 2e-3, every: int = 0) -> Any:
    """Train a new model of 0.3 million weights on the clips, all of it, and validate at the end."""
    behaviour = Behaviour(answer_trailing_space=False, stability_fallback=False, clip_view="squash")
    tokenizer = tiny_tokenizer()
    glus = GLUS(fresh_model(tiny_config(behaviour=behaviour), tokenizer, seed=0), tokenizer)
    clips = [clip(index) for index in range(CLIPS)]
    loop = LoopConfig(
        steps=steps,
        batch_size=CLIPS,
        grad_accumulation_steps=1,
        workers=0,
        precision="fp32",
        validate_every=every or steps,
        optimizer=OptimizerConfig(lr=lr, warmup_steps=20, decay="cosine", final=0.02),
        deepspeed=DeepSpeedConfig(stage=0),
        logging=LoggingConfig(every=10, tensorboard=False, progress=False),
    )
    videos = [lambda one=one: HeldOut(open_frames(np.stack(one.query)), one.texts, one.masks > 0) for one in clips]
    inference = InferenceConfig(context_frames=1, query_frames=FRAMES, mem_stride=1)
    validator = SegmentationValidator(videos, tokenizer, inference, pictures=0)
    task = GlusTask(glus.model, Clips(glus, clips))
    about = {"model": glus.config.to_dict(), "config": {}}
    return Trainer(task, loop, place, log_dir, loop_identity(loop), about, validator).run()


def test_four_clips_are_learned_by_heart(tmp_path: Path, place: Place) -> None:
    """From nothing, in a few minutes on one core; measured by the inference engine and the evaluators' J and F."""
    result = overfit(tmp_path, place)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["failed"] == 0
    assert result.best is not None
    assert result.best.score > 0.95, last
