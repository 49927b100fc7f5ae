"""What ``flow-ttrl generate`` refuses: clearly, before it is loaded, leaving nothing behind."""

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from test_generate import HERE
from tiny_pipelines import tiny_flux

from flow_ttrl.cli import main
from flow_ttrl.headless import Machine, Model, load_pipeline, make_settings
from flow_ttrl.headless.images import write_image
from flow_ttrl.headless.jobs import Job
from flow_ttrl.headless.models import family_of
from flow_ttrl.headless.recipe import Recipe

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_bad(folder: Path) -> None:
    (folder / "latin").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "line").write_text('{"prompt": "a red circle"}\n{"promt": "x"}')
    (folder / "twice").write_text('{"prompt": "a", "name": "n"}\n{"prompt": "b", "name": "n"}')
    (folder / "empty").write_text("\n")
    (folder / "size").write_text('{"prompt": "a red circle", "size": "100x96"}')
    (folder / "seed").write_text('{"prompt": "a red circle", "seed": 1.5}')
    (folder / "path").write_text('{"prompt": "a red circle", "name": "../up"}')
    (folder / "plain").write_text(
        '{"prompt": "a", "name": "n"}\n{"prompt": "b", "name": "n_plain"}'
    )
    (folder / "part").mkdir()
    index = '{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}'
    (folder / "part" / "model_index.json").write_text(index)
    (folder / "other").mkdir()
    (folder / "other" / "model_index.json").write_text('{"_class_name": "FluxFillPipeline"}')
    (folder / "bare").mkdir()
    (folder / "several").mkdir()
    for name in ("one", "two"):
        (folder / "several" / f"{name}.safetensors").write_bytes(b"")
    recipe = Recipe(Model("tiny-sd3", "int8"), {"verifier": 1.0}, make_settings())
    made = {"recipe": recipe.to_json(), "job": Job("a", "a red circle", 0).to_json()}
    write_image(folder / "int8.png", Image.new("RGB", (8, 8)), made)
    made["recipe"] |= {"call": None}
    write_image(folder / "no_call.png", Image.new("RGB", (8, 8)), made)
    (folder / "file").write_text("no folder")
    (folder / "notes.png").write_text("no image")
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    write_image(folder / "later.png", Image.new("RGB", (8, 8)), {"job": {}, "recipe": {"new": 1}})
    text = PngImagePlugin.PngInfo()
    text.add_itxt("flow_ttrl", "[1]")
    Image.new("RGB", (8, 8)).save(folder / "list.png", pnginfo=text)
    Image.effect_noise((64, 64), 50).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])


