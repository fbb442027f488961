"""The splice of images into text, against a slow plain one (reference glus.md 1.4, 1.5; D25, D49, D50)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from tiny import EXPRESSIONS, tiny_config, tiny_glus, tiny_tokenizer

from glus.modeling.assemble import assemble, plan_layout
from glus.text.labels import IGNORE_INDEX, label_conversation
from glus.text.prompts import training_prompt, window_prompt
from glus.text.tokenizer import IMAGE_INDEX

SEG = 11
VOCABULARY, WIDTH, PER_IMAGE = 20, 3, 5


@dataclass
class Plain:
    """One row, spliced token by token."""

    vectors: list[torch.Tensor]
    labels: list[int]
    seg_columns: list[int]


def splice(
    ids: list[int], labels: list[int], images: list[torch.Tensor], embedding: torch.nn.Embedding, seg_id: int
) -> Plain:
    plain = Plain([], [], [])
    for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if token == IMAGE_INDEX:
            image = images.pop(0)
            plain.vectors.extend(image)
            plain.labels.extend([IGNORE_INDEX] * len(image))
            continue
        if token == seg_id and index > 0:
            plain.seg_columns.append(len(plain.vectors) - 1)
        plain.vectors.append(embedding.weight[token])
        plain.labels.append(label)
    return plain


def random_rows(seed: int) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 4)):
        tokens = [*range(VOCABULARY), SEG, SEG, SEG, IMAGE_INDEX, IMAGE_INDEX, IMAGE_INDEX]
        rows.append([rng.choice(tokens) for _ in range(rng.randint(1, 25))])
    return rows, [[rng.choice([IGNORE_INDEX, i]) for i in row] for row in rows]


@pytest.mark.parametrize("seed", range(30))
@torch.inference_mode()
def test_random_batches_equal_the_plain_splice(seed: int) -> None:
    torch.manual_seed(seed)
    rows, labels = random_rows(seed)
    embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
    count = sum(row.count(IMAGE_INDEX) for row in rows)
    images = torch.randn(count, PER_IMAGE, WIDTH)
    batch = assemble(rows, images, embedding, SEG, labels)
    queue = list(images)
    plain = [splice(ids, label, queue, embedding, SEG) for ids, label in zip(rows, labels, strict=True)]
    assert not queue
    longest = max(len(row.vectors) for row in plain)
    assert batch.embeddings.shape == (len(rows), longest, WIDTH)
    assert batch.layout.lengths == [len(row.vectors) for row in plain]
    assert batch.layout.seg_counts == [len(row.seg_columns) for row in plain]
    assert batch.layout.seg_columns == [column for row in plain for column in row.seg_columns]
    assert batch.layout.seg_rows == [number for number, row in enumerate(plain) for _ in row.seg_columns]
    assert batch.labels is not None
    for number, row in enumerate(plain):
        length = len(row.vectors)
        assert torch.equal(batch.embeddings[number, :length], torch.stack(row.vectors))
        assert not batch.embeddings[number, length:].any()
        # D50: real positions and padding are where they are, not at the front.
        assert batch.attention_mask[number].tolist() == [True] * length + [False] * (longest - length)
        assert batch.labels[number].tolist() == row.labels + [IGNORE_INDEX] * (longest - length)


def test_seg_is_read_at_the_state_that_predicts_it() -> None:
    """With c context images and one query image per round, the k-th [SEG] sits at p - 1 + (n - 1)(c + k)."""
    tokenizer = tiny_tokenizer()
    for rounds in (1, 2, 4):
        ids = [*tokenizer.encode_with_images(window_prompt(EXPRESSIONS[0], rounds, 4)), tokenizer.seg_id]
        plan = plan_layout([ids], 64, tokenizer.seg_id)
        spots = [p for p, token in enumerate(ids) if token == tokenizer.seg_id]
        assert plan.seg_columns == [p - 1 + 63 * (4 + k) for k, p in enumerate(spots, start=1)]
        assert len(spots) == rounds
        # At inference [SEG] is not yet there: its state is that of the last prompt token.
        assert plan.seg_columns[-1] == plan_layout([ids[:-1]], 64, tokenizer.seg_id).lengths[0] - 1


def test_seg_at_the_very_start_has_no_predecessor() -> None:
    assert plan_layout([[SEG, 1, SEG]], 4, SEG).seg_columns == [1]


def test_training_labels_survive_the_splice() -> None:
    """D49: in the spliced row each label still stands at its own token, for every answer template."""
    tokenizer = tiny_tokenizer()
    prompts = [training_prompt(text, [0, 1], [answer, 4], 4) for text in EXPRESSIONS for answer in range(5)]
    rows, labels = zip(*(label_conversation(prompt, tokenizer) for prompt in prompts), strict=True)
    images = torch.zeros(6 * len(rows), 4, 8)
    embedding = torch.nn.Embedding(len(tokenizer), 8)
    batch = assemble(rows, images, embedding, tokenizer.seg_id, labels)
    assert batch.labels is not None
    for number, row in enumerate(rows):
        length = batch.layout.lengths[number]
        spliced = batch.embeddings[number, :length]
        text_labels = [int(label) for label in batch.labels[number] if label != IGNORE_INDEX]
        assert text_labels.count(tokenizer.seg_id) == row.count(tokenizer.seg_id) == 2
        for column, label in enumerate(batch.labels[number, :length].tolist()):
            if label != IGNORE_INDEX:
                assert torch.equal(spliced[column], embedding.weight[label])


@pytest.mark.parametrize(
    ("rows", "images", "labels", "limit", "words"),
    [
        ([[1, IMAGE_INDEX]], 0, None, None, "1 image placeholders but 0 images"),
        ([[1, 2]], 2, None, None, "0 image placeholders but 2 images"),
        ([[1, 2]], 0, [[1]], None, "as long as their rows"),
        ([[1, 2], [3]], 0, [[1], [1, 2]], None, "as long as their rows"),
        ([[1, IMAGE_INDEX, 2]], 1, None, 6, "takes 7 positions, the model has 6"),
    ],
)
def test_what_does_not_fit_is_refused(
    rows: list[list[int]], images: int, labels: list[list[int]] | None, limit: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        assemble(rows, torch.zeros(images, PER_IMAGE, WIDTH), torch.nn.Embedding(20, WIDTH), SEG, labels, limit)


def test_exactly_the_limit_fits() -> None:
    """D25: 2048 positions of the spliced row count, not 512 ids."""
    rows = [[1, IMAGE_INDEX, 2]]
    batch = assemble(rows, torch.zeros(1, PER_IMAGE, WIDTH), torch.nn.Embedding(20, WIDTH), SEG, max_positions=7)
    assert batch.layout.lengths == [7]
    long = assemble([[1] * 600], torch.zeros(0, 1, WIDTH), torch.nn.Embedding(20, WIDTH), SEG, max_positions=2048)
    assert long.layout.lengths == [600]


def test_gradients_reach_text_and_images() -> None:
    embedding = torch.nn.Embedding(20, WIDTH)
    images = torch.randn(1, PER_IMAGE, WIDTH, requires_grad=True)
    assemble([[1, IMAGE_INDEX, 2], [4]], images, embedding, SEG).embeddings.sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.ones_like(images))
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.sum(1).nonzero().flatten().tolist() == [1, 2, 4]


@torch.inference_mode()
def test_a_padded_batch_reads_what_each_row_reads_alone() -> None:
    """Rows of different length share a batch without seeing each other or the padding."""
    glus = tiny_glus()
    model, tokenizer = glus.model, glus.tokenizer
    prompts = [window_prompt(text, rounds, 2) for text, rounds in zip(EXPRESSIONS, (1, 3, 2), strict=True)]
    rows = [tokenizer.encode_with_images(prompt) for prompt in prompts]
    counts = [row.count(IMAGE_INDEX) for row in rows]
    tokens = torch.randn(sum(counts), model.config.vision.tokens_per_image, 32)
    together = model.read_window(rows, tokens)
    batch = model.assemble(rows, tokens)
    assert len(set(batch.layout.lengths)) == 3
    states = model.states(batch)
    for number, (row, part) in enumerate(zip(rows, tokens.split(counts), strict=True)):
        alone = model.read_window([row], part)
        torch.testing.assert_close(together.hidden[number], alone.hidden[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(together.logits[number], alone.logits[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(together.embedding[number], alone.embedding[0], atol=1e-4, rtol=1e-4)
        length = batch.layout.lengths[number]
        single = model.states(model.assemble([row], part))[0]
        torch.testing.assert_close(states[number, :length], single, atol=2e-5, rtol=1e-4)


def test_the_config_limits_the_window() -> None:
    glus = tiny_glus(tiny_config())
    limit = glus.config.language.max_positions
    with pytest.raises(ValueError, match=f"the model has {limit}"):
        glus.model.assemble([[1] * (limit + 1)], torch.zeros(0, 4, 32))


def test_splicing_never_waits_for_the_device() -> None:
    """D23: a meta tensor has no values, so any look at one from the host would raise."""
    embedding = torch.nn.Embedding(40, 8, device="meta")
    rows = [[1, IMAGE_INDEX, 5, 39, 6], [1, 7, IMAGE_INDEX, 39]]
    labels = [[-100] * 3 + [39, 6], [-100] * 3 + [39]]
    batch = assemble(rows, torch.zeros(2, 4, 8, device="meta"), embedding, 39, labels)
    assert batch.embeddings.shape == (2, 8, 8)
    assert batch.layout.seg_columns == [5, 5]
