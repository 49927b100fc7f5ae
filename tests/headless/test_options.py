"""Options of ``flow-ttrl generate``: what each comes to, against the pipeline's own call."""

import json

import pytest
import torch
from diffusers import AutoencoderTiny
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from test_generate import asked, generate, same

from flow_ttrl.cli import main
from flow_ttrl.headless import Machine, Model
from flow_ttrl.headless.images import read_made
from flow_ttrl.headless.models import check_machine
from flow_ttrl.world.diffusers import GUIDANCE, world_pipeline

PROMPT, OTHER = "a red circle", "a blue square"
STEPS = ("--steps", "4", "--device", "cpu")


def stock(arch: str, pipe=None, **call):
    """The pipeline's own image."""
    usual = {"num_inference_steps": 4, "guidance_scale": GUIDANCE[arch]}
    generator = torch.Generator().manual_seed(0)
    pipe = pipe or world_pipeline(arch)
    return pipe(PROMPT, generator=generator, **usual | call).images[0]


def plain(capsys, out, arch: str, *argv: str) -> tuple[Image.Image, dict]:
    """The command's image at budget 1, and what it says made it."""
    argv = ("--model", f"tiny-{arch}", *asked(PROMPT), *STEPS, "--budget", "1", *argv)
    (row,) = generate(capsys, out, *argv)["images"]
    return Image.open(row["file"]), read_made(out / "00000_0.png")


SKIPPED = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
CALLS = [
    ("sd3", ["--negative", OTHER], {"negative_prompt": OTHER}),
    ("sd3", ["--guidance", "1.5"], {"guidance_scale": 1.5}),
    ("sd3", ["--size", "64x80"], {"width": 64, "height": 80}),
    ("sd3", ["--call", json.dumps(SKIPPED)], SKIPPED),
    ("sd3", ["--call", '{"sigmas": [1.0, 0.6, 0.3]}'], {"sigmas": [1.0, 0.6, 0.3]}),
    (
        "flux",
        ["--negative", OTHER, "--call", '{"true_cfg_scale": 2}'],
        {"negative_prompt": OTHER, "true_cfg_scale": 2},
    ),
]


@pytest.mark.parametrize(("arch", "argv", "call"), CALLS, ids=[str(argv) for _, argv, _ in CALLS])
def test_what_the_call_is_given_is_the_pipelines(capsys, tmp_path, arch, argv, call):
    image, _ = plain(capsys, tmp_path, arch, *argv)
    assert same(image, stock(arch, **call))
    assert image.size != (96, 96) or not same(image, stock(arch))


def test_loras_are_what_the_pipeline_loads(capsys, tmp_path):
    """One, and several together."""
    pipe, names = world_pipeline("sd3"), ["one", "two"]
    torch.manual_seed(0)
    network = pipe.transformer
    kind = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_k"])
    try:
        for name in names:
            network.add_adapter(kind, name)
            weights = get_peft_model_state_dict(network, adapter_name=name)
            type(pipe).save_lora_weights(tmp_path / name, transformer_lora_layers=weights)
        expected = {}
        for active in ("one", "two", "one two"):
            network.set_adapters(active.split())
            expected[active] = stock("sd3", pipe)
    finally:
        network.delete_adapters(names)
    expected["none"] = stock("sd3")
    for active in ("one", "one two"):
        given = [word for name in active.split() for word in ("--lora", str(tmp_path / name))]
        image, made = plain(capsys, tmp_path / f"out {active}", "sd3", *given)
        assert [name for name, other in expected.items() if same(image, other)] == [active]
        assert made["recipe"]["model"]["lora"] == given[1::2]


def test_a_lora_of_another_model_is_refused(capsys, tmp_path):
    layer = "unet.down_blocks.0.attentions.0.to_q.lora_{}.weight"
    save_file(
        {layer.format(end): torch.zeros(2, 2) for end in "AB"}, tmp_path / "other.safetensors"
    )
    argv = (
        "--model",
        "tiny-sd3",
        *asked(PROMPT),
        *STEPS,
        "--lora",
        str(tmp_path / "other.safetensors"),
    )
    assert main(["generate", *argv, "--out", str(tmp_path / "out")]) == 2
    assert "of which nothing fits it" in capsys.readouterr().err


def test_a_tiny_decoder_is_named_by_its_whole_path(capsys, tmp_path, monkeypatch):
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "decoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("decoder", "~/decoder"):
        _, made = plain(capsys, tmp_path / "out", "sd3", "--tiny-decoder", given)
        assert made["recipe"]["decoder"] == str(tmp_path / "decoder")


def test_precision_is_what_the_image_says(capsys, tmp_path):
    """Decided before the run: the same command on a card would be of another."""
    usual, made = plain(capsys, tmp_path / "a", "sd3")
    assert made["recipe"]["model"]["dtype"] == "fp32"
    half, made = plain(capsys, tmp_path / "b", "sd3", "--dtype", "bf16")
    assert made["recipe"]["model"]["dtype"] == "bf16"
    assert not same(usual, half)


def test_settings_of_the_search(capsys, tmp_path):
    argv = ("--model", "tiny-flux", *asked(PROMPT), *STEPS)
    own = {"strategy": "drafts", "budget": 2.0, "keep_better": False, "parameters": {}}
    (tmp_path / "settings").write_text(json.dumps(own))
    file = ("--settings", str(tmp_path / "settings"))
    found = generate(capsys, tmp_path / "a", *argv, *file, "--keep-better", "--micro-batch", "1")
    settings = found["settings"]
    assert settings["strategy"] == "drafts"
    assert (settings["budget"], settings["keep_better"], settings["micro_batch"]) == (2.0, True, 1)
    assert found["images"][0]["plain_reward"] is not None
    wide = generate(capsys, tmp_path / "b", *argv, *file, "--budget", "3")
    assert wide["settings"]["budget"] == 3.0
    assert wide["images"][0]["plain_reward"] is None
    assert wide["images"][0]["cost"]["times_plain"] > 2


def test_rewards_and_their_options(capsys, tmp_path):
    argv = ("--reward", "verifier=1,contrast=2", "--mode", "rank", "--text", "OPEN")
    _, made = plain(capsys, tmp_path, "sd3", *argv)
    assert made["recipe"]["rewards"] == {"verifier": 1.0, "contrast": 2.0}
    assert made["recipe"]["mode"] == "rank"
    assert made["recipe"]["options"]["text"] == "OPEN"
    assert set(made["report"]["values"]) == {"verifier", "contrast"}


@pytest.mark.parametrize(
    ("options", "machine", "told"),
    [
        ({"quantize": "bnb4"}, {}, "expected a GPU for quantize bnb4"),
        ({"quantize": "bnb8"}, {}, "expected a GPU for quantize bnb8"),
        ({}, {"offload": "sequential"}, "expected an accelerator to offload from"),
    ],
)
def test_what_a_cpu_cannot_do_is_told(options, machine, told):
    with pytest.raises(ValueError, match=told):
        check_machine(Model("any", **options), Machine("cpu", **machine))
