"""The OCR reward: every engine that is there on rendered text, the texts wanted, the likeness."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_ttrl.rewards import RewardMix, ocr
from flow_ttrl.rewards.ocr import ENGINES, OCR, edit_distance, likeness, share_right
from flow_ttrl.rewards.quotes import quoted_texts


def rendered(text: str, width: int) -> torch.Tensor:
    """Dark letters on a light ground [1, width / 2, width, 3]."""
    image = Image.new("RGB", (width, width // 2), "ivory")
    font = ImageFont.load_default(width // 8)
    ImageDraw.Draw(image).text((width // 10, width // 6), text, fill="navy", font=font)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


@pytest.fixture(scope="module", params=ENGINES)
def reward(request) -> OCR:
    """With each engine that is installed, and has its models where they are no part of it."""
    try:
        return OCR(engine=request.param)
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("width", [256, 512, 1024])
def test_reads_what_is_written(reward, width):
    image = rendered("BAKERY 47", width)
    read = reward.engine.read((image[0] * 255).byte().numpy())
    assert "".join(read).replace(" ", "") == "BAKERY47"
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


def test_all_texts_that_are_quoted_are_wanted(reward):
    both = torch.cat([rendered("KAFFEE", 512), rendered("TEE", 512)], 1)
    images = torch.cat([both, torch.cat([rendered("TEE", 512), rendered("KAFFEE", 512)], 1)])
    prompts = ["»KAFFEE« neben »TEE«", "»KAFFEE« neben »TEE«"]
    assert reward.score(images, prompts).tolist() == [1, 1]
    alone = rendered("KAFFEE", 512).expand(2, -1, -1, -1)
    assert reward.score(alone, [prompts[0], "»KAFFEE«"]).tolist() == pytest.approx([6 / 9, 1])
    assert reward.score(alone, ["»KAFFEE« »ZUG«"] * 2).tolist() == pytest.approx([6 / 9] * 2)


def test_letters_of_other_forms_are_the_same(reward):
    image = rendered("CAFE 24", 512).expand(3, -1, -1, -1)
    prompts = ['"cafe\u200b 24"', '"\uff23\uff21\uff26\uff25 \uff12\uff14"', "『CAFE 24』"]
    assert reward.score(image, prompts).tolist() == [1, 1, 1]


def test_a_text_of_its_own_goes_before_the_prompts(reward):
    reward = OCR("BAKERY", reward.engine)
    reward.check(["a prompt without quotes"])
    assert reward.score(rendered("BAKERY", 512), ["no quotes"]).item() == 1


QUOTED = [
    ('a sign that says "OPEN" and "CLOSED"', ["OPEN", "CLOSED"]),
    ("a sign that says “OPEN”", ["OPEN"]),
    ("a sign that says «OPEN» and «CLOSED»", ["OPEN", "CLOSED"]),
    ("»KAFFEE« neben »TEE«", ["KAFFEE", "TEE"]),
    ("»KAFFE» och »TE»", ["KAFFE", "TE"]),
    ("„A“ und „B“", ["A", "B"]),
    ("„A” i „B”", ["A", "B"]),
    ("”A” och ”B”", ["A", "B"]),
    ("“A“ and “B“", ["A", "B"]),
    ('“A" and “B”', ["A", "B"]),
    ('"A” and "B”', ["A", "B"]),
    ('„A" und „B"', ["A", "B"]),
    ("「営業中」と『本日』", ["営業中", "本日"]),
    ("＂A＂ 〝B〟 ｢C｣ ﹁D﹂", ["A", "B", "C", "D"]),
    ('写着"你好"的牌子', ["你好"]),
    ('"a" »b« 「c」', ["a", "b", "c"]),
    ("「『A』」", ["『A』"]),
    ('“He said "hi" now”', ['He said "hi" now']),
    ('a 12" pizza box that says "HOT"', ["HOT"]),
    ("a 12” pizza box that says “HOT”", ["HOT"]),
    ('a 12 " pizza box that says "HOT"', ["HOT"]),
    ('a 3½" disk labelled "DATA"', ["DATA"]),
    ('"AREA 51" and "HOT"', ["AREA 51", "HOT"]),
    ('a "SIZE 12" and a 12" box "B"', ["SIZE 12", "B"]),
    ('"a 12" pizza"', ['a 12" pizza']),
    ('says "5" on it, or "6"', ["5", "6"]),
    ('a 12" by 14" print', []),
    ('a 5\'10" man with "X" on it', ["X"]),
    ("a 6' ladder and the '90s", []),
    ("\"it's Tom's\"", ["it's Tom's"]),
    ("it's Tom's 'sign'", []),
    (r"a sign that says \"HOT\"", ["HOT"]),
    (r'"say \"hi\" now"', ['say "hi" now']),
    ('"HOT" and "COLD', ["HOT"]),
    ('"', []),
    ('""', [""]),
]


@pytest.mark.parametrize(("prompt", "expected"), QUOTED, ids=[prompt for prompt, _ in QUOTED])
def test_quotes(prompt, expected):
    assert quoted_texts(prompt) == expected


@pytest.mark.parametrize(
    "prompt", ["a sign", "", "it's 'open'", 'says ""', 'says "  "', 'a 12" box', '"\u200b" "A"']
)
def test_a_prompt_without_a_text_is_refused(reward, prompt):
    with pytest.raises(ValueError, match="expected .*got"):
        RewardMix(((reward, 1.0),)).judge([prompt])


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == distance


@pytest.mark.parametrize(
    ("read", "target"),
    [
        ("CAFÉ", "CAFE\u0301"),
        ("CAFE\u0301", "café"),
        ("OPEN", "\uff2f\uff30\uff25\uff2e"),
        ("\uff2f\uff30\uff25\uff2e", "open"),
        ("OPEN", "OP\u200bEN\ufeff"),
        ("O\u00adPEN", "O P\u2060EN"),
        ("STRASSE", "Straße"),
        ("DON'T", "don’t"),
        ('SAY "HI"', "say “hi”"),
        ("10-12", "10–12"),
        ("ﬁsh", "FISH"),
        ("ｶﾞ", "ガ"),
    ],
)
def test_forms_of_letters_do_not_count(read, target):
    assert likeness(read, target) == 1


def test_accents_count():
    assert likeness("CAFE", "CAFÉ") == 0.75


@pytest.mark.parametrize(
    ("lines", "targets", "share"),
    [
        (["OPEN", "CL0SED"], ["OPEN", "CLOSED"], 9 / 10),
        (["OPEN CL0SED"], ["CLOSED", "OPEN"], 9 / 10),
        (["CLOSED", "OPEN"], ["OPEN", "CLOSED"], 1),
        (["OPEN"], ["OPEN", "ZZZZ"], 1 / 2),
        (["NEW", "YORK"], ["New York", "ZZZ"], 7 / 10),
        (["OPEN"], ["OPEN", "open"], 1),
        ([], ["OPEN", "CLOSED"], 0),
        (["OPEN", "CL0SED"], ["CLOSED"], 1 / 6),  # as Flow-GRPO: the rest counts against it
    ],
)
def test_several_texts_share_a_score(lines, targets, share):
    assert share_right(lines, targets) == pytest.approx(share)


def test_work_grows_no_faster_than_the_text(monkeypatch):
    cells = []

    def counted(a, b):
        cells.append(len(a) * len(b))
        return edit_distance(a, b)

    monkeypatch.setattr(ocr, "edit_distance", counted)
    spent = []
    for lines in (10, 20):
        cells.clear()
        share_right(["lorem ipsum dolor sit amet"] * lines, ["something", "wanted", "in vain"])
        spent.append(sum(cells))
    assert 0 < spent[1] < 2.2 * spent[0]


def test_an_engine_that_fails_on_an_image_says_which():
    class Broken:
        def read(self, image):
            raise IndexError("list index out of range")

    with pytest.raises(RuntimeError, match="expected Broken to read an image of .8, 8, 3., got"):
        OCR("OPEN", Broken()).score(torch.rand(1, 8, 8, 3), [""])


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
    before = "paddleocr" in sys.modules
    with pytest.raises(FileNotFoundError, match="expected PaddleOCR's models in .*got none"):
        ocr.PaddleOCREngine()
    assert ("paddleocr" in sys.modules) == before
    assert not list(tmp_path.iterdir())
