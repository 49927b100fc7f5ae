"""``flow-ttrl geneval``: the layout that its evaluator reads, the table of results."""

import json
import re

import pytest
from PIL import Image

from flow_ttrl.cli import main
from flow_ttrl.headless.images import read_made

LINES = [
    {
        "tag": "single_object",
        "include": [{"class": "circle", "count": 1}],
        "prompt": "a red circle",
    },
    {"tag": "colors", "include": [{"class": "square", "color": "blue"}], "prompt": "a blue square"},
]


def run(capsys, folder, *argv) -> str:
    metadata = folder / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(line) for line in LINES), "utf-8")
    common = ("--model", "tiny-flux", "--steps", "3", "--budget", "2", "--images", "2")
    common += ("--metadata", str(metadata), "--out", str(folder / "out"), "--device", "cpu")
    assert main(["geneval", *common, *argv]) == 0
    return capsys.readouterr().out


def test_images_lie_as_the_evaluator_reads_them(capsys, tmp_path):
    """As evaluate_images.py walks: numbered folders, metadata.jsonl, samples/ of digits .png."""
    methods = json.loads(run(capsys, tmp_path, "--json"))["methods"]
    assert list(methods) == ["plain", "best_of_n", "steered"]
    for method in methods:
        folders = sorted(p for p in (tmp_path / "out" / method).iterdir() if p.name.isdigit())
        assert len(folders) == len(LINES)
        for folder, line in zip(folders, LINES, strict=True):
            (told,) = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
            assert json.loads(told) == line
            names = [p.name for p in (folder / "samples").iterdir()]
            assert sorted(names) == ["0000.png", "0001.png"]
            assert all(re.match(r"\d+\.png$", name) for name in names)
            assert Image.open(folder / "samples" / "0000.png").size == (96, 96)
    assert [methods[name]["times_plain"] for name in methods] == [1, 2, 2]
    assert methods["best_of_n"]["reward"] >= methods["plain"]["reward"]


@pytest.mark.slow
def test_the_table_of_what_the_evaluator_found(capsys, tmp_path):
    printed = run(capsys, tmp_path)
    assert printed.count("evaluate_images.py") == 3
    results = [("single_object", True), ("single_object", False), ("colors", True)]
    lines = [json.dumps({"tag": tag, "correct": right}) for tag, right in [*results, results[-1]]]
    evaluated = tmp_path / "out" / "steered" / "results.jsonl"
    evaluated.write_text("\n".join(lines[:3]), "utf-8")  # of a run before, with fewer images
    assert json.loads(run(capsys, tmp_path, "--json"))["methods"]["steered"]["geneval"] is None
    evaluated.write_text("\n".join(lines), "utf-8")
    found = json.loads(run(capsys, tmp_path, "--json"))["methods"]
    assert found["steered"]["geneval"] == {"single_object": 0.5, "colors": 1.0, "overall": 0.75}
    assert found["plain"]["geneval"] is None
    printed = run(capsys, tmp_path)
    assert re.search(r"steered .* 50\.0% .*100\.0% .*75\.0%", printed)
    assert printed.count("evaluate_images.py") == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1: expected JSON"),
        ('{"tag": "colors"}', "line 1: expected tag"),
        ("", "got none"),
    ],
)
def test_metadata_that_is_not_genevals(capsys, tmp_path, text, told):
    (tmp_path / "metadata").write_text(text)
    argv = ["geneval", "--model", "tiny-flux", "--metadata", str(tmp_path / "metadata")]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert main([*argv[:4], str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "evaluation_metadata.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_of_a_longer_run_are_not_judged_along(capsys, tmp_path):
    sample = tmp_path / "out" / "plain" / "00001" / "samples" / "0002.png"
    sample.parent.mkdir(parents=True)
    sample.write_bytes(b"")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(line) for line in LINES), "utf-8-sig")
    argv = ["geneval", "--model", "tiny-flux", "--metadata", str(metadata)]
    argv += ["--out", str(tmp_path / "out"), "--images", "2"]
    assert main(argv) == 2
    assert "0002.png" in capsys.readouterr().err
    assert main([*argv, "--keep-better"]) == 2
    assert "without --keep-better" in capsys.readouterr().err


def test_every_methods_folder_is_looked_at_before_the_first_image(capsys, tmp_path):
    """Names that the evaluator does not read are nobody's business."""
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(line) for line in LINES), "utf-8")
    samples = tmp_path / "out" / "best_of_n" / "00000" / "samples"
    samples.mkdir(parents=True)
    for name in ("grid.png", "._0000.png", "0000 copy.png"):
        (samples / name).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(samples / "0000.png")
    argv = ["geneval", "--model", "tiny-flux", "--metadata", str(metadata), "--steps", "3"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--images", "1"]) == 2
    assert "0000.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "plain").exists()


def test_candidates_at_once_are_every_methods(capsys, tmp_path):
    methods = json.loads(run(capsys, tmp_path, "--json", "--micro-batch", "1"))["methods"]
    for method in methods:
        image = tmp_path / "out" / method / "00000" / "samples" / "0000.png"
        assert read_made(image)["recipe"]["settings"]["micro_batch"] == 1
