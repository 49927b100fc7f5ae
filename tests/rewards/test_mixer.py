"""Mixing: modes, what is missing, what fails, and what a run is told of it."""

import logging

import pytest
import torch

from flow_ttrl.rewards import ANALYTIC, MODES, Reward, RewardMix

NAN, INF = float("nan"), float("inf")


class Told(Reward):
    """Gives out values that it was told beforehand, image by image of a run."""

    units, typical = "any", (0.0, 1.0)

    def __init__(self, name: str, values: list[float]):
        self.name, self.values = name, values

    def _score(self, images, prompts):
        return torch.tensor([self.values[int(i)] for i in images[:, 0, 0, 0] * 100])


class Failing(Told):
    """Fails on every image whose value is None."""

    def _score(self, images, prompts):
        values = [self.values[int(i)] for i in images[:, 0, 0, 0] * 100]
        if None in values:
            raise RuntimeError("no face found")
        return torch.tensor(values)


def numbered(count: int) -> torch.Tensor:
    """Images that carry their number."""
    return ((torch.arange(count) + 0.5) / 100).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)


def totals(mode: str, *rewards: tuple[list[float], float]) -> list[float]:
    parts = tuple((Told(str(k), v), w) for k, (v, w) in enumerate(rewards))
    return RewardMix(parts, mode).score(numbered(len(rewards[0][0])), [""]).total.tolist()


def test_raw_is_the_weighted_sum_and_keeps_each_value():
    mix = RewardMix(((ANALYTIC["white"], 2.0), (ANALYTIC["contrast"], -0.5)))
    scores = mix.score(torch.rand(3, 16, 16, 3), ["any"])
    expected = 2 * scores.values["white"] - 0.5 * scores.values["contrast"]
    assert torch.equal(scores.total, expected)


def test_weight_zero_is_measured_and_does_not_drive():
    mix = RewardMix(((ANALYTIC["white"], 1.0), (ANALYTIC["contrast"], 0.0)))
    scores = mix.score(torch.rand(3, 16, 16, 3), [""])
    assert torch.equal(scores.total, scores.values["white"])
    assert set(scores.values) == {"white", "contrast"}


def test_standardised_does_not_care_for_units():
    small, large = [0.20, 0.21, 0.24, 0.23], [9.0, 1.0, 4.0, 4.0]
    plain = totals("standardised", (small, 1), (large, 1))
    scaled = totals("standardised", ([1000 * v - 7 for v in small], 1), (large, 1))
    assert scaled == pytest.approx(plain, abs=1e-3)
    alone = torch.tensor(totals("standardised", (small, 1)))
    assert alone.mean() == pytest.approx(0, abs=1e-6)
    assert alone.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_rank_does_not_care_for_the_scale_and_halves_ties():
    assert totals("rank", ([1.0, 5.0, 2.0, 100.0], 1)) == pytest.approx([0, 2 / 3, 1 / 3, 1])
    assert totals("rank", ([1.0, 5.0, 5.0], 2)) == pytest.approx([0, 1.5, 1.5])
    assert totals("rank", ([3.0, 1.0], 1), ([0.0, 7.0], 0.5)) == pytest.approx([1, 0.5])


