"""How well an image spells out a text: OCR by an engine that the user has, and an edit distance."""

from __future__ import annotations

import importlib.util
import logging
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .base import Reward, eight_bits
from .quotes import quoted_texts

_INVISIBLE = ("Cf", "Cc")
"""Zero-width and control characters, in Unicode's categories."""
_SELECTORS = {chr(code) for code in range(0xFE00, 0xFE10)}
"""Variants of the letter before them."""
_ALIKE = str.maketrans(
    dict.fromkeys("‘’‚\u201b\u02bc\u2032´`", "'")
    | dict.fromkeys("“”„\u201f«»\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012–—\u2212", "-")
)

INSTALL_COMMANDS = (
    "pip install onnxruntime pyclipper shapely omegaconf colorlog six",
    "pip install --no-deps rapidocr",
)
INSTALL = (
    f"to add one without touching ComfyUI's numpy or cv2: {' && '.join(INSTALL_COMMANDS)} (leave "
    "out onnxruntime if you have onnxruntime-gpu; without any cv2, add opencv-python-headless)"
)


class Engine(Protocol):
    """Reads text."""

    def read(self, image: np.ndarray) -> list[str]:
        """Lines of text in ``image`` [H, W, 3], 8-bit RGB, top to bottom; none for a blank one."""
        ...


class RapidOCREngine:
    """RapidOCR 3: PP-OCR models inside its wheel, on onnxruntime; nothing is downloaded."""

    def __init__(self):
        from rapidocr import RapidOCR

        self._engine = RapidOCR()
        # It would speak up at every blank image.
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)

    def read(self, image: np.ndarray) -> list[str]:
        return list(self._engine(np.ascontiguousarray(image[..., ::-1])).txts or ())


class PaddleOCREngine:
    """PaddleOCR 3, with models that are on disk already.

    Raises:
        FileNotFoundError: no models: PaddleOCR would fetch them itself, which nobody asked it to.
    """

    MODELS = (
        "PP-OCRv6_medium",  # what 3.7 downloads of its own accord
        "PP-OCRv5_server",
        "PP-OCRv6_small",
        "PP-OCRv5_mobile",
        "PP-OCRv4_server",
        "PP-OCRv4_mobile",
    )

    def __init__(self):
        home = Path(os.environ.get("PADDLE_PDX_CACHE_HOME", Path.home() / ".paddlex"))
        models = home / "official_models"
        pairs = [(models / f"{name}_det", models / f"{name}_rec") for name in self.MODELS]
        pair = next((p for p in pairs if all(folder.is_dir() for folder in p)), None)
        if pair is None:
            raise FileNotFoundError(
                f"expected PaddleOCR's models in {' and '.join(map(str, pairs[0]))}, got none; run "
                "`paddleocr ocr -i any.png` once, which downloads them, or use RapidOCR: " + INSTALL
            )
        from paddleocr import PaddleOCR

        detection, recognition = pair
        own = all((folder / "inference.pdiparams").is_file() for folder in pair)
        self._engine = PaddleOCR(
            text_detection_model_name=detection.name,
            text_detection_model_dir=str(detection),
            text_recognition_model_name=recognition.name,
            text_recognition_model_dir=str(recognition),
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            enable_mkldnn=False,  # paddle 3.3 fails with it on CPUs
            **({} if own else {"engine": "onnxruntime"}),  # of 3.7; earlier ones have but their own
        )

    def read(self, image: np.ndarray) -> list[str]:
        (page,) = self._engine.predict(np.ascontiguousarray(image[..., ::-1]))
        return list(page["rec_texts"])


ENGINES: dict[str, tuple[str, type]] = {
    "rapidocr": ("rapidocr", RapidOCREngine),
    "paddleocr": ("paddleocr", PaddleOCREngine),
}
"""Names to the module that an engine needs, and the engine; preferred ones first."""


def installed_engines() -> list[str]:
    return [n for n, (module, _) in ENGINES.items() if importlib.util.find_spec(module)]


