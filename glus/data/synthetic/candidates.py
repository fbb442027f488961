"""All true and unambiguous claims about a scene.

A claim is kept only if every object of the scene either plainly fits the whole phrase or plainly does not, and
if the phrase cannot be answered without its last part: a motion or relation always has a look-alike that fits
the noun but not the claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from glus.data.synthetic import relations
from glus.data.synthetic.facts import FALSE, TRUE, UNSURE, Facts
from glus.data.synthetic.language import KINDS, Noun
from glus.data.synthetic.predicates import HEADINGS, SOLO, spins
from glus.data.synthetic.relations import END, START
from glus.data.synthetic.scene import Thing

STATIC, RELATION, MOTION = "static", "relation", "motion"


@dataclass(frozen=True)
class Candidate:
    """One thing that can be said: `noun` + `predicate` (+ another object's noun) names exactly `targets`."""

    kind: str  # static, relation or motion
    predicate: str
    noun: Noun
    targets: tuple[int, ...]
    form: str  # how to word it: noun, superlative, placed, claim
    other: Noun | None = None
    timeless: bool = False  # a place that holds during the whole clip


@dataclass(frozen=True)
class Group:
    """The objects a noun fits."""

    noun: Noun
    members: tuple[int, ...]


def groups(things: Sequence[Thing], facts: Facts) -> list[Group]:
    """All nouns that fit at least one object and are doubtful for none, in a fixed order."""
    values = []
    for i, thing in enumerate(things):
        varying = float(facts.radius[i].max() / facts.radius[i].min()) > 1.02
        values.append(
            dict(
                zip(
                    KINDS,
                    ("" if varying else thing.size, thing.texture, thing.colour, thing.shape),
                    strict=True,
                )
            )
        )
    out: dict[frozenset[tuple[str, str]], Group] = {}
    for index, count in itertools.product(range(len(things)), range(len(KINDS) + 1)):
        for kinds in itertools.combinations(KINDS, count):
            attributes = frozenset((kind, values[index][kind]) for kind in kinds)
            if attributes in out or ("size", "") in attributes:
                continue
            rest = [(k, v) for k, v in attributes if k != "size"]
            fits = [i for i, v in enumerate(values) if all(v[kind] == value for kind, value in rest)]
            if "size" in kinds:
                if any(values[i]["size"] == "" for i in fits):
                    continue  # is a growing circle a big one?
                fits = [i for i in fits if ("size", values[i]["size"]) in attributes]
            out[attributes] = Group(Noun(attributes), tuple(fits))
    return list(out.values())


def _targets(group: Sequence[int], verdicts: Sequence[int]) -> tuple[int, ...] | None:
    """The members a claim is true of, if it is doubtful for none and false for some."""
    if UNSURE in verdicts or TRUE not in verdicts or FALSE not in verdicts:
        return None
    return tuple(i for i, v in zip(group, verdicts, strict=True) if v == TRUE)


class Survey:
    """Collects the candidates of one scene."""

    def __init__(self, things: Sequence[Thing], facts: Facts) -> None:
        self.things, self.facts = things, facts
        self.everyone = range(len(things))
        self.found: list[Candidate] = []
        self.groups = groups(things, facts)
        self.several = [g for g in self.groups if len(g.members) > 1]
        self.unique: dict[int, list[Noun]] = {i: [] for i in self.everyone}
        for group in self.groups:
            # The second object of a sentence is named by its looks, two words or so, with its shape.
            attributes = dict(group.noun.attributes)
            if len(group.members) == 1 and "shape" in attributes and len(attributes) <= 3:
                self.unique[group.members[0]].append(group.noun)

    def run(self) -> list[Candidate]:
        self._static()
        self._solo()
        self._rankings()
        self._versus()
        self._together()
        self._places()
        self._nearest()
        return self.found

    def _add(
        self,
        kind: str,
        predicate: str,
        group: Group,
        targets: tuple[int, ...] | None,
        form: str,
        others: Sequence[Noun | None] = (None,),
        timeless: bool = False,
    ) -> None:
        if targets is not None:
            self.found += [Candidate(kind, predicate, group.noun, targets, form, o, timeless) for o in others]

    def _static(self) -> None:
        for group in self.groups:
            if group.noun.attributes and len(group.members) < len(self.things):
                self._add(STATIC, "looks", group, group.members, "noun")
        for group in self.several:
            for name, rank in (("biggest", relations.biggest), ("smallest", relations.smallest)):
                targets = _targets(group.members, rank(self.facts, group.members))
                self._add(STATIC, name, group, targets, "superlative")

    def _solo(self) -> None:
        table = {name: [judge(track) for track in self.facts.tracks] for name, judge in SOLO.items()}
        table["spins"] = [spins(self.facts, i, t.shape, t.texture) for i, t in enumerate(self.things)]
        for name, verdicts in table.items():
            if TRUE in verdicts:
                for group in self.several:
                    targets = _targets(group.members, [verdicts[i] for i in group.members])
                    self._add(MOTION, name, group, targets, "claim")

    def _rankings(self) -> None:
        for name, rank in relations.RANKINGS.items():
            for group in self.several:
                targets = _targets(group.members, rank(self.facts, group.members))
                self._add(MOTION, name, group, targets, "claim")
        for side in HEADINGS:
            for group in self.several:
                targets = _targets(group.members, relations.outermost(side, START)(self.facts, group.members))
                self._add(RELATION, f"outermost_{side}", group, targets, "superlative")

    def _versus(self) -> None:
        for name, judge in relations.VERSUS.items():
            for other, nouns in self.unique.items():
                if not nouns:
                    continue
                verdicts = {i: judge(self.facts, i, other) for i in self.everyone if i != other}
                if TRUE in verdicts.values():
                    self._against(MOTION, name, other, verdicts, "claim")

    def _against(
        self,
        kind: str,
        name: str,
        other: int,
        verdicts: dict[int, int],
        form: str,
        timeless: bool = False,
        unlike: dict[int, int] | None = None,
    ) -> None:
        """Claims with a second object; unlike: verdicts that must not give the same answer."""
        for group in self.several:
            members = [i for i in group.members if i != other]
            targets = _targets(members, [verdicts[i] for i in members])
            if targets is None or (unlike and targets == _targets(members, [unlike[i] for i in members])):
                continue
            self._add(kind, name, group, targets, form, self.unique[other], timeless)

    def _together(self) -> None:
        verdicts = {
            (i, j): relations.together(self.facts, i, j) for i, j in itertools.combinations(self.everyone, 2)
        }
        for group in self.several:
            pairs = list(itertools.combinations(group.members, 2))
            true = [pair for pair in pairs if verdicts[pair] == TRUE]
            if len(true) == 1 and len(pairs) > 1 and all(verdicts[p] != UNSURE for p in pairs):
                self._add(MOTION, "together", group, true[0], "claim")

    def _places(self) -> None:
        facts = self.facts
        for side in HEADINGS:
            judge = relations.on_side(side, START)
            start = {i: judge(facts, i) for i in self.everyone}
            judge = relations.on_side(side, END)
            end = {i: judge(facts, i) for i in self.everyone}
            for group in self.several:
                at_start, at_end = (_targets(group.members, [v[i] for i in group.members]) for v in (start, end))
                self._add(RELATION, f"on_{side}", group, at_start, "placed", timeless=False)
                if at_end != at_start and at_end is not None:
                    self._add(MOTION, f"ends_on_{side}", group, at_end, "claim")
            for other in self.everyone:
                self._beside(side, other)

    def _beside(self, side: str, other: int) -> None:
        facts = self.facts
        verdicts = []
        for frame in (START, END):
            judge = relations.beside(side, frame)
            there = relations.present(facts, other, frame)
            verdicts.append(
                {i: judge(facts, i, other) if there == TRUE else UNSURE for i in self.everyone if i != other}
            )
        start, end = verdicts
        always = facts.inside.min() >= 0.95 and all(self._holds(side, i, other, v) for i, v in start.items())
        self._against(RELATION, f"{side}_of", other, start, "placed", timeless=bool(always))
        self._against(MOTION, f"ends_{side}_of", other, end, "claim", unlike=start)

    def _holds(self, side: str, i: int, other: int, value: int) -> bool:
        frames = range(0, self.facts.frames, 2)
        return all(relations.beside(side, t)(self.facts, i, other) == value for t in frames)

    def _nearest(self) -> None:
        for other in self.everyone:
            for group in self.several:
                members = [i for i in group.members if i != other]
                if len(members) < 2:
                    continue
                answers = []
                for frame in (START, END):
                    there = relations.present(self.facts, other, frame) == TRUE
                    ranked = relations.nearest(frame)(self.facts, members, other)
                    answers.append(_targets(members, ranked) if there else None)
                self._add(RELATION, "nearest", group, answers[0], "placed", self.unique[other])
                if answers[0] != answers[1]:
                    self._add(MOTION, "nearest_end", group, answers[1], "claim", self.unique[other])


def survey(things: Sequence[Thing], facts: Facts) -> list[Candidate]:
    """Every candidate sentence of a scene, in a fixed order."""
    return Survey(things, facts).run()
