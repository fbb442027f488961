"""Words: noun phrases from attributes, verb phrases from claims, and how they inflect."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glus.data.synthetic.dice import Dice

KINDS = ("size", "texture", "colour", "shape")  # order of the words in a noun phrase
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
_SYNONYMS = {"big": ("big", "large"), "small": ("small", "little"), "dotted": ("dotted", "spotted")}
_NOUNS = ("object", "object", "one", "shape", "thing")
_DOUBLED = ("stop", "hop", "spin", "run", "begin", "get", "hit", "travel")

# Claim -> verb phrases. A word in braces is a verb to inflect; {X} is the second object. Phrases that start with
# "~" have no participle ("moving"), only the relative clause ("that moves").
_SIDE_VERBS = ("{move} SIDE", "{go} SIDE", "{head} SIDE", "{travel} SIDE", "{move} SIDEWARDS")
_SIDEWARDS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
_EDGE_WORDS = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_FROM_WORDS = {"left": "the left", "right": "the right", "top": "the top", "bottom": "the bottom"}


_PLAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "rests": (
        "{stay} still",
        "{stay} in place",
        "~{do} not move",
        "~never {move!}",
        "{stand} still the whole time",
    ),
    "moves": ("{move}", "~{be} in motion", "~{do} not stay in place", "{move} around"),
    "stops": (
        "{stop}",
        "{come} to a stop",
        "{move} and then {stop}",
        "{stop} moving",
        "first {move} and then {rest}",
    ),
    "starts": (
        "{start} to move",
        "{start} moving later",
        "first {rest} and then {move}",
        "{begin} to move",
        "~only {start} moving after a while",
    ),
    "turns_around": (
        "{turn} around",
        "{turn} back",
        "{reverse} direction",
        "{move} away and {come} back",
    ),
    "bounces": ("{bounce} off the edge", "{hit} the edge and {bounce} back", "{bounce} off the border"),
    "hops": ("{hop}", "{jump} up and down", "{bounce} up and down", "{hop} several times"),
    "sways": ("{swing} from side to side", "{move} back and forth sideways", "{sway} left and right"),
    "circles": ("{move} in a circle", "{run} in circles", "{go} around in a circle"),
    "grows": ("{grow}", "{get} bigger", "{become} larger"),
    "shrinks": ("{shrink}", "{get} smaller", "{become} smaller"),
    "spins": ("{spin}", "{rotate}", "{turn} around itself"),
    "enters": (
        "{enter} the frame",
        "{come} into view",
        "{enter} the picture",
        "~{be} not there at first",
    ),
    "leaves": ("{leave} the frame", "{go} out of view", "{disappear}", "{leave} the picture"),
    "overtakes": (
        "{overtake} {X}",
        "{pass} {X} and {get} ahead",
        "~{be} behind {X} at first and then ahead of it",
    ),
    "follows": ("{follow} {X}", "{run} after {X}", "{move} behind {X} in the same direction"),
    "approaches": ("{move} towards {X}", "{approach} {X}", "{come} close to {X}", "{go} to {X}"),
    "departs": ("{move} away from {X}", "{go} away from {X}", "{get} farther from {X}"),
    "passes_behind": (
        "{pass} behind {X}",
        "{go} behind {X} and {come} out again",
        "{disappear} behind {X} and {reappear}",
    ),
    "passes_in_front": ("{pass} in front of {X}", "{move} across {X}", "{cover} {X} in passing"),
    "fastest": ("{move} the fastest", "~{be} the fastest", "{move} faster than the others"),
    "slowest": ("{move} the slowest", "~{be} the slowest", "{move} slower than the others"),
    "enters_first": ("{enter} first", "~{be} the first to enter", "{come} into view first"),
    "enters_last": ("{enter} last", "~{be} the last to enter", "{come} into view last"),
    "leaves_first": ("{leave} first", "~{be} the first to disappear", "{disappear} first"),
    "leaves_last": ("{leave} last", "~{be} the last to disappear", "{disappear} last"),
    "together": ("{move} together", "{move} side by side", "{travel} together"),
    "nearest_end": ("{end} up closest to {X}", "~{be} closest to {X} at the end"),
}


def _sided_phrases() -> dict[str, tuple[str, ...]]:
    """Verb phrases of the claims that name a direction or an edge."""
    table: dict[str, tuple[str, ...]] = {}
    for side, wards in _SIDEWARDS.items():
        table[f"moves_{side}"] = tuple(t.replace("SIDEWARDS", wards).replace("SIDE", side) for t in _SIDE_VERBS)
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[side]
        table[f"returns_{side}"] = (
            f"{{move}} {side} and then back {opposite}",
            f"{{go}} {side} and {{come}} back",
            f"first {{move}} {side}, then {opposite}",
        )
        for then in ("up", "down") if side in ("left", "right") else ("left", "right"):
            table[f"goes_{side}_then_{then}"] = (
                f"{{move}} {side} and then {then}",
                f"{{go}} {side}, then {then}",
                f"first {{go}} {side} and then {{turn}} {then}",
            )
        place = {"left": "left of {X}", "right": "right of {X}", "up": "above {X}", "down": "below {X}"}[side]
        table[f"ends_{side}_of"] = (
            f"{{end}} up {place}",
            f"~{{be}} {place} at the end",
            f"{{finish}} {place}",
        )
        part = {
            "left": "on the left",
            "right": "on the right",
            "up": "in the upper part",
            "down": "in the lower part",
        }
        table[f"ends_on_{side}"] = (f"{{end}} up {part[side]}", f"~{{be}} {part[side]} at the end")
    for edge, words in _EDGE_WORDS.items():
        origin = _FROM_WORDS[edge]
        table[f"enters_{edge}"] = (
            f"{{enter}} from {origin}",
            f"{{come}} in from {origin}",
            f"{{enter}} the frame {words}",
        )
        table[f"leaves_{edge}"] = (
            f"{{leave}} {words}",
            f"{{leave}} the frame {words}",
            f"{{go}} out {words}",
        )
    return table


VERB_PHRASES = _PLAIN_PHRASES | _sided_phrases()

_WHEN = ("at the start", "at the beginning", "in the first frame", "initially")
PLACES: dict[str, tuple[str, ...]] = {
    "left_of": ("left of {X}", "to the left of {X}", "on the left of {X}"),
    "right_of": ("right of {X}", "to the right of {X}", "on the right of {X}"),
    "up_of": ("above {X}",),
    "down_of": ("below {X}",),
    "nearest": ("closest to {X}", "nearest to {X}"),
    "on_left": ("on the left", "on the left side"),
    "on_right": ("on the right", "on the right side"),
    "on_up": ("in the upper part", "at the top"),
    "on_down": ("in the lower part", "at the bottom"),
}
SUPERLATIVES: dict[str, tuple[str, ...]] = {
    "biggest": ("biggest", "largest"),
    "smallest": ("smallest",),
    "outermost_left": ("leftmost",),
    "outermost_right": ("rightmost",),
    "outermost_up": ("topmost", "highest"),
    "outermost_down": ("bottommost", "lowest"),
}


@dataclass(frozen=True)
class Noun:
    """Attributes that a noun phrase names: (kind, value) pairs."""

    attributes: frozenset[tuple[str, str]]

    def text(self, dice: Dice, count: int = 1, superlative: str = "") -> str:
        """Without an article; plural from a count of 2 on."""
        values = dict(self.attributes)
        words = [dice.pick(_SYNONYMS.get(values[k], (values[k],))) for k in KINDS[:3] if k in values]
        noun = values.get("shape") or dice.pick(_NOUNS)
        noun = "object" if noun == "one" and count > 1 and not words else noun  # not "the two ones"
        return " ".join(w for w in (superlative, *words, plural(noun) if count > 1 else noun) if w)


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _third_person(verb: str) -> str:
    if verb == "be":
        return "is"
    return verb + ("es" if verb.endswith(("s", "x", "ch", "sh", "o")) else "s")


def _participle(verb: str) -> str:
    if verb == "be":
        return "being"
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") else verb) + "ing"


def inflect(phrase: str, form: str) -> str:
    """Put the verbs of a phrase into `form`: "singular", "plural" or "participle"; {X} stays."""

    def one(match: re.Match[str]) -> str:
        verb = match.group(1)
        if form == "singular":
            return _third_person(verb.rstrip("!"))
        if form == "participle":
            return _participle(verb.rstrip("!"))
        return "are" if verb == "be" else verb.rstrip("!")

    return re.sub(r"\{([a-z]+!?)\}", one, phrase.removeprefix("~"))


def subject(dice: Dice, noun: Noun, count: int, all_of_them: bool) -> str:
    """The subject of a sentence with its article; all_of_them: the count may be left out."""
    text = noun.text(dice, count)
    if count == 1:
        return f"the {text}"
    if all_of_them and dice.chance(0.5):
        return dice.pick((f"all the {text}", f"the {text}"))
    return f"the {NUMBERS[count]} {text}"


def claim(dice: Dice, who: str, predicate: str, count: int, other: str = "") -> str:
    """ "the red circle" + stops -> "the red circle that stops" or "the red circle stopping"."""
    phrase = dice.pick(VERB_PHRASES[predicate])
    if not phrase.startswith("~") and dice.chance(0.35):
        return f"{who} {inflect(phrase, 'participle')}".replace("{X}", other)
    verb = inflect(phrase, "singular" if count == 1 else "plural")
    return f"{who} {dice.pick(('that', 'that', 'which'))} {verb}".replace("{X}", other)


def placed(dice: Dice, who: str, predicate: str, count: int, other: str = "", timeless: bool = False) -> str:
    """ "the circle" + left_of -> "the circle left of the square at the start"; timeless: it always holds."""
    place = dice.pick(PLACES[predicate]).replace("{X}", other)
    link = dice.pick(("", "", f"that {'is' if count == 1 else 'are'} "))
    return f"{who} {link}{place}" if timeless else f"{who} {link}{place} {dice.pick(_WHEN)}"


def superlative(dice: Dice, noun: Noun, predicate: str, at_start: bool) -> str:
    """ "the biggest circle", "the leftmost circle at the start"."""
    text = f"the {noun.text(dice, superlative=dice.pick(SUPERLATIVES[predicate]))}"
    return f"{text} {dice.pick(_WHEN)}" if at_start else text
