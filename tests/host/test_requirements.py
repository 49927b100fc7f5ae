"""Installing the pack's requirements leaves a ComfyUI environment as it was, but for additions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from conftest import ROOT, Environment, host_python

from flow_ttrl.rewards.ocr import INSTALL_COMMANDS

NEEDED = {"matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing"}
NEEDED |= {"python_dateutil", "six", "tzdata", "open_clip_torch", "ftfy", "wcwidth", "timm"}
"""The two requirements and what those need beyond any ComfyUI environment."""

CV2 = "import cv2; print(cv2.__file__)"


@pytest.fixture(scope="module")
def environment(home, tmp_path_factory) -> Environment:
    """The host's, with another pack's OpenCV in it."""
    made = Environment(host_python(home), tmp_path_factory.mktemp("with-opencv"))
    made.install("opencv-python-headless")
    return made


def fingerprint(folder: Path) -> dict[str, str]:
    """Checksums of all files of a package."""
    files = [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_requirements_add_and_change_nothing(environment):
    before, cv2 = environment.freeze(), Path(environment.run(CV2))
    files = fingerprint(cv2.parent)
    environment.install("-r", str(ROOT / "requirements.txt"))
    after = environment.freeze()
    assert {name: after.get(name) for name in before} == before
    assert "open_clip_torch" in {name.replace("-", "_") for name in after}
    assert Path(environment.run(CV2)) == cv2
    assert fingerprint(cv2.parent) == files
    assert {name.replace("-", "_").lower() for name in set(after) - set(before)} <= NEEDED


def test_an_ocr_engine_goes_in_as_the_error_says(environment):
    """With the very commands, beside another pack's OpenCV, which it then reads with."""
    before, cv2 = environment.freeze(), Path(environment.run(CV2))
    files = fingerprint(cv2.parent)
    for command in INSTALL_COMMANDS:
        environment.install(*command.removeprefix("pip install ").split())
    after = environment.freeze()
    assert {name: after.get(name) for name in before} == before
    assert Path(environment.run(CV2)) == cv2
    assert fingerprint(cv2.parent) == files
    read = environment.run(
        "import numpy as np; from PIL import Image, ImageDraw, ImageFont; "
        "from rapidocr import RapidOCR; image = Image.new('RGB', (512, 256), 'white'); "
        "font = ImageFont.load_default(64); "
        "ImageDraw.Draw(image).text((50, 80), 'BAKERY', fill='black', font=font); "
        "print(*RapidOCR()(np.asarray(image)).txts)"
    )
    assert read.splitlines()[-1] == "BAKERY"


def test_what_is_added_imports(environment):
    environment.install("-r", str(ROOT / "requirements.txt"))
    environment.run("import open_clip, matplotlib, transformers, torchvision")
