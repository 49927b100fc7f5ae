"""Prompts, the split, and the drawing."""

import json
import random

import pytest

from flow_ttrl.world import prompts as language
from flow_ttrl.world.bundle import FOLDER
from flow_ttrl.world.draw import IMAGE_SIZE, draw
from flow_ttrl.world.encoder import MAX_TOKENS, encode_prompts


@pytest.mark.parametrize("family", language.FAMILIES)
def test_every_sentence_parses_back(family):
    for composition in language.all_compositions(family):
        assert language.parse(composition.prompt) == composition


def test_committed_split_is_the_seed_s():
    committed = json.loads((FOLDER / "prompts.json").read_text("utf-8"))
    assert committed == language.make_split()


def test_halves_and_training_share_no_picture():
    split = language.make_split()
    for family in language.FAMILIES:
        pictures = {
            half: {
                meaning
                for prompt in split[half][family]
                for meaning in language.equivalents(language.parse(prompt))
            }
            for half in ("dev", "test")
        }
        trained = set(language.training_compositions(family))
        assert not pictures["dev"] & pictures["test"]
        assert not trained & (pictures["dev"] | pictures["test"])
        everything = set(language.all_compositions(family))
        assert trained | pictures["dev"] | pictures["test"] == everything


def test_held_out_takes_the_families_in_turn():
    prompts = language.held_out("test", 200)
    families = [language.parse(prompt).family for prompt in prompts]
    assert families == list(language.FAMILIES) * 50


@pytest.mark.parametrize("bad", ["a cat", "red circle a", "two red circle", "a red circle beside"])
def test_sentences_of_another_language_are_refused(bad):
    with pytest.raises(ValueError, match="expected .*got"):
        language.parse(bad)


def test_empty_prompt_encodes_to_padding():
    features, pooled = encode_prompts(["", "a red circle"])
    assert features.shape == (2, MAX_TOKENS, features.shape[-1])
    assert pooled[0].abs().sum() == 0
    assert not features[0].equal(features[1])


def test_word_order_shows_in_the_features():
    one, other = encode_prompts(
        ["a red circle and a blue square", "a blue circle and a red square"]
    )[0]
    assert not one.equal(other)


def test_drawing_is_fixed_by_its_generator():
    composition = language.parse("three red crosses")
    one, same, other = (draw(composition, random.Random(seed)) for seed in (1, 1, 2))
    assert one.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert one.equal(same)
    assert not one.equal(other)
    assert 0 <= one.min() and one.max() <= 1