SLOPE = ["--strategy", "reward_gradient"]
BAD = [
    (["--model", "black-forest-labs/FLUX.1-dev", "--prompt", "a", "--reward", "white"], "34 GB"),
    (["--model", "me/nothing", "--prompt", "a", "--reward", "white"], "hf download me/nothing"),
    (["--model", "FOLDER/bare", "--prompt", "a", "--reward", "white"], "model_index.json in"),
    (["--model", "FOLDER/other", "--prompt", "a", "--reward", "white"], "FluxFillPipeline"),
    (["--model", "FOLDER/part", "--prompt", "a", "--reward", "white"], "expected vae in"),
    (["--prompt", "a"], "expected --model"),
    (["--model", "tiny-sd3"], "expected at least one prompt"),
    ([*HERE, "--reward", "hsp"], "expected a reward of the catalogue"),
    ([*HERE, "--reward", "hps"], "HPS_v2.1_compressed.pt"),
    ([*HERE, "--reward", '{"white": "much"}'], "a number as the weight of white"),
    ([*HERE, "--reward", "{white}"], "expected JSON"),
    ([*HERE, "--reward", "image_similarity"], "expected"),
    ([*HERE, "--reward", "white", "--reference", "FOLDER/notes.png"], "expected"),
    (["--model", "tiny-sd3", "--prompt", "a cat on a mat"], "expected"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/nowhere"], "expected a file of prompts"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/latin"], "expected text in UTF-8"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/line"], "line 2: expected prompt, negative"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/twice"], "got n.png twice"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/plain", "--baseline"], "got n_plain.png twice"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/empty"], "expected at least one prompt"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/size"], "divisible by 16"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/seed"], "expected seed to be a whole number"),
    (["--model", "tiny-sd3", "--prompts", "FOLDER/path"], "expected a name of letters"),
    ([*HERE, "--out", "FOLDER/file"], "expected a folder at"),
    ([*HERE, "--budget", "0.5"], "expected budget within 1"),
    ([*HERE, "--strategy", "drafts", "--scale_factor", "3"], "whose parameters scale_factor are"),
    ([*HERE, "--group_size", "1"], "expected group_size within 2"),
    ([*HERE, "--device", "cuda:99"], "expected a device of this machine"),
    ([*HERE, "--offload", "model", "--device", "cpu"], "expected an accelerator to offload from"),
    (
        [*HERE, "--quantize", "bnb4", "--device", "cpu"],
        "expected a model that is loaded from files",
    ),
    ([*HERE, "--tiny-decoder", "me/nothing"], "expected a tiny decoder"),
    ([*HERE, "--call", '{"promt": 1}'], "expected arguments of StableDiffusion3Pipeline's call"),
    ([*HERE, "--call", '{"output_type": "latent"}'], "does not set itself, got output_type"),
    ([*HERE, "--call", '{"guidance_scale": "3"}'], "expected guidance_scale of the pipeline's"),
    ([*HERE, "--call", '{"num_inference_steps": 0}'], "expected num_inference_steps of"),
    ([*HERE, "--call", '{"num_inference_steps": true}'], "a whole number from 1, such as 28"),
    ([*HERE, "--call", '{"skip_guidance_layers": 7}'], "call to be a list of numbers, got 7"),
    ([*HERE, "--call", '{"sigmas": [1.0, "low"]}'], "expected sigmas of the pipeline's call"),
    ([*HERE, "--call", '{"joint_attention_kwargs": 1}'], "call to be a JSON object, got 1"),
    ([*HERE, "--call", '{"mu": "much"}'], "expected mu of the pipeline's call to be a number"),
    ([*HERE, "--guidance", "nan"], "to be a number, such as 7.0, got nan"),
    ([*HERE, "--size", "512x512"], "expected sides of at most 256 pixels"),
    ([*HERE, "--reward", "verifier=0"], "at least one reward with a weight other than 0"),
    ([*HERE, "--reward", "verifier=nan"], "expected a finite weight for 'verifier'"),
    (
        [*HERE, "--reward", "scorer", "--mode", "rank", *SLOPE],
        "expected rewards mixed by mode 'raw'",
    ),
    (
        [*HERE, "--reward", "verifier", *SLOPE],
        "expected rewards that have a gradient, got verifier",
    ),
    ([*HERE, "--lora", "FOLDER/bare"], "expected LoRA weights at"),
    ([*HERE, "--lora", "FOLDER/several"], "got one.safetensors, two.safetensors; name one"),
    ([*HERE, "--tiny-decoder", "FOLDER/bare"], "expected a tiny decoder"),
    ([*HERE, "--paper", "--settings", "FOLDER/file"], "expected --paper or --settings, got both"),
    (["--from-image", "FOLDER/int8.png"], "expected dtype auto, bf16, fp16, fp32, got 'int8'"),
    (["--from-image", "FOLDER/no_call.png"], "expected an image made by version"),
    ([*HERE[2:], "--model", "tiny-flux", "--negative", "b"], "expected true_cfg_scale above 1"),
    ([*HERE, "--num-gpus", "2"], "expected --engine ray with --num-gpus"),
    (["--from-image", "FOLDER/list.png"], "as a JSON object in it"),
    (["--from-image", "FOLDER/photo.png", "--budget", "3"], "without --budget"),
    (["--from-image", "FOLDER/notes.png"], "expected a whole image"),
    (["--from-image", "FOLDER/later.png"], "expected an image made by version"),
    (["--from-image", "FOLDER/cut.png"], "expected a whole image"),
    (
        ["--from-image", "FOLDER/photo.png", *HERE],
        "expected --from-image without --model, --prompt",
    ),
    (
        ["--from-image", "FOLDER/photo.png", "--tiny-decoder", "x", "--group_size", "4"],
        "without --tiny-decoder, --group_size",
    ),
    (["--from-image", "FOLDER/photo.png"], "expected an image made by flow-ttrl generate"),
]


@pytest.mark.parametrize(("argv", "told"), BAD, ids=[told for _, told in BAD])
def test_errors_are_clear_and_leave_nothing(capsys, tmp_path, monkeypatch, argv, told):
    monkeypatch.setenv("FLOW_TTRL_MODELS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    write_bad(tmp_path)
    argv = [word.replace("FOLDER", str(tmp_path)) for word in argv]
    out = tmp_path / "out"
    assert main(["generate", "--out", str(out), *argv]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    "option",
    [
        ["--size", "100x96"],
        ["--size", "big"],
        ["--call", "[1]"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
    ],
)
def test_options_that_cannot_be_read(capsys, option):
    with pytest.raises(SystemExit) as raised:
        main(["generate", *HERE, *option])
    assert raised.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_model_of_which_a_part_is_missing_is_told(tmp_path):
    """A shard that its index names, the index, a part's configuration, its weights."""
    pipe = tiny_flux()
    pipe.save_pretrained(tmp_path)
    pipe.transformer.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shards = sorted((tmp_path / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert family_of(str(tmp_path)) == "flux"
    load_pipeline(Model(str(tmp_path)), Machine("cpu"))
    config, weights = (tmp_path / "vae" / name for name in ("config.json", VAE_WEIGHTS))
    for file in (shards[-1], config, weights, tmp_path / "scheduler" / "scheduler_config.json"):
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"expected {file.parent.name} in"):
            family_of(str(tmp_path))
        file.write_bytes(kept)
    (index,) = (tmp_path / "transformer").glob("*.index.json")
    for damaged in ("", index.read_text()[:-9], "[]", '{"weight_map": {}}'):
        index.write_text(damaged)
        with pytest.raises(FileNotFoundError, match="expected transformer in"):
            family_of(str(tmp_path))
