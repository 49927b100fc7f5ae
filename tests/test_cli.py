"""The command line: one JSON object on standard output, true figures, clear errors."""

import json

import pytest

from flow_ttrl.cli import main


def answer(capsys, *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arch", ["sd3", "flux"])
@pytest.mark.parametrize("preset", ["balanced", "paper"])
def test_estimate_is_what_a_demo_counts(capsys, tmp_path, preset, arch):
    common = ("--preset", preset, "--steps", "6", "--arch", arch)
    planned = answer(capsys, "estimate", *common)
    made = answer(capsys, "demo", *common, "--out", str(tmp_path))
    keys = ("model_calls", "backwards", "decodes", "rewards", "forwards", "times_plain")
    assert {key: made["cost"][key] for key in keys} == {key: planned[key] for key in keys}


def test_demo_writes_its_files(capsys, tmp_path):
    made = answer(capsys, "demo", "--steps", "4", "--out", str(tmp_path), "--seed", "2")
    assert {"reward", "accurate"} <= made["plain"].keys()
    assert {"reward", "accurate"} <= made["search"].keys()
    assert made["seconds"] > 0
    for path in made["files"]:
        assert (tmp_path / path).stat().st_size > 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["settings"]["preset"] == "balanced"
    assert report["seed"] == 2
    assert report["search_steps"]


def test_demo_is_fixed_by_its_seed(capsys, tmp_path):
    argv = ("demo", "--steps", "4", "--prompt", "a red circle", "--out", str(tmp_path))
    one, same, other = (answer(capsys, *argv, "--seed", seed) for seed in "112")
    assert one["search"] == same["search"]
    assert one["search"] != other["search"]


def test_evaluate_prints_rates(capsys):
    made = answer(capsys, "demo", "--evaluate", "4", "--steps", "4", "--half", "dev")
    assert made["prompts"] == 4
    for method in ("plain", "best_of_n", "search"):
        assert {"accuracy", "reward", "scorer"} <= made[method].keys()
    assert made["cost"]["model_calls"] > 0


@pytest.mark.parametrize(
    "argv",
    [
        ["demo", "--prompt", "a cat on a mat"],
    ],
)
def test_errors_say_what_was_expected(capsys, argv):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert "expected" in printed.err
    assert printed.out == ""