@cache
def load_engine(name: str = "auto") -> Engine:
    """An engine by name; "auto" takes the first that is installed.

    Raises:
        ImportError: it is not installed.
        ValueError: no engine has this name.
    """
    if name != "auto" and name not in ENGINES:
        raise ValueError(f"expected engine 'auto' or one of {', '.join(ENGINES)}, got {name!r}")
    found = installed_engines() if name == "auto" else [name]
    if not found or found[0] not in installed_engines():
        wanted = " or ".join(ENGINES) if name == "auto" else name
        raise ImportError(f"expected an OCR engine ({wanted}), got none installed; {INSTALL}")
    return ENGINES[found[0]][1]()


def letters(text: str) -> str:
    """``text`` as it is compared: one form of each letter, no case, nothing that has no width.

    Full-width letters, ligatures, accents of their own, curly quotes and dashes become their usual
    forms (NFKC and case folding); spaces and what is invisible go.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    shown = (c for c in folded if not c.isspace() and unicodedata.category(c) not in _INVISIBLE)
    return "".join(c for c in shown if c not in _SELECTORS).translate(_ALIKE)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def likeness(read: str, target: str) -> float:
    """1 - min(distance, n) / n, n letters of ``target``, as :func:`letters` gives them.

    As Flow-GRPO has it: 1 as soon as the target stands anywhere in what was read, and what was read
    besides counts against it where it does not.
    """
    read, target = letters(read), letters(target)
    return _right(read, target) / len(target)


def share_right(lines: list[str], targets: list[str]) -> float:
    """The share of the letters of all ``targets`` that are right in the ``lines`` read, 0..1.

    Of one target it is its likeness to all that was read; of several, each one's to the run of
    words nearest to it, since the others are wanted too.
    """
    wanted = list(dict.fromkeys(letters(target) for target in targets))
    if len(wanted) == 1:
        return likeness("".join(lines), targets[0])
    words = [letters(word) for line in lines for word in line.split()]
    return sum(_nearest(words, target) for target in wanted) / sum(map(len, wanted))


def _right(read: str, target: str) -> int:
    if target in read:
        return len(target)
    return len(target) - min(edit_distance(read, target), len(target))


def _nearest(words: list[str], target: str) -> int:
    """The most letters of ``target`` that a run of ``words`` has right."""
    most = _right("".join(words), target)
    for first in range(len(words)):
        run = ""
        for word in words[first:]:
            run += word
            if most == len(target) or len(run) >= 2 * len(target):
                break  # nor does a longer run have more of them
            most = max(most, _right(run, target))
    return most


class OCR(Reward):
    """How nearly an image spells out one or several texts (Flow-GRPO's and the paper's reward).

    Args:
        text: what is to be read; "" for all the texts that the prompt quotes.
        engine: its name, "auto" for the first that is installed, or one itself.
    """

    name = "ocr"
    units = "share of the text that is spelt right, 0..1"
    typical = (0.0, 1.0)
    needs_prompt = True

    def __init__(self, text: str = "", engine: str | Engine = "auto"):
        self.text = text
        if text and not letters(text):
            raise ValueError(f"expected a text with letters in it, got {text!r}; leave it empty")
        self.engine = load_engine(engine) if isinstance(engine, str) else engine

    def targets(self, prompt: str) -> list[str]:
        """The texts that an image of ``prompt`` is to show.

        Raises:
            ValueError: the prompt quotes none, or an empty one.
        """
        if self.text:
            return [self.text]
        found = quoted_texts(prompt)
        if not found:
            raise ValueError(
                'expected a prompt with the text in quotes, such as a sign that says "OPEN", got '
                f"{prompt!r}; quote it, or give the reward its text"
            )
        if not all(letters(text) for text in found):
            raise ValueError(f"expected text between the quotes, got none in {prompt!r}")
        return found

    def check(self, prompts: list[str]) -> None:
        for prompt in prompts:
            self.targets(prompt)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = [
            share_right(self._read(array), self.targets(prompt))
            for array, prompt in zip(eight_bits(images), prompts, strict=True)
        ]
        return torch.tensor(scores, device=images.device)

    def _read(self, array: np.ndarray) -> list[str]:
        try:
            return self.engine.read(array)
        except Exception as error:  # of whichever libraries the engine stands on
            told = f"expected {type(self.engine).__name__} to read an image of {array.shape}, got "
            raise RuntimeError(f"{told}{type(error).__name__}: {error}") from error
