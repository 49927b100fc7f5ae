"""What a vision-language judge is asked: questions that a user wrote, or that a prompt comes to.

A prompt is split by a rule of ours, for English alone; :func:`split` says it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .quotes import quoted_texts

COMBINE = ("mean", "weakest")
ANSWERED = "answered"
"""What stands beside the questions in a report: how likely yes and no are together."""
MOST = 12
"""Questions that a prompt is split into at most; each costs a forward of the judge."""

_LINE = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?(not:\s*)?(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """Something to be asked about an image.

    Attributes:
        name: as it stands in reports.
        asked: what the judge reads, a question to be answered with yes or no.
        weight: in a mean; 0 is asked and told, and does not count.
        wanted: whether yes is good.
    """

    name: str
    asked: str
    weight: float = 1.0
    wanted: bool = True


def shown(statement: str) -> str:
    """``statement`` as a question."""
    return f'Does this image show "{statement}"?'


def about(prompt: str) -> Question:
    """The one question that a prompt as a whole comes to."""
    return Question("the prompt", shown(" ".join(prompt.split())))


def parse(text: str) -> tuple[Question, ...]:
    """Questions of a field, one a line: ``[weight*] [not:] question``.

    A line that ends in a question mark is asked as it is. Any other is a statement, which the image
    is asked to show. ``not:`` wants a no. Empty lines are left out.

    Raises:
        ValueError: a line without a question, one that comes twice or is called as another value
            is, or no weight above 0.
    """
    found = tuple(_question(line.strip()) for line in text.splitlines() if line.strip())
    names = [ANSWERED, *(question.name for question in found)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"expected each question once, and none called {ANSWERED!r}, got {twice!r} again; give "
            "it a weight or other words"
        )
    if found and not any(question.weight for question in found):
        raise ValueError("expected a question with a weight above 0, got none; set a weight")
    return found


def check_combine(questions: tuple[Question, ...], combine: str) -> None:
    """Raise ValueError for a way to combine that there is not, or that has no use for weights."""
    if combine not in COMBINE:
        raise ValueError(f"expected combine {' or '.join(COMBINE)}, got {combine!r}; choose one")
    if combine == "weakest" and any(question.weight not in (0, 1) for question in questions):
        raise ValueError(
            "expected weights of 0 or 1 where the weakest answer counts, got others; take 'mean' "
            "or leave the weights out"
        )


def _question(line: str) -> Question:
    weight, inverted, text = _LINE.fullmatch(line).groups()
    if not text:
        raise ValueError(
            f"expected [weight*] [not:] question in a line, got {line!r}; write what is to be asked"
        )
    number = 1.0 if weight is None else float(weight)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite weight, got {weight!r}; lower it")
    asked = text if text.endswith(("?", "\uff1f")) else shown(text)
    return Question(f"not: {text}" if inverted else text, asked, number, not inverted)


_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COLOURS = (
    "red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|golden|silver|"
    "beige|turquoise|teal|cyan|magenta"
).split("|")
_DETERMINERS = ("a", "an", "one", "the", "some", "his", "her", "their", "its")
_PLACES = (
    r"(?:to|on) the (?:left|right) of|left of|right of|in front of|on top of|next to|close to|"
    "inside of|behind|beside|above|below|beneath|underneath|under|over|between|inside|near|on|in"
)
_ACTS = "holding|wearing|riding|carrying|eating|drinking|reading|chasing|watching"
_POSTURES = "sitting|standing|lying|resting|placed|hanging|floating|flying|leaning|located"
_NO_NAMES = ("it", "them", "him", "her", "which", "that", "and")
_START = "|".join((*_DETERMINERS, *_NUMBERS, r"\d+"))
_MEDIUM = re.compile(
    r"^(?:(?:a|an|the)\s+)?(?:\w+\s+)?(?:photo|photograph|picture|image|painting|drawing|"
    r"illustration|rendering|render|sketch)\s+of\s+",
    re.IGNORECASE,
)
_SAYS = r"(?:\b(?:that|which)\s+)?(?:\b(?:says|say|reads|read|saying|reading|titled|labelled)\s+)?"
_CLAUSES = re.compile(
    rf"[,;.:!?\n]+|\bwith\b|\bwhile\b|\band\b(?=\s+(?:{_START})\b)", re.IGNORECASE
)
_RELATION = re.compile(
    rf"\s+(?:(?:is|are)\s+)?(?:(?:{_POSTURES})\s+)?({_PLACES}|{_ACTS})\s+", re.IGNORECASE
)
_PHRASE = re.compile(rf"(?:({_START})\s+)?(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class _Thing:
    """A noun phrase: its number, colours and what is left as its name."""

    start: str
    colours: tuple[str, ...]
    name: str

    @property
    def is_(self) -> str:
        several = self.start in _NUMBERS or (self.start.isdigit() and int(self.start) > 1)
        bare = self.start not in ("a", "an", "one", "1") and re.search("[^s]s$", self.name)
        return "are" if several or bare else "is"

    def statements(self) -> list[str]:
        """That it is there, in its number, and of its colours."""
        if self.start in _NUMBERS or self.start.isdigit():
            there = f"exactly {self.start} {self.name}"
        elif self.start in ("a", "an", "one"):
            there = f"{'an' if self.name[0].lower() in 'aeiou' else 'a'} {self.name}"
        else:
            there = self.name
        colour = f"the {self.name} {self.is_} {' and '.join(self.colours)}"
        return [there, colour] if self.colours else [there]


def split(prompt: str) -> tuple[Question, ...]:
    """Questions that an English ``prompt`` comes to: the whole, then its parts, ``MOST`` at most.

    Quoted texts are asked for, each as such. What is left falls into clauses at punctuation,
    "with", "while", and an "and" before an article or a number. A clause with relations asks for
    the things on their sides and for each relation: of a place ("left of", "on") with the thing
    before it, of an act ("holding", "riding") with the clause's first. A thing is asked for by its
    number ("exactly two cats") or as such ("a cat"), then its colours ("the cats are white"). A
    clause with no relation that starts with neither article nor number, and has no colour, is a
    matter of style and asks nothing.
    """
    whole = about(prompt)
    texts = [text for text in quoted_texts(prompt) if text.strip()]
    found = [f'the text "{text}"' for text in texts]
    left = prompt
    for text in texts:
        left = re.sub(rf"{_SAYS}\\?[^\w\s]{re.escape(text)}\\?[^\w\s]", "", left)
    for clause in _CLAUSES.split(_MEDIUM.sub("", left.strip())):
        found += _statements(" ".join(clause.split()))
    found = [text for text in dict.fromkeys(found) if shown(text) != whole.asked]
    return (whole, *(Question(text, shown(text)) for text in found[: MOST - 1]))


def _statements(clause: str) -> list[str]:
    first, *rest = _RELATION.split(clause)
    subject = before = _thing(first)
    found = []
    for how, phrase in zip(rest[::2], rest[1::2], strict=True):
        thing = _thing(phrase)
        owner = subject if re.fullmatch(_ACTS, how, re.IGNORECASE) else before
        if thing:
            found += thing.statements()
        if thing and owner:
            found.append(f"the {owner.name} {owner.is_} {how.lower()} the {thing.name}")
        before = thing
    if subject and (found or subject.start or subject.colours):
        found = subject.statements() + found
    return found


def _thing(phrase: str) -> _Thing | None:
    """What a noun phrase names; None where nothing is left to be named."""
    start, rest = _PHRASE.fullmatch(phrase).groups()
    words = rest.split()
    colours = tuple(word.lower() for word in words if word.lower() in _COLOURS)
    name = [word for word in words if word.lower() not in _COLOURS]
    while colours and name and name[0].lower() == "and":  # "red and blue": both are taken out
        name = name[1:]
    named = name and name[0].lower() not in _NO_NAMES
    return _Thing((start or "").lower(), colours, " ".join(name)) if named else None
