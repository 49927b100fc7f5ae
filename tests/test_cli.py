"""The command line: one JSON object on standard output, true figures, clear errors."""

import json
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image, ImageOps, TiffImagePlugin

from flow_ttrl.cli import main
from flow_ttrl.rewards import ANALYTIC, CATALOGUE
from flow_ttrl.rewards.image_files import read_image


def answer(capsys, *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arch", ["sd3", "flux"])
@pytest.mark.parametrize("strategy", ["steered", "flow_ttrl"])
def test_estimate_is_what_a_demo_counts(capsys, tmp_path, strategy, arch):
    common = ("--strategy", strategy, "--budget", "4", "--steps", "6", "--arch", arch)
    planned = answer(capsys, "estimate", *common)
    made = answer(capsys, "demo", *common, "--out", str(tmp_path))
    keys = ("model_calls", "backwards", "decodes", "rewards", "forwards", "times_plain")
    assert {key: made["cost"][key] for key in keys} == {key: planned[key] for key in keys}
    assert made["cost"]["times_plain"] <= 4


def test_settings_of_a_report_are_taken_back(capsys, tmp_path):
    first = ("--strategy", "drafts", "--budget", "3", "--steps", "4", "--out", str(tmp_path))
    made = answer(capsys, "demo", *first, "--seed", "1")
    kept = tmp_path / "kept.json"
    kept.write_text((tmp_path / "report.json").read_text("utf-8"), "utf-8")
    again = ("--settings", str(kept), "--steps", "4", "--out", str(tmp_path), "--seed", "1")
    assert answer(capsys, "demo", *again)["search"] == made["search"]
    planned = answer(capsys, "estimate", "--settings", str(kept), "--budget", "2", "--steps", "4")
    assert (planned["strategy"], planned["budget"]) == ("drafts", 2.0)


def test_demo_writes_its_files(capsys, tmp_path):
    made = answer(capsys, "demo", "--steps", "4", "--out", str(tmp_path), "--seed", "2")
    assert {"reward", "accurate"} <= made["plain"].keys()
    assert {"reward", "accurate"} <= made["search"].keys()
    assert made["seconds"] > 0
    for path in made["files"]:
        assert (tmp_path / path).stat().st_size > 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["settings"]["strategy"] == "steered"
    assert report["seed"] == 2
    assert report["search_steps"]


def test_demo_is_fixed_by_its_seed(capsys, tmp_path):
    argv = ("demo", "--steps", "4", "--prompt", "a red circle", "--out", str(tmp_path))
    one, same, other = (answer(capsys, *argv, "--seed", seed) for seed in "112")
    assert one["search"] == same["search"]
    assert one["search"] != other["search"]


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Three PNG files of different sizes and brightness."""
    paths = []
    for number, (level, size) in enumerate(((40, (64, 48)), (220, (80, 80)), (120, (50, 90)))):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", size, (level,) * 3).save(paths[-1])
    return paths


def test_score_ranks_files_of_any_size(capsys, pictures):
    made = answer(capsys, "score", *pictures, "--reward", "white=2,contrast=0.5")
    assert [row["image"] for row in made["images"]] == pictures
    assert made["ranking"] == [1, 2, 0]
    assert made["images"][1]["white"] == pytest.approx(220 / 255, abs=1e-4)
    assert made["images"][1]["total"] == pytest.approx(2 * 220 / 255, abs=1e-3)
    assert made["reward"]["weights"] == {"white": 2.0, "contrast": 0.5}


def test_score_compares_in_the_mode_that_is_asked_for(capsys, pictures):
    made = answer(capsys, "score", *pictures, "--reward", "white=2,black", "--mode", "rank")
    assert [row["total"] for row in made["images"]] == pytest.approx([1.0, 2.0, 1.5])
    assert made["reward"]["mode"] == "rank"


def test_score_by_learned_rewards_with_a_prompt_an_image(capsys, pictures, tmp_path):
    models = tiny.write_models(tmp_path / "models")
    prompts = ["a red fox", "the sign", "a cat"]
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    common = ("--reward", "clipscore=1.0,aesthetic=0.5", "--models", str(models), "--device", "cpu")
    made = answer(capsys, "score", *pictures, *asked, *common)
    assert [row["prompt"] for row in made["images"]] == prompts
    for picture, prompt, row in zip(pictures, prompts, made["images"], strict=True):
        alone = answer(capsys, "score", picture, "--prompt", prompt, *common)["images"][0]
        assert alone["image"] == row["image"]
        assert alone["total"] == pytest.approx(row["total"], abs=1e-5)
    table = ["score", *pictures, *asked, *common]
    assert main(table) == 0
    printed = capsys.readouterr().out
    assert "clipscore" in printed
    for note in made["reward"]["notes"]:  # the tiny files are none of the official ones
        assert "bytes where the official" in note
        assert note in printed
    assert [note.split(":")[0] for note in made["reward"]["notes"]] == ["clipscore"] + 2 * [
        "aesthetic"
    ]


def test_images_are_read_as_they_look(capsys, tmp_path):
    """16 bits, transparent on white, turned by the camera."""
    deep, clear, turned = (tmp_path / f"{n}.png" for n in ("deep", "clear", "turned"))
    half = Image.new("I", (20, 20), 32768)
    half.convert("I;16").save(deep)
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(clear)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40), "black").save(turned, exif=exif)
    paths = [str(path) for path in (deep, clear, turned)]
    made = answer(capsys, "score", *paths, "--reward", "white")
    assert [row["white"] for row in made["images"]] == pytest.approx([0.5, 1, 0], abs=1e-3)
    assert read_image(turned).shape == (1, 20, 40, 3)


def test_one_bad_file_in_twenty_loses_nothing_of_the_others(capsys, tmp_path):
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (10 * number,) * 3).save(path)
    paths[7].write_bytes(b"no image")
    paths[12].unlink()
    argv = ["score", *map(str, paths), "--reward", "white"]
    assert main([*argv, "--json"]) == 2
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    kept = [number for number in range(20) if number not in (7, 12)]
    assert [row["image"] for row in made["images"]] == [str(paths[number]) for number in kept]
    whites = [row["white"] for row in made["images"]]
    assert whites == pytest.approx([10 * number / 255 for number in kept], abs=1e-4)
    assert made["ranking"] == list(range(17, -1, -1))
    assert [row["image"] for row in made["failed"]] == [str(paths[7]), str(paths[12])]
    assert len(printed.err.splitlines()) == 2
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 18
    first, second = printed.err.splitlines()
    assert f"expected a whole image file, got {paths[7]}" in first
    assert f"expected an image at {paths[12]}, got no such file" in second


def test_each_image_keeps_its_own_prompt_where_others_fail(capsys, pictures, tmp_path):
    models = tiny.write_models(tmp_path / "models")
    common = ("--reward", "clipscore", "--models", str(models), "--device", "cpu", "--json")
    prompts = ["a red fox", "the sign", "a cat"]
    (tmp_path / "0.png").write_bytes(b"")
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert main(["score", *pictures, *asked, *common]) == 2
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [row["prompt"] for row in rows] == prompts[1:]
    for picture, prompt, row in zip(pictures[1:], prompts[1:], rows, strict=True):
        assert main(["score", picture, "--prompt", prompt, *common]) == 0
        alone = json.loads(capsys.readouterr().out)["images"][0]
        assert alone["clipscore"] == pytest.approx(row["clipscore"], abs=1e-5)


def test_an_image_that_a_reward_cannot_judge_is_told_and_counted(capsys, pictures, monkeypatch):
    whole = ANALYTIC["contrast"].function

    def contrast(images):
        if images.shape[1] == 80:
            raise RuntimeError("CUDA out of memory")
        return whole(images)

    monkeypatch.setitem(CATALOGUE, "contrast", with_function(CATALOGUE["contrast"], contrast))
    assert main(["score", *pictures, "--reward", "white,contrast=-1", "--json"]) == 2
    made = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in made["images"]] == [pictures[0], pictures[2]]
    assert "out of memory" in made["failed"][0]["error"]
    assert made["failed"][0]["image"] == pictures[1]


def with_function(entry, function):
    """The catalogue's entry of an analytic reward, with another function."""
    reward = replace(ANALYTIC[entry.name], function=function)
    return replace(entry, load=lambda paths, options: reward)


def test_damaged_exif_loses_no_image(capsys, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    paths = []
    for number, change in enumerate(
        [lambda b: b[:14], lambda b: b[:8] + b"\xff" * 20, lambda b: b"Exif\0\0XX" + b[8:]]
    ):
        for kind in ("jpg", "png", "webp"):
            paths.append(str(tmp_path / f"{number}.{kind}"))
            Image.new("RGB", (32, 24), (102,) * 3).save(paths[-1], exif=change(whole))
    made = answer(capsys, "score", *paths, "--reward", "white")
    assert [row["white"] for row in made["images"]] == pytest.approx([0.4] * 9, abs=0.01)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_turn_of_a_camera_is_undone(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.effect_noise((20, 12), 80).convert("RGB")
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened), dtype=np.float32) / 255
    assert np.array_equal(read_image(tmp_path / "turned.png")[0].numpy(), expected)


def tiff(path, numbers, **tags):
    """A single-channel TIFF of these numbers; Pillow writes 32 bits as signed ones alone."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    unsigned = numbers.dtype == np.uint32
    Image.fromarray(numbers.view(np.int32) if unsigned else numbers).save(path, tiffinfo=info)
    if unsigned:
        signed, plain = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
        whole = path.read_bytes()
        assert whole.count(signed) == 1
        path.write_bytes(whole.replace(signed, plain))


@pytest.mark.parametrize(
    ("kind", "largest"),
    [(np.uint16, 65535), (np.int32, (1 << 31) - 1), (np.uint32, (1 << 32) - 1)],
)
@pytest.mark.parametrize("level", [0.0, 0.4, 0.6, 1.0])
def test_integers_of_any_depth_have_their_own_range(capsys, tmp_path, kind, largest, level):
    tiff(tmp_path / "deep.tiff", np.full((20, 20), round(level * largest), dtype=kind))
    made = answer(capsys, "score", str(tmp_path / "deep.tiff"), "--reward", "white")
    assert made["images"][0]["white"] == pytest.approx(level, abs=1e-4)


def test_sixteen_bits_with_white_as_zero(capsys, tmp_path):
    tiff(tmp_path / "fax.tiff", np.full((20, 20), 39321, dtype=np.uint16), t262=0)
    made = answer(capsys, "score", str(tmp_path / "fax.tiff"), "--reward", "white")
    assert made["images"][0]["white"] == pytest.approx(0.4, abs=1e-4)


def test_an_image_of_200_megapixels_is_told_on_a_line(capsys, pictures, tmp_path):
    Image.new("1", (14200, 14200)).save(tmp_path / "huge.png")
    assert main(["score", str(tmp_path / "huge.png"), pictures[0], "--reward", "white"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "expected an image of at most 179 megapixels, got more" in line
    assert len(printed.out.splitlines()) == 2


def test_a_large_image_is_scored_without_a_word(capsys, pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["score", pictures[1], "--reward", "white"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("reward", ["white", "clipscore", "pickscore", "ocr"])
def test_half_a_letter_in_a_prompt_is_told(capsys, pictures, tmp_path, reward):
    models = tiny.write_models(tmp_path / "models")
    argv = ["score", pictures[0], "--prompt", 'a "fox\udcff"', "--reward", reward]
    assert main([*argv, "--models", str(models), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"expected a prompt of whole letters, got '\udcff' at place 6" in line


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    command = [sys.executable, "-m", "flow_ttrl", "rewards", "--models", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as running:  # noqa: S603
        running.stdout.close()
        told = running.stderr.read()
    assert running.returncode == 0
    assert b"Traceback" not in told
    assert b"BrokenPipe" not in told


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_names_that_a_terminal_cannot_print_are_escaped(tmp_path, encoding):
    good, lost = tmp_path / "名前.png", tmp_path / "é\u2028.png"
    Image.new("RGB", (8, 8)).save(good)
    command = [sys.executable, "-m", "flow_ttrl", "score", str(good), str(lost), "--reward"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    ran = subprocess.run([*command, "white"], capture_output=True, env=environment)  # noqa: S603
    assert ran.returncode == 2
    shown = ran.stdout.decode(encoding)
    assert ("名前.png" if encoding == "utf-8" else r"\u540d\u524d.png") in shown
    assert b"Traceback" not in ran.stderr
    assert b"expected an image at" in ran.stderr


@pytest.mark.parametrize("quote", ["'", '"'])
def test_paths_in_quotes_are_taken(capsys, pictures, tmp_path, quote):
    made = answer(capsys, "score", f"{quote}{pictures[1]}{quote}", "--reward", "white")
    assert made["images"][0]["image"] == pictures[1]
    folder = tmp_path / "reward models"
    folder.mkdir()
    made = answer(capsys, "rewards", "--models", f"{quote}{folder}{quote}")
    assert made["folders"][0] == str(folder)
    odd = tmp_path / f"{quote}odd{quote}"
    Image.new("RGB", (8, 8)).save(odd, "PNG")
    made = answer(capsys, "score", str(odd), "--reward", "white")
    assert made["images"][0]["image"] == str(odd)


def test_rewards_lists_what_is_ready_and_what_the_others_lack(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOW_TTRL_MODELS", str(tmp_path))
    made = answer(capsys, "rewards")
    assert made["folders"] == [str(tmp_path)]
    assert made["rewards"]["white"]["ready"]
    (lacks,) = made["rewards"]["hps"]["lacks"]
    assert str(tmp_path / "HPS_v2.1_compressed.pt") in lacks
    tiny.write_models(tmp_path)
    made = answer(capsys, "rewards")
    assert made["rewards"]["aesthetic"]["ready"]
    assert not made["rewards"]["hps"]["ready"]
    assert main(["rewards"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CATALOGUE)


@pytest.mark.parametrize(
    "argv",
    [
        ["demo", "--prompt", "a cat on a mat"],
        ["demo", "--strategy", "reward_gradient"],
        ["estimate", "--budget", "0.5"],
        ["estimate", "--settings", "TEXT"],
        ["estimate", "--settings", "STRANGE"],
        ["score", "PICTURE", "--reward", "hsp"],
        ["score", "PICTURE", "--reward", "white=much"],
        ["score", "PICTURE", "--reward", "white,white"],
        ["score", "PICTURE", "--reward", "white=0"],
        ["score", "PICTURE", "--reward", "hps"],
        ["score", "PICTURE", "--reward", "image_similarity"],
        ["score", "PICTURE", "--reward", "ocr", "--prompt", "no quotes"],
        ["score", "PICTURE", "PICTURE", "PICTURE", "--reward", "white"]
        + ["--prompt", "a", "--prompt", "b"],
        ["score", "nowhere.png", "--reward", "white"],
        ["score", "TEXT", "--reward", "white"],
        ["score", "CUT", "--reward", "white"],
        ["score", "FOLDER", "--reward", "white"],
        ["score", "PICTURE", "--reward", "white", "--device", "foo"],
        ["rewards", "--download", "hsp"],
    ],
)
def test_errors_say_what_was_expected(capsys, argv, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOW_TTRL_MODELS", str(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "strange.json").write_text('{"strategy": "steered", "parameters": {"eta": 1}}')
    noise = Image.effect_noise((64, 64), 50)
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    names = {"PICTURE": pictures[0], "FOLDER": str(tmp_path)}
    names |= {"TEXT": str(tmp_path / "notes.txt"), "CUT": str(tmp_path / "cut.png")}
    names |= {"STRANGE": str(tmp_path / "strange.json")}
    assert main([names.get(word, word) for word in argv]) == 2
    printed = capsys.readouterr()
    assert "expected" in printed.err
    assert printed.out == ""