@pytest.mark.parametrize(("mode", "expected"), [("raw", 4.0), ("standardised", 0.0), ("rank", 0.5)])
def test_equal_scores_make_no_difference(mode, expected):
    assert totals(mode, ([4.0] * 3, 1)) == pytest.approx([expected] * 3)
    with_other = totals(mode, ([4.0] * 3, 1), ([1.0, 2.0, 3.0], 1))
    assert with_other == sorted(with_other)
    assert len(set(with_other)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_one_image_alone_has_a_total(mode):
    (total,) = totals(mode, ([4.0], 1))
    assert total == {"raw": 4.0, "standardised": 0.0, "rank": 0.5}[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_counts_as_average_there(mode, bad):
    """Neither best nor worst: the same as the mean of the others."""
    got = totals(mode, ([1.0, bad, 3.0], 1), ([5.0, 5.0, 5.0], 1))
    assert got[0] < got[1] < got[2]
    assert got[1] == pytest.approx((got[0] + got[2]) / 2)
    other = totals(mode, ([1.0, bad, 3.0], 1), ([0.0, 50.0, 0.0], 1))
    assert max(other) == other[1]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_that_nothing_can_judge_has_no_total(mode):
    mix = RewardMix(((Told("a", []), 1.0), (Told("b", []), 1.0), (Told("c", []), 0.0)), mode)
    values = {"a": [1.0, NAN], "b": [INF, NAN], "c": [1.0, 1.0]}
    got = mix.totals({name: torch.tensor(value)[:, None] for name, value in values.items()})
    assert got[:, 0].isfinite().tolist() == [True, False]


@pytest.mark.parametrize("mode", MODES)
def test_columns_are_compared_apart(mode):
    """Totals [K, B]: what one item of the batch scores changes nothing for another."""
    mix = RewardMix(((Told("a", []), 1.0),), mode)
    first = torch.tensor([[1.0], [2.0], [4.0]])
    other = torch.tensor([[9.0], [NAN], [-3.0]])
    both = mix.totals({"a": torch.cat([first, other], 1)})
    assert torch.equal(both[:, :1], mix.totals({"a": first}))


@pytest.mark.parametrize("mode", MODES)
def test_all_that_a_run_has_seen_counts(mode):
    mix = RewardMix(((Told("a", []), 1.0),), mode)
    values, seen = torch.tensor([[5.0], [6.0]]), torch.tensor([[5.0], [6.0], [0.0], [1.0]])
    got = mix.totals({"a": values}, {"a": seen})[:, 0].tolist()
    expected = {"raw": [5, 6], "rank": [2 / 3, 1], "standardised": [(5 - 3) / 2.5495, 3 / 2.5495]}
    assert got == pytest.approx(expected[mode], abs=1e-4)


def test_a_failing_image_does_not_end_the_run(caplog):
    failing = Failing("face", [0.1, None, 0.4])
    judge = RewardMix(((failing, 1.0), (Told("other", [1.0, 2.0, 3.0]), 1.0))).judge([""])
    with caplog.at_level(logging.WARNING, logger="flow_ttrl"):
        values = judge.score(numbered(3))
        judge.score(numbered(3))
    assert values["face"].isnan().tolist() == [False, True, False]
    columns = {name: value[:, None] for name, value in values.items()}
    assert judge.totals(columns, columns)[:, 0].tolist() == pytest.approx([1.1, 2.25, 3.4])
    assert judge.report() == {
        "mode": "raw",
        "weights": {"face": 1.0, "other": 1.0},
        "prompts": [""],
        "details": {},
        "failures": {"face": {"images": 2, "error": "RuntimeError: no face found"}},
    }
    assert len(caplog.records) == 1
    assert "no face found" in caplog.text


def test_a_call_of_one_failing_image_does_not_end_a_run_that_has_begun():
    failing = Failing("face", [0.1, None])
    judge = RewardMix(((failing, 1.0),)).judge([""])
    judge.score(numbered(1))
    assert judge.score(numbered(2)[1:])["face"].isnan().all()


def test_a_reward_that_never_works_ends_the_run_at_once():
    with pytest.raises(RuntimeError, match="no face found"):
        RewardMix(((Failing("face", [None, None]), 1.0),)).score(numbered(2), [""])


def test_a_reward_that_is_never_finite_ends_the_run():
    with pytest.raises(ValueError, match="expected finite scores from 'a', got nan; .*damaged"):
        RewardMix(((Told("a", [NAN, NAN]), 1.0),)).score(numbered(2), [""])


def test_a_run_is_patient_with_the_first_images():
    """Whether a failing image ends a run does not hang on its being the first."""
    judge = RewardMix(((Failing("face", [None, None, 0.4]), 1.0),)).judge([""], patience=2)
    for number in range(3):
        judge.score(numbered(3)[number : number + 1])
    assert judge.failures["face"]["images"] == 2
    judge = RewardMix(((Failing("face", [None] * 3), 1.0),)).judge([""], patience=2)
    judge.score(numbered(2))
    with pytest.raises(RuntimeError, match="no face found"):
        judge.score(numbered(3)[2:])


def test_a_reward_that_is_only_measured_never_ends_a_run():
    parts = ((Told("a", [1.0, 2.0]), 1.0), (Failing("face", [None, None]), 0.0))
    scores = RewardMix(parts).score(numbered(2), [""])
    assert scores.total.tolist() == [1, 2]
    assert scores.values["face"].isnan().all()


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no memory left: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_not_hidden(error):
    class Large(Told):
        def _score(self, images, prompts):
            if len(images) > 1:
                raise error
            return torch.zeros(1)

    judge = RewardMix(((Large("large", []), 1.0),)).judge([""])
    judge.score(numbered(1))
    with pytest.raises(type(error)):
        judge.score(numbered(2))


def test_an_empty_prompt_is_told(caplog):
    class Reader(Told):
        needs_prompt = True

    with caplog.at_level(logging.WARNING, logger="flow_ttrl"):
        RewardMix(((Reader("reader", [1.0]), 1.0),)).judge([" "])
    assert "reader judges by the prompt, and there is an empty one" in caplog.text


def test_a_wrong_number_of_scores_is_refused():
    class Short(Told):
        def _score(self, images, prompts):
            return torch.zeros(1)

    with pytest.raises(ValueError, match="expected 2 scores from 'short', got"):
        RewardMix(((Short("short", []), 1.0),)).score(numbered(2), [""])


def test_prompts_go_round():
    class Asked(Told):
        def _score(self, images, prompts):
            self.prompts = prompts
            return torch.zeros(len(images))

    reward = Asked("asked", [])
    RewardMix(((reward, 1.0),)).score(numbered(5), ["a", "b"])
    assert reward.prompts == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("parts", "mode"),
    [
        ((), "raw"),
        (((ANALYTIC["white"], 0.0),), "raw"),
        (((ANALYTIC["white"], NAN),), "raw"),
        (((ANALYTIC["white"], 1.0),), "average"),
    ],
)
def test_bad_mixes_are_refused(parts, mode):
    with pytest.raises(ValueError, match="expected .*got"):
        RewardMix(parts, mode)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(0, 8, 8, 3),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        "image",
    ],
)
def test_bad_images_are_refused(bad):
    with pytest.raises(ValueError, match="expected .*got"):
        RewardMix(((ANALYTIC["white"], 1.0),)).score(bad, [""])


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        RewardMix(((ANALYTIC["white"], 1.0),)).judge([])


def test_several_of_one_kind_are_told_apart():
    """Each by its own name, with its own weight and its own failures."""

    one, two, bad = (Told("told", [value]) for value in (1.0, 10.0, NAN))
    mix = RewardMix(((one, 1.0), (ANALYTIC["white"], 0.0), (two, 2.0), (bad, 0.5)))
    assert mix.names == ["told", "white", "told_2", "told_3"]
    judge = mix.judge([""])
    judge.patience = 9
    values = judge.score(numbered(1))
    assert values["told_2"].tolist() == [10.0]
    assert mix.totals({n: v[:, None] for n, v in values.items()}).tolist() == [[21.0]]
    assert list(judge.report()["failures"]) == ["told_3"]
    judge.begin()
    assert judge.report()["failures"] == {}
