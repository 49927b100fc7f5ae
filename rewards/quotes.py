"""The texts that a prompt quotes, whatever marks its language has for that."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CLOSING = {
    '"': (('"',), ("”",)),
    '\\"': (('\\"',), ()),
    "“": (("”",), ("“", '"')),  # English
    "”": (("”",), ("“",)),  # Swedish, Finnish
    "„": (("“", "”"), ('"',)),  # German; Polish
    "«": (("»",), ()),  # French, Russian
    "»": (("«", "»"), ()),  # German; Swedish
    "\u300c": (("\u300d",), ()),  # Japanese, Chinese
    "\u300e": (("\u300f",), ()),
    "\uff62": (("\uff63",), ()),
    "\ufe41": (("\ufe42",), ()),
    "\ufe43": (("\ufe44",), ()),
    "\u301d": (("\u301e", "\u301f"), ()),
    "\uff02": (("\uff02",), ()),
}
"""What closes each opening mark: in some language, or because a keyboard has no better one."""
_MARKS = {*_CLOSING, *(mark for own, more in _CLOSING.values() for mark in (*own, *more))}
_MARK = re.compile("|".join(map(re.escape, sorted(_MARKS, key=len, reverse=True))))
_INCHES = '"”'
"""Marks that also stand for inches after a number."""
_NUMBER = re.compile(r"[\d¼½¾\u2150-\u215e]\s?$")


@dataclass(frozen=True)
class _Mark:
    """A mark of a prompt, from ``start`` to ``end``; ``inches`` where it may stand for them."""

    text: str
    start: int
    end: int
    inches: bool


def quoted_texts(prompt: str) -> list[str]:
    """The texts that ``prompt`` quotes, in their order; empty ones too.

    A text is closed as its opening mark is in some language, so that »A« and »B» are both read.
    Double marks alone quote: single ones are apostrophes and feet, and a mark after a number may be
    inches. Of all ways to pair the marks, that one counts which makes the most sense of them; of
    several, the one with the shortest texts. Marks after backslashes quote where nothing
    else does; inside of others they are letters.
    """
    marks = [
        _Mark(found[0], found.start(), found.end(), _may_be_inches(prompt, found))
        for found in _MARK.finditer(prompt)
    ]
    # from the last mark to the first: what it costs to read on from it, and the pairs
    best: list[tuple[int, tuple[tuple[int, int], ...]]] = [(0, ())]
    for number in range(len(marks) - 1, -1, -1):
        left_alone = best[0][0] + 2 * (not marks[number].inches), best[0][1]
        ways = [*_closed(marks[number:], number, best), left_alone]
        best.insert(0, min(ways, key=lambda way: way[0]))
    texts = [prompt[marks[a].end : marks[b].start] for a, b in best[0][1]]
    return [text.replace('\\"', '"') for text in texts]


def _closed(marks: list[_Mark], number: int, best: list) -> list[tuple[int, tuple]]:
    """A way for each mark that may close the first of ``marks``, nearest first.

    What has no sense costs 2: a mark left alone, and one passed over that would close. Half a sense
    costs 1: an opening mark that may be inches, a closing one of a keyboard's, and one passed over
    that would open anew. Typed marks in curly ones may quote inside of them, and inches are inches.

    Args:
        number: of the first mark; ``best[k]`` is how to read on from mark ``number + 1 + k``.
    """
    opening = marks[0]
    own, stand_ins = _CLOSING.get(opening.text, ((), ()))
    ways, cost = [], int(opening.inches)
    for ahead, mark in enumerate(marks[1:], 1):
        if mark.text in own + stand_ins:
            rest, pairs = best[ahead]
            price = cost + (mark.text in stand_ins) + rest
            ways.append((price, ((number, number + ahead), *pairs)))
        inside = mark.text == '"' and '"' in stand_ins
        if not mark.inches and not inside:
            cost += 2 * (mark.text in own) or mark.text in (opening.text, *stand_ins)
    return ways


def _may_be_inches(prompt: str, found: re.Match) -> bool:
    """After a number; where a space is between, not right before a word."""
    before, after = prompt[: found.start()], prompt[found.end() :]
    if found[0] not in _INCHES or not _NUMBER.search(before):
        return False
    return not before[-1:].isspace() or not after[:1].strip()
