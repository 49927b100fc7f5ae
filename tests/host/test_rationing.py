"""Short of memory, and under hooks that follow the level (``scripts/rationing.py`` measures)."""

import pytest

CLOSE = 5e-3


@pytest.fixture(scope="module")
def measured(in_host) -> dict:
    return in_host("rationing.py")


def test_the_host_is_told_what_will_run(measured):
    """Rows of a single image; a batch goes item by item, as it does without a search."""
    (alone, trio, two) = (shape[0] for shape in measured["memory"]["reserved"])
    assert alone > 100
    assert trio >= 3
    assert two >= 2
    assert trio < alone


@pytest.mark.parametrize("what", ["model", "decode", "reward"])
def test_rows_are_halved_where_memory_runs_out(measured, what):
    told = measured["memory"][what]
    assert told.pop("far") < CLOSE
    assert list(told) == [what]
    assert 1 <= told[what] <= 4


def test_tiles_come_after_single_images(measured):
    told = measured["memory"]["tiles"]
    assert told["decode"] == 0
    assert told["far"] < 1


@pytest.mark.parametrize("what", ["model", "decode"])
def test_nothing_left_to_halve_is_an_error_that_says_what_to_lower(measured, what):
    error = measured["memory"]["errors"][what]
    assert "lower the resolution" in error
    assert "--lowvram" in error


def test_the_host_is_as_before(measured):
    assert measured["memory"]["stock_as_before"]
    assert measured["memory"]["same_after"] == 0


def test_candidates_do_not_walk_through_more_rows_of_conditioning(measured):
    rows = measured["rows"]
    assert rows["off_is_stock"]
    assert rows["rows_at_once"] == 1
    assert rows["far"] < CLOSE


def test_every_velocity_has_its_own_levels_hooks(measured):
    hooks = measured["hooks"]
    assert hooks["off_is_stock"]
    assert hooks["baseline_far"] < 1e-4
    assert hooks["compared"] == hooks["asked"] > 20
    assert hooks["levels"] > 4
    assert hooks["matters"] > 0.01
    assert hooks["wrong"] < 1e-4


def test_exact_gradients_are_refused_where_hooks_swap_weights(measured):
    assert "jacobian_free" in measured["hooks"]["exact_refused"]
