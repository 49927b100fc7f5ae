"""How well an image spells out a text: OCR by an engine that the user has, and an edit distance."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .base import Reward, eight_bits

QUOTES = re.compile("|".join(f"{a}([^{b}]*){b}" for a, b in ('""', "\u201c\u201d", "«»", "「」")))
"""Straight and curly double quotes, guillemets, corner brackets."""

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

    MODELS = ("PP-OCRv5_server", "PP-OCRv5_mobile", "PP-OCRv4_server", "PP-OCRv4_mobile")

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
        self._engine = PaddleOCR(
            text_detection_model_name=detection.name,
            text_detection_model_dir=str(detection),
            text_recognition_model_name=recognition.name,
            text_recognition_model_dir=str(recognition),
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            enable_mkldnn=False,  # paddle 3.3 fails with it on CPUs
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


def quoted(prompt: str) -> str | None:
    """The first text in double quotes of any kind; None where there is none."""
    match = QUOTES.search(prompt)
    return next((group for group in match.groups() if group is not None), None) if match else None


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def likeness(read: str, target: str) -> float:
    """1 - min(distance, n) / n, n letters of ``target``; case and spaces do not count.

    As Flow-GRPO has it: 1 as soon as the target stands anywhere in what was read.
    """
    read, target = ("".join(text.lower().split()) for text in (read, target))
    if target in read:
        return 1.0
    return 1 - min(edit_distance(read, target), len(target)) / len(target)


class OCR(Reward):
    """How nearly an image spells out a text (Flow-GRPO's and the paper's OCR reward).

    Args:
        text: what is to be read; "" for the prompt's first text in quotes.
        engine: its name, "auto" for the first that is installed, or one itself.
    """

    name = "ocr"
    units = "share of the text that is spelt right, 0..1"
    typical = (0.0, 1.0)
    needs_prompt = True

    def __init__(self, text: str = "", engine: str | Engine = "auto"):
        self.text = text
        if text and not text.strip():
            raise ValueError(f"expected a text with letters in it, got {text!r}; leave it empty")
        self.engine = load_engine(engine) if isinstance(engine, str) else engine

    def target(self, prompt: str) -> str:
        """The text that an image of ``prompt`` is to show.

        Raises:
            ValueError: the prompt quotes none, or an empty one.
        """
        if self.text:
            return self.text
        found = quoted(prompt)
        if found is None:
            raise ValueError(
                'expected a prompt with the text in quotes, such as a sign that says "OPEN", got '
                f"{prompt!r}; quote it, or give the reward its text"
            )
        if not found.strip():
            raise ValueError(f"expected text between the quotes, got none in {prompt!r}")
        return found

    def check(self, prompts: list[str]) -> None:
        for prompt in prompts:
            self.target(prompt)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = [
            likeness("".join(self.engine.read(array)), self.target(prompt))
            for array, prompt in zip(eight_bits(images), prompts, strict=True)
        ]
        return torch.tensor(scores, device=images.device)
