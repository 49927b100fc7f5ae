"""What only a card can show of the command line: quantisation, offloading, workers with a GPU."""

import importlib.util

import pytest
import torch
from PIL import Image
from test_generate import asked, generate
from tiny_pipelines import tiny_flux

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO GPU TESTS: this machine has no CUDA device"
)
QUICK = ("--steps", "3", "--budget", "2", "--reward", "contrast", "--size", "64x48")


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"NO GPU TEST: install {package}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_flux().save_pretrained(place)
    return str(place)


def made(capsys, out, folder, *argv) -> tuple[float, torch.Tensor]:
    argv = ("--model", folder, *asked("a red fox"), *QUICK, *argv)
    (row,) = generate(capsys, out, *argv)["images"]
    image = torch.frombuffer(bytearray(Image.open(row["file"]).tobytes()), dtype=torch.uint8)
    return row["reward"], image.float()


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["--quantize", "bnb8"], marks=needs("bitsandbytes")),
        pytest.param(["--quantize", "bnb4"], marks=needs("bitsandbytes")),
        ["--quantize", "fp8"],
        pytest.param(["--offload", "model"], marks=needs("accelerate")),
        pytest.param(["--offload", "sequential"], marks=needs("accelerate")),
        ["--device", "cuda:0"],
        ["--vae-tiling"],
    ],
    ids=" ".join,
)
def test_ways_to_spare_a_cards_memory(capsys, tmp_path, folder, argv):
    """The run is whole, and where only the place of weights differs, so is the image."""
    usual, image = made(capsys, tmp_path / "usual", folder)
    reward, other = made(capsys, tmp_path / "spared", folder, *argv)
    assert usual == usual and reward == reward  # numbers, not NaN
    assert other.std() > 0
    if "--offload" in argv or "--device" in argv:
        assert (image - other).abs().max() <= 1


@needs("accelerate")
@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("strategy", ["flow_ttrl", "reward_gradient"])
def test_gradients_go_through_a_network_that_has_left_the_card(
    capsys, tmp_path, folder, strategy, offload
):
    """It goes when the VAE or another comes; its weights are needed for the gradient."""
    argv = ("--strategy", strategy, "--reward", "white")
    _, image = made(capsys, tmp_path / "usual", folder, *argv)
    _, other = made(capsys, tmp_path / "spared", folder, *argv, "--offload", offload)
    assert (image - other).abs().max() <= 1


@needs("ray")
def test_a_worker_with_a_card(capsys, tmp_path, folder):
    _, image = made(capsys, tmp_path / "here", folder)
    _, other = made(capsys, tmp_path / "ray", folder, "--engine", "ray", "--num-gpus", "1")
    assert (image - other).abs().max() <= 1
