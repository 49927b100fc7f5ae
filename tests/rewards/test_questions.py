"""Questions as users write them, and as a prompt comes to them."""

import pytest

from flow_ttrl.rewards.questions import MOST, Question, about, parse, split

WHOLE = "the prompt"


def test_a_question_is_asked_as_it_is_and_a_statement_turned_into_one():
    assert parse("Is the cup left of the book?\n2 cats") == (
        Question("Is the cup left of the book?", "Is the cup left of the book?"),
        Question("2 cats", 'Does this image show "2 cats"?'),
    )


@pytest.mark.parametrize(
    ("line", "weight", "wanted", "name"),
    [
        ("2* two cats", 2.0, True, "two cats"),
        (".5*two cats", 0.5, True, "two cats"),
        ("0 * two cats", 0.0, True, "two cats"),
        ("not: two cats", 1.0, False, "not: two cats"),
        ("3* NOT:two cats", 3.0, False, "not: two cats"),
        ("2 cats * 3", 1.0, True, "2 cats * 3"),
        ("nothing: at all", 1.0, True, "nothing: at all"),
    ],
)
def test_weights_and_negation(line, weight, wanted, name):
    (found, _) = parse(f"{line}\n\n   \n is it day?")
    assert (found.weight, found.wanted, found.name) == (weight, wanted, name)
    assert "*" not in found.asked or "* 3" in found.asked


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2*", "write what is to be asked"),
        ("not:", "write what is to be asked"),
        ("a cat\na dog\na cat", "each question once, and none called 'answered', got 'a cat'"),
        ("answered", "got 'answered' again"),
        ("0* a cat", "a weight above 0"),
        (f"{'9' * 400}* a cat", "finite weight"),
    ],
)
def test_lines_that_cannot_be_asked(text, told):
    with pytest.raises(ValueError, match=told.replace("*", r"\*")):
        parse(text)


def test_no_lines_are_no_questions():
    assert parse("\n  \n") == ()


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", []),
        (
            "a red circle left of a blue square",
            ["a circle", "the circle is red", "a square", "the square is blue"]
            + ["the circle is left of the square"],
        ),
        (
            "a photo of two white cats and an orange dog, cinematic lighting, 8k",
            ["exactly two cats", "the cats are white", "a dog", "the dog is orange"],
        ),
        (
            'A neon sign that says "OPEN" above a door.',
            ['the text "OPEN"', "a neon sign", "a door", "the neon sign is above the door"],
        ),
        (
            "“Café” and “Bar” on 3 black signs",
            ['the text "Café"', 'the text "Bar"', "exactly 3 signs", "the signs are black"],
        ),
        (
            'a »KAFFEE« sign beside a 12" pizza box, 「営業中」 in neon',
            ['the text "KAFFEE"', 'the text "営業中"', "a sign", 'a 12" pizza box']
            + ['the sign is beside the 12" pizza box'],
        ),
        (
            "a man wearing a black hat is riding a horse",
            ["a man", "a hat", "the hat is black", "the man is wearing the hat", "a horse"]
            + ["the man is riding the horse"],
        ),
        (
            "cats sitting on a sofa in a room",
            ["cats", "a sofa", "the cats are on the sofa", "a room", "the sofa is in the room"],
        ),
        ("a red and blue ball", ["a ball", "the ball is red and blue"]),
        ("a cup of coffee with a spoon", ["a cup of coffee", "a spoon"]),
        ("dramatic light, in the style of Monet, masterpiece", []),
        ("a sign with the text written on it", ["a sign", "text written"]),
        ("一只红色的猫", []),
    ],
)
def test_a_prompt_comes_to_its_parts(prompt, parts):
    whole, *found = split(prompt)
    assert whole == about(prompt)
    assert whole.name == WHOLE
    assert [question.name for question in found] == parts
    assert all(q.asked == f'Does this image show "{q.name}"?' for q in found)


def test_a_long_prompt_comes_to_no_more_than_the_most():
    prompt = ", ".join(f"a red thing{number}" for number in range(30))
    assert len(split(prompt)) == MOST
