"""``flow-ttrl generate``: images and files as promised, going on where it stopped, clear errors."""

import json
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_vlm
import torch
from PIL import Image, ImageChops
from tiny_pipelines import tiny_flux

from flow_ttrl.cli import main
from flow_ttrl.headless import Machine, Model, load_pipeline
from flow_ttrl.headless.images import read_made, write_image
from flow_ttrl.headless.jobs import Job
from flow_ttrl.headless.recipe import Recipe
from flow_ttrl.headless.run import here
from flow_ttrl.world.diffusers import GUIDANCE, world_pipeline

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--steps", "3", "--budget", "2", "--device", "cpu")
SLOW = pytest.mark.slow
DEMOS = [("flux", False)]
REST = (("sd3", False), ("sd3", True), ("flux", True))
DEMOS += [pytest.param(*case, marks=SLOW) for case in REST]
HERE = ("--model", "tiny-sd3", "--prompt", "a red circle")
PROMPTS = ("a red circle", "a blue square", "a green circle")


NEGATIVE = {"negative": "a red circle"}


def generate(capsys, out, *argv: str) -> dict:
    assert main(["generate", *argv, "--out", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def asked(*prompts: str) -> list[str]:
    return [part for prompt in prompts for part in ("--prompt", prompt)]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is None


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_budget_one_is_the_pipelines_own_image(capsys, tmp_path, arch):
    argv = ("--model", f"tiny-{arch}", *asked(PROMPTS[0]), "--seed", "4")
    made = generate(capsys, tmp_path, *argv, "--steps", "4", "--budget", "1", "--device", "cpu")
    pipe = world_pipeline(arch)
    stock = pipe(
        PROMPTS[0],
        num_inference_steps=4,
        guidance_scale=GUIDANCE[arch],
        generator=torch.Generator().manual_seed(4),
    ).images[0]
    (row,) = made["images"]
    assert same(Image.open(row["file"]), stock)
    assert row["cost"]["model_calls"] == 4
    assert row["reward"] == row["values"]["verifier"]


def test_a_search_and_its_baseline_side_by_side(capsys, tmp_path):
    argv = ("--model", "tiny-flux", *asked(*PROMPTS[:2]), "--reward", "scorer=1,verifier=0.5")
    made = generate(capsys, tmp_path, *argv, *QUICK, "--baseline", "--images", "2")
    assert list(files(tmp_path)) == sorted(
        f"{number:05d}_{seed}{kind}.png"
        for number in (0, 1)
        for seed in (0, 1)
        for kind in ("", "_plain")
    )
    for row in made["images"]:
        assert row["reward"] >= row["plain_reward"]
        assert row["values"].keys() == {"scorer", "verifier"}
        assert row["cost"]["times_plain"] <= 2
        told = read_made(Path(row["file"]))
        assert told["job"]["prompt"] == row["prompt"]
        assert told["recipe"]["settings"]["strategy"] == "steered"


@pytest.mark.slow
def test_a_run_is_resumed_after_a_kill_to_the_same_files(capsys, tmp_path):
    """The killed process loses at most the image in flight; what is there is not made again."""
    argv = ["--model", "tiny-sd3", *asked(*PROMPTS), *QUICK, "--baseline"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    generate(capsys, whole, *argv)
    command = [sys.executable, "-c", _RUN, "generate", *argv, "--out", str(cut)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603
    until = time.monotonic() + 120
    while not list(cut.glob("*0.png")) and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {name: (cut / name).stat().st_mtime_ns for name in files(cut) if name[0] != "."}
    assert 2 <= len(before) < 6
    made = generate(capsys, cut, *argv)
    assert sum(row["skipped"] for row in made["images"]) == len(before) // 2
    assert files(cut) == files(whole)
    for name in list(before)[: len(before) // 2 * 2]:
        assert (cut / name).stat().st_mtime_ns == before[name]


_RUN = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import conftest
from flow_ttrl.cli import main
sys.exit(main())
"""


def test_an_image_makes_itself_again(capsys, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    argv = ("--model", "tiny-flux", *asked(PROMPTS[1]), "--strategy", "drafts", *QUICK)
    (row,) = generate(capsys, first, *argv, "--seed", "7", "--guidance", "3")["images"]
    generate(capsys, again, "--from-image", row["file"], "--device", "cpu")
    assert files(again) == files(first)


def test_prompts_of_a_file(capsys, tmp_path):
    lines = [
        "a red circle",
        "",
        json.dumps(
            {"prompt": "a blue square", "seed": 3, "name": "blue", "negative": "a red circle"}
        ),
        json.dumps({"prompt": "a green circle", "size": "64x48"}),
    ]
    (tmp_path / "prompts").write_text("\n".join(lines), "utf-8")
    argv = ("--model", "tiny-sd3", "--prompts", str(tmp_path / "prompts"), *QUICK)
    made = generate(capsys, tmp_path / "out", *argv, "--seed", "1", "--budget", "1")
    told = [(Path(r["file"]).name, r["prompt"], r["seed"]) for r in made["images"]]
    assert told == [
        ("00000_1.png", "a red circle", 1),
        ("blue.png", "a blue square", 3),
        ("00002_1.png", "a green circle", 1),
    ]
    stock = world_pipeline("sd3")(
        "a blue square",
        negative_prompt="a red circle",
        num_inference_steps=3,
        guidance_scale=GUIDANCE["sd3"],
        generator=torch.Generator().manual_seed(3),
    )
    assert same(Image.open(tmp_path / "out" / "blue.png"), stock.images[0])
    assert Image.open(tmp_path / "out" / "00002_1.png").size == (64, 48)
    assert Image.open(tmp_path / "out" / "00000_1.png").size == (96, 96)


def test_the_papers_names_and_spellings(capsys, tmp_path):
    argv = ("--model", "tiny-flux", *asked(PROMPTS[0]), "--score_dict", '{"verifier": 2.0}')
    argv += ("--scale_factor", "300", "--RL_interation_num", "1", "--beta", "0.001")
    argv += ("--noise_range", "1.2", "0.4", "--steps", "4", "--device", "cpu")
    settings = generate(capsys, tmp_path / "a", *argv)["settings"]
    assert (settings["strategy"], settings["budget"]) == ("flow_ttrl", 0)
    wanted = {"scale_factor": 300, "rl_iterations": 1, "beta1": 1e-3, "beta2": 1e-3}
    wanted |= {"noise_range": [1.2, 0.4], "group_size": 6, "prdp_scale": 5.0}
    assert wanted.items() <= settings["parameters"].items()
    paper = generate(capsys, tmp_path / "b", *argv[:6], "--paper", "--steps", "4", "--beta2", "1")
    assert paper["settings"]["parameters"]["scale_factor"] == 400
    assert paper["settings"]["parameters"]["beta2"] == 1
    assert not paper["settings"]["keep_better"]


@pytest.mark.slow
def test_ways_to_spare_memory(capsys, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(2)
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "decoder")
    argv = ("--model", "tiny-sd3", *asked(PROMPTS[0]), *QUICK)
    plain = generate(capsys, tmp_path / "plain", *argv)["images"][0]
    sliced = generate(capsys, tmp_path / "slices", *argv, "--vae-slicing")
    assert sliced["images"][0]["reward"] == pytest.approx(plain["reward"], abs=1e-3)
    tiled = generate(capsys, tmp_path / "tiles", *argv, "--vae-tiling")["images"][0]
    whole, parts = (Image.open(one["file"]) for one in (plain, tiled))
    assert not same(whole, parts)  # since it is of the model's usual size, and tiled all the same
    assert read_made(Path(tiled["file"]))["recipe"]["model"]["vae_tiling"]
    judged = generate(
        capsys, tmp_path / "small", *argv, "--tiny-decoder", str(tmp_path / "decoder")
    )
    assert judged["images"][0]["reward"] != plain["reward"]
    generate(capsys, tmp_path / "fp8", *argv, "--quantize", "fp8")
    kept = load_pipeline(Model("tiny-sd3", quantize="fp8"), Machine("cpu")).transformer
    assert torch.float8_e4m3fn in {weight.dtype for weight in kept.parameters()}
    one, other = (Image.open(tmp_path / n / "00000_0.png") for n in ("plain", "fp8"))
    assert not same(one, other)
    generate(capsys, tmp_path / "again", *argv)
    assert files(tmp_path / "again") == files(tmp_path / "plain")


def test_a_model_from_a_folder(capsys, tmp_path):
    tiny_flux().save_pretrained(tmp_path / "model")
    argv = ("--model", str(tmp_path / "model"), *asked("a red fox"), "--reward", "contrast")
    made = generate(capsys, tmp_path / "out", *argv, *QUICK, "--size", "64x48")
    assert Image.open(made["images"][0]["file"]).size == (64, 48)


@pytest.mark.slow
def test_a_judge_that_is_asked_questions(capsys, tmp_path):
    """Its options are part of the recipe, and so of every image."""
    tiny_vlm.write(tmp_path / "models" / "Qwen3-VL-4B-Instruct", "qwen3_vl")
    argv = ("--model", "tiny-flux", *asked(PROMPTS[0]), "--reward", "vlm", *QUICK)
    argv += ("--models", str(tmp_path / "models"), "--side", "256")
    made = generate(capsys, tmp_path / "one", *argv, "--question", "Is it red?")["images"][0]
    told = read_made(Path(made["file"]))
    assert told["recipe"]["options"]["questions"] == "Is it red?"
    assert 0 <= made["values"]["vlm"] <= 1
    again = ("--from-image", made["file"], "--models", str(tmp_path / "models"), "--device", "cpu")
    generate(capsys, tmp_path / "two", *again)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_image_that_another_process_has_made_meanwhile_is_not_made_again(capsys, tmp_path):
    argv = (*HERE, "--prompt", PROMPTS[1], *QUICK)
    generate(capsys, tmp_path / "a", *argv)
    recipe = Recipe.from_json(read_made(tmp_path / "a" / "00000_0.png")["recipe"])
    jobs = [Job.from_json(read_made(tmp_path / "a" / f"0000{n}_0.png")["job"]) for n in (0, 1)]
    (tmp_path / "b").mkdir()
    making = here(recipe, Machine("cpu"), [], jobs, tmp_path / "b")
    assert not next(making)["skipped"]
    shutil.copy(tmp_path / "a" / "00001_0.png", tmp_path / "b")
    assert next(making)["skipped"]
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_images_of_another_run_are_not_written_over(capsys, tmp_path):
    argv = [*HERE, *QUICK]
    generate(capsys, tmp_path, *argv)
    before = files(tmp_path)
    assert main(["generate", *argv, "--budget", "1", "--out", str(tmp_path)]) == 2
    assert "got one of other settings" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_plain_image_of_another_run_is_not_written_over(capsys, tmp_path):
    """Nor is one taken for this run's; one that is missing is made again, with its searched one."""
    argv = [*HERE, *QUICK, "--baseline", "--out", str(tmp_path)]
    Image.new("RGB", (8, 8)).save(tmp_path / "00000_0_plain.png")
    before = files(tmp_path)
    assert main(["generate", *argv]) == 2
    assert "00000_0_plain.png" in capsys.readouterr().err
    assert files(tmp_path) == before
    (tmp_path / "00000_0_plain.png").unlink()
    assert main(["generate", *argv]) == 0
    made = files(tmp_path)
    (tmp_path / "00000_0_plain.png").unlink()
    assert main(["generate", *argv]) == 0
    assert files(tmp_path) == made
    (tmp_path / "00000_0_plain.png").write_bytes(made["00000_0.png"])  # the searched one, renamed
    assert main(["generate", *argv]) == 2


def test_an_image_of_other_versions_says_so(capsys, tmp_path, caplog):
    (row,) = generate(capsys, tmp_path / "a", *HERE, *QUICK)["images"]
    made = read_made(Path(row["file"]))
    made["versions"]["torch"] = "1.0"
    write_image(tmp_path / "old.png", Image.open(row["file"]), made)
    generate(capsys, tmp_path / "b", "--from-image", str(tmp_path / "old.png"), "--device", "cpu")
    assert "torch 1.0 (now" in caplog.text
    assert same(Image.open(row["file"]), Image.open(tmp_path / "b" / "00000_0.png"))


def test_a_full_disk_leaves_no_half_an_image(capsys, tmp_path):
    """A limit on the size of files stands for it: writing fails in the middle of the image."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        assert main(["generate", *HERE, *QUICK, "--out", str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "expected to write" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arch", "paper"), DEMOS)
def test_demos_run(capsys, tmp_path, monkeypatch, arch, paper):
    script, out = ROOT / "demo" / f"{arch}_ttrl.py", tmp_path / "image.jpg"
    assert len(script.read_text("utf-8").splitlines()) < 60
    argv = [str(script), "--model", f"tiny-{arch}", "--reward", "verifier", "--out", str(out)]
    argv += ["--prompt", "a red circle", "--budget", "2", "--steps", "4"]
    monkeypatch.setattr(sys, "argv", argv + ["--paper"] * paper)
    runpy.run_path(str(script), run_name="__main__")
    assert "searched" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"image.jpg", "image_plain.jpg"}
