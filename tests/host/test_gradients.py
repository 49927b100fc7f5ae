"""Gradients through the host's own networks (``scripts/gradients.py`` measures)."""

import pytest

MODELS = [
    f"{name}{form}" for name in ("sd3", "flux", "qwen_image", "z_image") for form in ("", "_float8")
]


@pytest.fixture(scope="module")
def measured(in_host) -> dict:
    return in_host("gradients.py")


@pytest.mark.parametrize("model", MODELS)
def test_gradient_agrees_with_finite_differences(measured, model):
    assert measured[model]["finite_difference_error"] < 1e-3


def test_both_prompts_share_a_batch(measured):
    """Two latents, and with guidance two prompts: what the finite differences are of."""
    assert measured["sd3"]["batch"] == measured["qwen_image"]["batch"] == 4
    assert measured["flux"]["batch"] == measured["z_image"]["batch"] == 2


@pytest.mark.parametrize("model", MODELS)
def test_gradient_passes_through_attention(measured, model):
    assert measured[model]["attention_share"] > 0.01


@pytest.mark.parametrize("model", MODELS)
def test_values_are_those_of_inference(measured, model):
    assert measured[model]["forward_equal"]
    assert measured[model]["default_attention_difference"] < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_candidates_are_rolled_out_between_forward_and_backward(measured, model):
    assert measured[model]["rollout_equal"]
    assert measured[model]["rollout_without_graph"]
    assert measured[model]["gradient_after_rollout_equal"]


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_left_as_it_was(measured, model):
    assert measured[model]["modules_unchanged"]
    assert measured[model]["forward_after_equal"]
    assert measured[model]["unchanged_after_errors"]


@pytest.mark.parametrize("model", MODELS)
def test_streamed_weights_leave_the_gradient_alone(measured, model):
    """Plain autograd and checkpoints without frozen layers are wrong there, without an error."""
    assert measured[model]["streaming_forward_equal"]
    assert measured[model]["streaming_error"] < 1e-6
    assert measured[model]["streaming_error_plain"] > 0.1
    assert measured[model]["streaming_error_checkpoints_only"] > 0.1


@pytest.mark.parametrize("model", MODELS)
def test_a_replayed_block_sees_its_own_number(measured, model):
    assert measured[model]["block_number_error"] < 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_little_is_kept_for_the_backward_pass(measured, model):
    assert measured[model]["saved_bytes"] < 0.25 * measured[model]["saved_bytes_plain"]


@pytest.mark.parametrize("model", MODELS)
def test_the_pack_may_be_loaded_twice(measured, model):
    assert measured[model]["second_load_equal"]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_on_several_gpus_is_refused(measured, model):
    assert measured[model]["multigpu_refused"]


def test_rope_formulas(measured):
    assert measured["rope"]
    assert max(measured["rope"].values()) < 1e-6
