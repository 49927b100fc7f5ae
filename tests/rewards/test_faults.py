"""No silent wrong score: what is not finite, and errors that belong to no image."""

import pytest
import tiny
import torch

from flow_ttrl.rewards import ANALYTIC, Reward, RewardMix, Scores, load_reward
from flow_ttrl.rewards.faults import ends_a_run
from flow_ttrl.world.rewards import WORLD_REWARDS, world_reward

NAN, INF = float("nan"), float("inf")
EVERY = [*ANALYTIC, *tiny.LEARNED, "ocr", *WORLD_REWARDS]
PROMPTS = {"ocr": 'a sign "OPEN"', "verifier": "a red circle", "scorer": "a red circle"}


@pytest.fixture(params=EVERY)
def reward(request, load) -> Reward:
    name = request.param
    return world_reward(name) if name in WORLD_REWARDS else load(name)


@pytest.fixture
def spoilt() -> torch.Tensor:
    """Five images [5, 96, 96, 3], all but the second and the last with one bad pixel or more."""
    images = torch.rand(5, 96, 96, 3, generator=torch.Generator().manual_seed(3))
    images[0, 5, 7, 1] = NAN
    images[2] = NAN
    images[3, 0, 0, 0], images[3, 1, 1, 1] = INF, -INF
    return images


def test_no_reward_scores_an_image_that_is_not_finite(reward, spoilt):
    prompts = [PROMPTS.get(reward.name, f"prompt {number}") for number in range(5)]
    scores = reward.score(spoilt, prompts)
    assert scores.isfinite().tolist() == [False, True, False, False, True]
    assert scores[[0, 2, 3]].isnan().all()
    alone = [reward.score(spoilt[k : k + 1], prompts[k : k + 1]).item() for k in (1, 4)]
    assert scores[[1, 4]].tolist() == pytest.approx(alone, abs=1e-5)
    assert reward.score(spoilt[2:4], prompts[2:4]).isnan().all()


def test_an_image_that_is_not_finite_never_wins(reward, spoilt):
    values = RewardMix(((reward, 1.0),)).score(spoilt, [PROMPTS.get(reward.name, "a red fox")])
    columns = {name: value[:, None] for name, value in values.values.items()}
    for sign in (1.0, -1.0):
        total = RewardMix(((reward, sign),)).totals(columns)[:, 0]
        assert total.isnan().tolist() == [True, False, True, True, False]
        assert set(Scores(total).ranking[:2]) == {1, 4}


def test_the_error_of_such_an_image_blames_the_image(spoilt):
    judge = RewardMix(((ANALYTIC["white"], 1.0),)).judge([""])
    judge.score(spoilt)
    assert judge.failures["white"]["images"] == 3
    assert "expected images of finite numbers, got one with NaN" in judge.failures["white"]["error"]
    with pytest.raises(ValueError, match="expected images of finite numbers.*higher precision"):
        RewardMix(((ANALYTIC["white"], 1.0),)).score(spoilt[2:3], [""])


def test_a_reference_that_is_not_finite_is_refused(models, spoilt):
    with pytest.raises(ValueError, match="expected a reference of finite numbers, got NaN"):
        load_reward("image_similarity", folders=[models], reference=spoilt[:1])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 300)])
def test_the_smallest_images_have_a_score(reward, size):
    if reward.name == "ocr" and size != (1, 1):
        pytest.skip("the engine takes ten seconds for a long strip")
    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(1))
    prompts = [PROMPTS.get(reward.name, "a red fox")] * 2
    assert reward.score(images, prompts).isfinite().all()


def test_one_pixel_has_no_contrast():
    assert ANALYTIC["contrast"].score(torch.rand(2, 1, 1, 3), [""] * 2).tolist() == [0, 0]
    leaf = torch.rand(1, 1, 1, 3, requires_grad=True)
    ANALYTIC["contrast"].score(leaf, [""]).sum().backward()
    assert leaf.grad.tolist() == torch.zeros(1, 1, 1, 3).tolist()


class Faulty(Reward):
    """Gives 1 until it has scored ``good`` images one by one, then fails with ``error``."""

    name, units, typical = "faulty", "any", (0.0, 1.0)

    def __init__(self, error: Exception, good: int = 0):
        self.error, self.good = error, good

    def _score(self, images, prompts):
        if self.good <= 0:
            raise self.error
        self.good -= 1
        return torch.ones(len(images))


def caused(message: str) -> Exception:
    """An engine's own error over one of a device."""
    error = ValueError("the engine failed")
    error.__cause__ = RuntimeError(message)
    return error


DEVICE = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate(handle)"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("Expected all tensors to be on the same device, but found cpu and cuda:0"),
    RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access"),
    OSError("(External) CUDA error(719), unspecified launch failure."),
    AssertionError("Torch not compiled with CUDA enabled"),
    NotImplementedError("no kernel for this"),
    AttributeError("'tuple' object has no attribute 'pooler_output'"),
    MemoryError(),
    caused("CUDA error: unspecified launch failure"),
    *([torch.AcceleratorError("an error", 1)] if hasattr(torch, "AcceleratorError") else []),
]


@pytest.mark.parametrize("error", DEVICE, ids=lambda error: f"{type(error).__name__}-{error}"[:60])
@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("good", [0, 2])
def test_an_error_of_the_device_or_the_program_ends_the_run_at_once(error, weight, good):
    parts = ((Faulty(error, good), weight), (ANALYTIC["white"], 1.0))
    judge = RewardMix(parts).judge([""], patience=8)
    image = torch.rand(1, 8, 8, 3)
    for _ in range(good):
        assert judge.score(image)["faulty"].tolist() == [1]
    with pytest.raises(type(error)) as caught:
        judge.score(image)
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no face found"),
        RuntimeError("no metallic hippo on a mobile device found"),
        OSError("too wide"),
    ],
)
def test_an_error_of_an_image_ends_nothing(error):
    assert not ends_a_run(error)
    judge = RewardMix(((Faulty(error), 1.0),)).judge([""], patience=1)
    assert judge.score(torch.rand(1, 8, 8, 3))["faulty"].isnan().all()


def test_a_reward_that_stops_working_ends_the_run():
    """It fails on an image that it has judged before: it is not the images that are at fault."""
    judge = RewardMix(((Faulty(RuntimeError("session closed"), 2), 1.0),)).judge([""], patience=8)
    images = torch.rand(4, 8, 8, 3)
    for number in range(2):
        judge.score(images[number : number + 1])
    with pytest.raises(RuntimeError, match="session closed"):
        judge.score(images[2:3])


def test_a_reward_that_goes_on_judging_the_first_image_goes_on():
    class Picky(Faulty):
        def _score(self, images, prompts):
            if images.mean() < 0.5:
                raise self.error
            return torch.ones(len(images))

    judge = RewardMix(((Picky(RuntimeError("too dark")), 1.0),)).judge([""])
    bright, dark = torch.full((1, 8, 8, 3), 0.9), torch.full((1, 8, 8, 3), 0.1)
    for image, judged in ((bright, True), (dark, False), (bright, True), (dark, False)):
        assert judge.score(image)["faulty"].isfinite().all() == judged
    assert judge.failures["faulty"]["images"] == 2
