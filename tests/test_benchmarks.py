"""The yardstick: rows that say what happened, resumed where they were left, figures that add up."""

import json

import pytest
import search_quality
import torch
from octaves import octave_energies
from quality_report import compared, difference, figure, interval, table
from search_quality import Cell, run_cell, spread
from worlds import TinyWorld

from flow_ttrl.sampling import make_settings, plan, shifted_sigmas


class Inline:
    """A pool of no other process."""

    imap_unordered = staticmethod(lambda function, jobs: [function(job) for job in reversed(jobs)])


def cell(strategy: str, budget: float, **changes) -> Cell:
    given = {"world": "tiny", "arch": "flux", "driver": "scorer", "steps": 4, "n": 12, "seed": 3}
    return Cell(**given | {"half": "dev", "strategy": strategy, "budget": budget} | changes)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    cells = [cell("best_of_n", 1.0), cell("best_of_n", 3.0), cell("steered", 4.0)]
    return [run_cell(c, Inline) for c in cells]


def test_a_row_says_what_was_spent_and_won(rows):
    for row in rows:
        planned = plan(
            make_settings(row["strategy"], budget=row["budget"]), shifted_sigmas(4).tolist()
        )
        assert row["calls"] == planned.cost.calls <= row["budget"] * 4
        assert row["forwards"] == row["calls"]
        assert row["calls_and_decodes"] == pytest.approx(
            row["calls"] + row["decodes"] / 3, abs=0.01
        )
        assert len(row["hits"]) == len(row["rewards"]) == 12
        assert row["accuracy"] == pytest.approx(row["hits"].count("1") / 12, abs=1e-4)
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]


def test_rows_are_compared_with_the_plain_sample_of_their_starts(rows):
    plain, best, ours = compared(rows)
    assert "wins" not in plain
    for row in (best, ours):
        assert row["wins"] > 0.5
        assert row["driver_reward"] > plain["driver_reward"]
        assert all(0.5 < ratio < 2 for ratio in row["typicality"])
    assert best["best_of_n_wins"] == pytest.approx(2 / 3, abs=1e-4)
    assert min(a - b for a, b in zip(best["rewards"], plain["rewards"], strict=True)) > -1e-4


def test_results_do_not_depend_on_how_tasks_are_batched(rows, monkeypatch):
    monkeypatch.setattr(search_quality, "BATCH", 5)
    again = run_cell(cell("steered", 4.0), Inline)
    assert again["hits"] == rows[2]["hits"]
    assert again["rewards"] == pytest.approx(rows[2]["rewards"], abs=2e-3)


def test_a_world_from_outside(rows):
    outside = run_cell(cell("best_of_n", 1.0, world="worlds:TinyWorld"), Inline)
    assert outside["hits"] == rows[0]["hits"]
    assert TinyWorld.name == "tiny"


def test_the_table_and_the_figure_show_every_row(rows, tmp_path):
    lines = table(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    figure([row | {"steps": 20} for row in rows], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_diversity_is_over_the_starts_of_a_task():
    """Plain sampling's spread is twice the variance of a pixel; a task's own images alone count."""
    images = torch.randn(6, 500, 40, generator=torch.Generator().manual_seed(0))
    apart = images + 100 * torch.arange(6)[:, None, None]
    torch.testing.assert_close(spread(apart), torch.full((6,), 2**0.5), atol=0.02, rtol=0)
    two = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    torch.testing.assert_close(spread(two), torch.tensor([12.5**0.5]))
    assert spread(images[:, :1]).tolist() == [0.0] * 6
    plain = run_cell(cell("best_of_n", 1.0, n=8, repeats=4), Inline)
    same = run_cell(cell("best_of_n", 1.0, n=8, repeats=2), Inline)
    assert plain["spread"] != same["spread"]
    assert compared([plain, plain | {"budget": 2.0}])[1]["diversity"] == 1


def test_a_finished_cell_is_not_run_again(rows, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    search_quality._write(out, [rows[0], rows[2]])
    argv = "--arch flux --driver scorer --steps 4 --prompts 12 --seed 3 --strategies steered"
    argv += f" --budgets 4 --json --out {out}"
    monkeypatch.setattr("sys.argv", ["search_quality.py", *argv.split()])
    monkeypatch.setattr(search_quality, "run_cell", lambda *_: pytest.fail("ran a known cell"))
    search_quality.main()
    shown = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in shown] == ["best_of_n", "steered"]


def test_intervals_hold_what_they_should():
    """95% intervals of a known mean hold it about so often."""
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        data = (torch.rand(80, generator=generator) < 0.6).double().tolist()
        low, high = interval(data, resamples=500)
        held += low <= 0.6 <= high
    assert 87 <= held <= 100
    # starts of one task are no tasks of their own
    assert interval([value for value in data for _ in range(5)], repeats=5) == interval(data)
    row = {"hits": "1101", "rewards": [], "repeats": 1}
    assert difference(row, {"hits": "0101", "rewards": []})[0] == 0.25


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (15, 21)])
def test_white_noise_is_as_energetic_in_every_octave(size):
    noise = torch.randn(200, 4, *size, generator=torch.Generator().manual_seed(1))
    energies = octave_energies(noise).mean(0)
    torch.testing.assert_close(energies, torch.ones_like(energies), atol=0.05, rtol=0)


def test_a_wave_is_in_the_octave_of_its_frequency():
    """In cycles along the longer side, whichever way it runs."""
    for height, width in ((32, 32), (24, 48)):
        across = torch.cos(2 * torch.pi * 6 * torch.arange(width) / width).expand(height, width)
        energies = octave_energies(across.expand(1, 1, -1, -1))[0]
        assert energies.argmax() == 2  # 4..8 cycles
        assert energies[2] > 0.99 * energies.sum()
