"""Prompts and their files: what a line may say, where an image goes, what it carries."""

import json
from pathlib import Path

import pytest
from PIL import Image

from flow_ttrl.headless.images import prepare_folder, read_made, write_image
from flow_ttrl.headless.jobs import Job, check_apart, jobs_of

USUAL = Job("", "", 3, "blurred", (64, 48))


def of_file(folder: Path, data: bytes) -> list[Job]:
    (folder / "prompts").write_bytes(data)
    return jobs_of([], USUAL, file=folder / "prompts")


def test_a_line_says_what_is_not_as_usual(tmp_path):
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "seed": 2**63 + 1, "size": "32x16", "name": "b"},
        {"prompt": "c", "negative": None, "seed": 0},
    ]
    found = of_file(tmp_path, "\n".join(json.dumps(line) for line in lines).encode())
    assert found == [
        Job("00000_3", "a", 3, "blurred", (64, 48)),
        Job("b", "b", 2**63 + 1, "blurred", (32, 16)),
        Job("00002_0", "c", 0, None, (64, 48)),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa fox\r\n\r\na caf\xc3\xa9\r\n",
        b"a fox\n  \na caf\xc3\xa9",
        b'{"prompt": "a fox"}\n\n{"prompt": "a caf\\u00e9"}\n',
    ],
)
def test_marks_and_line_ends_of_any_system(tmp_path, data):
    assert [job.prompt for job in of_file(tmp_path, data)] == ["a fox", "a café"]


def test_a_line_is_what_ends_with_a_line_feed(tmp_path):
    """U+2028, U+0085 and the like are text, in plain lines and in JSON that is not escaped."""
    text = "one\u2028two\x85three"
    line = json.dumps({"prompt": text}, ensure_ascii=False)
    found = of_file(tmp_path, f"{text}\n{line}\n".encode())
    assert [job.prompt for job in found] == [text, text]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": 5}, "the prompt at least"),
        ({"prompt": "a", "name": 5}, "a name of letters"),
        ({"prompt": "a", "name": None}, "a name of letters"),
        ({"prompt": "a", "name": ".hidden"}, "a name of letters"),
        ({"prompt": "a", "name": "a/b"}, "a name of letters"),
        ({"prompt": "a", "name": "é" * 150}, "at most 200 bytes"),
        ({"prompt": "a", "negative": 5}, "negative to be a text"),
        ({"prompt": "a", "seed": -1}, "a whole number from 0"),
        ({"prompt": "a", "seed": True}, "a whole number from 0"),
        ({"prompt": "a", "seed": "3"}, "a whole number from 0"),
        ({"prompt": "a", "seed": 2**64}, "below 2^64"),
        ({"prompt": "a", "size": "64x50"}, "divisible by 16"),
        ({"prompt": "a", "size": 64}, "divisible by 16"),
        ({"prompt": "a", "size": 0}, "divisible by 16"),
        ({"prompt": "a", "name": "con"}, "Windows"),
        ({"prompt": "a", "name": "COM1.x"}, "Windows"),
        ({"prompt": "a", "size": [64, 64]}, "divisible by 16"),
        ({"prompt": "a", "steps": 3}, "got steps"),
    ],
)
def test_a_wrong_line_is_told_by_its_number(tmp_path, line, told):
    with pytest.raises(ValueError, match="line 2: expected") as raised:
        of_file(tmp_path, b"a fox\n" + json.dumps(line).encode())
    assert told in str(raised.value)


def test_seeds_follow_each_other_and_end_with_torchs():
    assert [job.seed for job in jobs_of(["a"], USUAL, images=3)] == [3, 4, 5]
    with pytest.raises(ValueError, match="below 2"):
        jobs_of(["a"], Job("", "", 2**64 - 2), images=3)


def test_names_in_any_script(tmp_path):
    names = ["café", "cafe\u0301 2", "हिन्दी", "日本", "fox_2.5"]
    lines = "\n".join(json.dumps({"prompt": "a", "name": name}) for name in names)
    assert [job.name for job in of_file(tmp_path, lines.encode())] == names


@pytest.mark.parametrize("names", [["a", "b", "a"], ["Fox", "fox"], ["café", "cafe\u0301"]])
def test_no_two_files_are_the_same(names):
    with pytest.raises(ValueError, match="a file of its own"):
        check_apart(names)
    check_apart(["fox", "fox_plain", "fox 2"])


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", "a\\..\\b", "", "a//b", "..", 5])
def test_an_images_own_name_leads_nowhere_else(name):
    given = Job("a", "a fox", 1).to_json() | {"name": name}
    with pytest.raises(ValueError, match="a name of letters"):
        Job.from_json(given)
    assert Job.from_json(given | {"name": "00000/samples/0001"}).name == "00000/samples/0001"


def test_an_image_carries_what_made_it_unharmed(tmp_path):
    job = Job("a", 'two lines\nof "text"\u2028 \U0001f98a \\ %s', 2**64 - 1, "é", (64, 48))
    write_image(tmp_path / "a.png", Image.new("RGB", (64, 48)), {"job": job.to_json()})
    assert Job.from_json(read_made(tmp_path / "a.png")["job"]) == job
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_write_that_is_cut_leaves_nothing(tmp_path, monkeypatch, error):
    def cut(self, opened, *args, **kwargs):
        opened.write(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_image(tmp_path / "a.png", Image.new("RGB", (64, 48)), {})
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_the_first_image(tmp_path, monkeypatch):
    free = 64 * 48 * 2 * 10
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free}))
    prepare_folder(tmp_path, 10, 64 * 48)
    with pytest.raises(OSError, match="room in"):
        prepare_folder(tmp_path, 11, 64 * 48)
