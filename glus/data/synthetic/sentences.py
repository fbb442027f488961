"""From candidate claims to the sentences of a video: a varied choice, put into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from glus.data.synthetic import language
from glus.data.synthetic.candidates import MOTION, RELATION, STATIC, Candidate
from glus.data.synthetic.config import SyntheticConfig
from glus.data.synthetic.dice import Dice
from glus.data.synthetic.language import KINDS, PLACES, SUPERLATIVES, VERB_PHRASES, Noun
from glus.data.synthetic.scene import Thing
from glus.data.synthetic.shapes import COLOURS, SHAPES, SIZES, TEXTURES

_SHARES = ((MOTION, 0.56), (RELATION, 0.22), (STATIC, 0.22))
_PER_PREDICATE = 2


@dataclass(frozen=True)
class Sentence:
    """A referring expression. kind: static, relation or motion; predicate: the claim it makes; targets: the
    indices of the objects it names, ascending; noun: their looks as far as said; other: those of a second object
    it speaks of."""

    text: str
    kind: str
    predicate: str
    targets: tuple[int, ...]
    noun: Noun = field(repr=False)
    other: Noun | None = field(repr=False)


def word(dice: Dice, candidate: Candidate) -> str:
    """One wording of a candidate."""
    count = len(candidate.targets)
    if candidate.form == "superlative":
        return language.superlative(dice, candidate.noun, candidate.predicate, candidate.kind == RELATION)
    # "the circles" may stand for "the two circles" only where no claim singles out some of the circles.
    who = language.subject(dice, candidate.noun, count, candidate.form == "noun")
    if candidate.form == "noun":
        return who
    other = f"the {candidate.other.text(dice)}" if candidate.other else ""
    if candidate.form == "placed":
        return language.placed(dice, who, candidate.predicate, count, other, candidate.timeless)
    return language.claim(dice, who, candidate.predicate, count, other)


def _weight(candidate: Candidate, used: Counter[int]) -> float:
    fresh = 1.0 / (1 + sum(used[i] for i in candidate.targets)) ** 2
    words = len(candidate.noun.attributes)
    plain_words = sum(1 for kind, value in candidate.noun.attributes if value == "plain")
    brief = {STATIC: (0, 1.0, 1.5, 0.8, 0.2), MOTION: (0.5, 1.2, 1.2, 0.5, 0.1)}
    length = brief.get(candidate.kind, brief[MOTION])[words]
    return fresh * length * (0.3 if plain_words else 1.0) * (0.6 if len(candidate.targets) > 1 else 1.0)


def choose(config: SyntheticConfig, dice: Dice, candidates: Sequence[Candidate]) -> list[Sentence] | None:
    """Between `min_sentences` and `max_sentences` sentences, over half about motion, spread over predicates and
    objects; None when the scene has too little to say."""
    wanted = config.min_sentences + dice.below(config.max_sentences - config.min_sentences + 1)
    pool: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        pool.setdefault((candidate.kind, candidate.predicate), []).append(candidate)
    chosen: list[Sentence] = []
    texts: set[str] = set()
    said: set[tuple[str, tuple[int, ...]]] = set()
    used: Counter[int] = Counter()
    per_predicate: Counter[str] = Counter()
    shares = dict(_SHARES)
    attempts = 0
    while len(chosen) < wanted and attempts < 12 * wanted:
        attempts += 1
        count = Counter(sentence.kind for sentence in chosen)
        kind = max(shares, key=lambda k: shares[k] * (len(chosen) + 1) - count[k])
        names = [n for k, n in pool if k == kind and (per_predicate[n] < _PER_PREDICATE or n == "looks")]
        if not names:
            del shares[kind]
            if not shares:
                break
            continue
        weights = [(name, _rarity(name)) for name in names]
        options = pool[(kind, dice.weighted(weights))]
        pick = dice.weighted([(c, _weight(c, used) + 1e-9) for c in options])
        text = word(dice, pick)
        if text in texts or (pick.predicate, pick.targets) in said:
            continue
        texts.add(text)
        said.add((pick.predicate, pick.targets))
        used.update(pick.targets)
        per_predicate[pick.predicate] += 1
        chosen.append(Sentence(text, pick.kind, pick.predicate, pick.targets, pick.noun, pick.other))
    motions = sum(sentence.kind == MOTION for sentence in chosen)
    enough = len(chosen) >= config.min_sentences and 2 * motions >= config.min_sentences
    return chosen if enough else None


def _rarity(predicate: str) -> float:
    """Weight of a claim among those of its kind: what holds in nearly every scene comes less often, what a plot
    or a special movement is needed for more often."""
    if predicate.startswith("ends_"):
        return 0.15
    if predicate.startswith(("nearest", "fastest", "slowest")):
        return 0.3
    if predicate.startswith(("on_", "outermost_", "biggest", "smallest", "moves", "rests", "looks")):
        return 0.6
    return 1.5


def absent(dice: Dice, things: Sequence[Thing]) -> Sentence:
    """A sentence about an object that is not there: its looks are named, and no object of the scene has them."""
    while True:
        noun = _free_noun(dice, 0.7)
        named = [(kind, value) for kind, value in noun.attributes if kind != "size"]
        if len(named) > 1 and not any(all(getattr(t, kind) == value for kind, value in named) for t in things):
            return Sentence(language.subject(dice, noun, 1, False), STATIC, "looks", (), noun, None)


def sample_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of the generator's language about no video in particular, for training a tokenizer.

    Every word the generator can write appears with some chance; the same arguments give the same list.
    """
    dice = Dice(seed, 0x53454E54)
    return [_free_sentence(dice) for _ in range(count)]


def _free_noun(dice: Dice, chance: float = 0.5) -> Noun:
    values = zip(KINDS, (SIZES, TEXTURES, tuple(COLOURS), SHAPES), strict=True)
    return Noun(frozenset((kind, dice.pick(options)) for kind, options in values if dice.chance(chance)))


def _free_sentence(dice: Dice) -> str:
    noun, other = _free_noun(dice), _free_noun(dice, 0.6)
    form = dice.weighted((("claim", 6.0), ("placed", 2.0), ("superlative", 1.0), ("noun", 1.0)))
    table = {"claim": tuple(VERB_PHRASES), "placed": tuple(PLACES), "superlative": tuple(SUPERLATIVES)}
    predicate = dice.pick(table.get(form, ("looks",)))
    kind = RELATION if predicate.startswith("outermost") else MOTION
    count = 1 if form == "superlative" or dice.chance(0.8) else 2 + dice.below(7)
    return word(dice, Candidate(kind, predicate, noun, tuple(range(count)), form, other))


def vocabulary() -> list[str]:
    """Every word of a large fixed sample of the generator's language, sorted."""
    words = {w for sentence in sample_sentences(20000) for w in sentence.replace(",", " ").split()}
    return sorted(words)
