"""The command line: one JSON object on standard output, true figures, clear errors."""

import json

import pytest
import tiny
from PIL import Image

from flow_ttrl.cli import main
from flow_ttrl.cli.score import _image
from flow_ttrl.rewards import CATALOGUE


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
    assert "clipscore" in capsys.readouterr().out


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
    assert _image(turned).shape == (1, 20, 40, 3)


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
