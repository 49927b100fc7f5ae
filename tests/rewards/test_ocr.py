"""The OCR reward: RapidOCR on rendered text, and the distance."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_ttrl.rewards import RewardMix, ocr
from flow_ttrl.rewards.ocr import OCR, edit_distance, likeness, quoted


def rendered(text: str, width: int) -> torch.Tensor:
    """Dark letters on a light ground [1, width / 2, width, 3]."""
    image = Image.new("RGB", (width, width // 2), "ivory")
    font = ImageFont.load_default(width // 8)
    ImageDraw.Draw(image).text((width // 10, width // 6), text, fill="navy", font=font)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


@pytest.fixture(scope="module")
def reward() -> OCR:
    return OCR()


@pytest.mark.parametrize("width", [256, 512, 1024])
def test_reads_what_is_written(reward, width):
    image = rendered("BAKERY 47", width)
    read = reward.engine.read((image[0] * 255).byte().numpy())
    assert " ".join(read) == "BAKERY 47"
    prompts = ['a sign "BAKERY 47"', 'a sign "bakery47"', 'a sign "BAKERY 49"', 'a "ZZZZ" sign']
    scores = reward.score(image.expand(4, -1, -1, -1), prompts)
    assert scores.tolist() == pytest.approx([1, 1, 7 / 8, 0], abs=1e-6)


def test_a_blank_image_reads_as_nothing(reward):
    blank = torch.ones(1, 256, 512, 3)
    assert reward.engine.read((blank[0] * 255).byte().numpy()) == []
    assert reward.score(blank, ['"abc"']).tolist() == [0.0]


def test_every_image_of_a_batch_is_read(reward):
    images = torch.cat([rendered("CAFE", 512), torch.ones(1, 256, 512, 3), rendered("BOOK", 512)])
    mix = RewardMix(((reward, 1.0),))
    assert mix.score(images, ['a "CAFE"']).total.tolist() == pytest.approx([1, 0, 0], abs=0.3)


def test_a_text_of_its_own_goes_before_the_prompts():
    reward = OCR(text="BAKERY")
    reward.check(["a prompt without quotes"])
    assert reward.score(rendered("BAKERY", 512), ["no quotes"]).item() == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('a sign that says "OPEN" and "CLOSED"', "OPEN"),
        ("a sign that says \u201cOPEN\u201d", "OPEN"),
        ("a sign that says \u00abOPEN\u00bb", "OPEN"),
        ("\u300c\u55b6\u696d\u4e2d\u300d", "\u55b6\u696d\u4e2d"),
        ("it's Tom's 'sign'", None),
        ('""', ""),
    ],
)
def test_quotes(prompt, expected):
    assert quoted(prompt) == expected


@pytest.mark.parametrize("prompt", ["a sign", "", "it's 'open'", 'says ""', 'says "  "'])
def test_a_prompt_without_a_text_is_refused(reward, prompt):
    with pytest.raises(ValueError, match="expected .*got"):
        RewardMix(((reward, 1.0),)).judge([prompt])


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == distance


def test_likeness():
    assert likeness("Welcome to the Open Door", "open door") == 1
    assert likeness("0PEN", "open") == 0.75
    assert likeness("something long that has nothing of it", "xyz") == 0


def test_an_engine_that_is_not_installed_says_how_to_add_it(monkeypatch):
    ocr.load_engine.cache_clear()
    monkeypatch.setattr(ocr, "installed_engines", lambda: [])
    with pytest.raises(ImportError, match="expected an OCR engine .*--no-deps rapidocr"):
        OCR()
    ocr.load_engine.cache_clear()


def test_paddleocr_downloads_nothing_of_its_own_accord(monkeypatch, tmp_path):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected PaddleOCR's models in .*got none"):
        ocr.PaddleOCREngine()
    assert "paddleocr" not in sys.modules
