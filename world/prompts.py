"""The closed language of the tiny world: what can be asked for, and which of it is held out.

Four families, as GenEval has them (arXiv 2310.11513): single object, two objects, position and
counting. Attribute binding is in all of them, since every object has a colour and a shape.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COLOURS = {
    "red": (0.92, 0.13, 0.13),
    "green": (0.13, 0.75, 0.22),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.96, 0.86, 0.14),
    "purple": (0.70, 0.25, 0.88),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FAMILIES = ("single", "two", "position", "counting")

#: Index 0 is the padding token, so that an empty prompt is a prompt of padding alone.
VOCABULARY = (
    "<pad>", "a", "and", *COUNTS, "left", "right", "of", "above", "below",
    *COLOURS, *SHAPES, *SHAPES.values(),
)  # fmt: skip

Object = tuple[str, str]
"""(colour, shape)."""


@dataclass(frozen=True)
class Composition:
    """What a prompt asks for: its objects in the order named and, with two of them, their relation.

    Counting has one entry in ``objects`` per object, all alike.
    """

    family: str
    objects: tuple[Object, ...]
    relation: str | None = None

    @property
    def prompt(self) -> str:
        first = " ".join(self.objects[0])
        if self.family == "counting":
            number = next(word for word, n in COUNTS.items() if n == len(self.objects))
            colour, shape = self.objects[0]
            return f"{number} {colour} {SHAPES[shape]}"
        if self.family == "single":
            return f"a {first}"
        return f"a {first} {self.relation or 'and'} a {' '.join(self.objects[1])}"


def tokenize(prompt: str) -> list[int]:
    """Vocabulary indices of ``prompt``'s words; an empty prompt gives none.

    Raises:
        ValueError: a word outside the world's vocabulary.
    """
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    unknown = [word for word in words if word not in VOCABULARY[1:]]
    if unknown:
        raise ValueError(
            f"expected a prompt in the words of the tiny world ({', '.join(VOCABULARY[1:])}), "
            f"got {unknown[0]!r} in {prompt!r}; ask for something like 'a red circle left of a "
            "blue square' or 'three green crosses'"
        )
    return [VOCABULARY.index(word) for word in words]


@lru_cache(maxsize=4096)
def parse(prompt: str) -> Composition:
    """The composition that ``prompt`` asks for.

    Raises:
        ValueError: the prompt is not a sentence of the world's four families.
    """
    words = [VOCABULARY[i] for i in tokenize(prompt)]
    singular = {plural: shape for shape, plural in SHAPES.items()}
    match words:
        case ["a", colour, shape] if colour in COLOURS and shape in SHAPES:
            return Composition("single", ((colour, shape),))
        case [count, colour, plural] if (
            count in COUNTS and colour in COLOURS and plural in singular
        ):
            return Composition("counting", ((colour, singular[plural]),) * COUNTS[count])
        case ["a", c1, s1, *middle, "a", c2, s2] if {c1, c2} <= COLOURS.keys() and {
            s1,
            s2,
        } <= SHAPES.keys():
            relation = " ".join(middle)
            if relation == "and":
                return Composition("two", ((c1, s1), (c2, s2)))
            if relation in RELATIONS:
                return Composition("position", ((c1, s1), (c2, s2)), relation)
    raise ValueError(
        "expected 'a COLOUR SHAPE', 'a COLOUR SHAPE and a COLOUR SHAPE', 'a COLOUR SHAPE (left of "
        f"| right of | above | below) a COLOUR SHAPE' or '(two | three | four) COLOUR SHAPES', got "
        f"{prompt!r}; colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}"
    )


def equivalents(composition: Composition) -> tuple[Composition, ...]:
    """Every wording of the same picture: 'A left of B' is 'B right of A'."""
    if composition.family in ("single", "counting"):
        return (composition,)
    relation = RELATIONS.get(composition.relation) if composition.relation else None
    swapped = Composition(composition.family, composition.objects[::-1], relation)
    return (composition, swapped)


def all_compositions(family: str) -> list[Composition]:
    """Every composition of ``family``, in a fixed order."""
    objects = list(itertools.product(COLOURS, SHAPES))
    if family == "single":
        return [Composition(family, (o,)) for o in objects]
    if family == "counting":
        return [Composition(family, (o,) * n) for n in COUNTS.values() for o in objects]
    relations = list(RELATIONS) if family == "position" else [None]
    pairs = itertools.permutations(objects, 2)
    return [Composition(family, pair, relation) for pair in pairs for relation in relations]


#: Held-out pictures of each family: half for development, half for the test.
HELD_OUT = {"single": 6, "two": 60, "position": 200, "counting": 20}


def make_split(seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Draw the development and test halves anew: {"dev" | "test": {family: [prompt]}}.

    The lists in ``weights/prompts.json`` are the ones that count; a test holds the two equal.
    """
    split: dict[str, dict[str, list[str]]] = {"dev": {}, "test": {}}
    for family in FAMILIES:
        rng = random.Random(f"{seed} {family}")
        pool = all_compositions(family)
        rng.shuffle(pool)
        chosen: list[Composition] = []
        while len(chosen) < HELD_OUT[family]:
            candidate = pool.pop()
            if not set(equivalents(candidate)) & set(chosen):
                chosen.append(candidate)
        half = len(chosen) // 2
        split["dev"][family] = [c.prompt for c in chosen[:half]]
        split["test"][family] = [c.prompt for c in chosen[half:]]
    return split


@lru_cache(maxsize=1)
def _committed() -> dict[str, dict[str, list[str]]]:
    return json.loads((Path(__file__).parent / "weights" / "prompts.json").read_text("utf-8"))


def held_out(half: str, n: int) -> list[str]:
    """``n`` held-out prompts, the families in turn; short lists start again (the seed differs).

    Args:
        half: ``"dev"`` for tuning, ``"test"`` for reporting.
    """
    lists = _committed()[half]
    return [
        lists[family][(i // len(FAMILIES)) % len(lists[family])]
        for i, family in zip(range(n), itertools.cycle(FAMILIES), strict=False)
    ]


def training_compositions(family: str) -> list[Composition]:
    """Every composition of ``family`` of which no wording is held out."""
    held = {
        e
        for half in _committed().values()
        for prompt in half[family]
        for e in equivalents(parse(prompt))
    }
    return [c for c in all_compositions(family) if c not in held]
