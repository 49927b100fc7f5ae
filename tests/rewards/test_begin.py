"""The first real score: what is recommended, and files of ComfyUI's that serve as they are."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from flow_ttrl.cli import main
from flow_ttrl.rewards import CATALOGUE, load_reward
from flow_ttrl.rewards.download import download
from flow_ttrl.rewards.files import HOST_FOLDER, Twin, checksum
from flow_ttrl.rewards.networks import on_device
from flow_ttrl.rewards.recommend import PEAKS, free_memory, recommend

MUCH = 1e12


def place(folder, name, *numbers):
    """Files of a reward by their names, each of one byte."""
    files = CATALOGUE[name].files
    for number in numbers or range(len(files)):
        path = folder / files[number].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")


def test_what_is_there_comes_first(tmp_path):
    assert recommend([tmp_path], MUCH, MUCH).reward == "imagereward"
    place(tmp_path, "clipscore")
    found = recommend([tmp_path], MUCH, 0)
    assert (found.reward, found.why) == ("clipscore", "it is ready")
    assert found.command.endswith("--reward clipscore")
    place(tmp_path, "hps")
    assert recommend([tmp_path], MUCH, MUCH).reward == "hps"
    assert recommend([tmp_path], 6.9e9, MUCH).reward == "clipscore"


def test_what_lacks_next_to_nothing_comes_before_a_large_download(tmp_path):
    place(tmp_path, "aesthetic_v2_5", 1)
    found = recommend([tmp_path], MUCH, MUCH)
    assert found.reward == "aesthetic_v2_5"
    assert found.why == "3 MB to fetch, 4,300 MB of memory at most"
    assert found.command == "flow-ttrl rewards --download aesthetic_v2_5"


@pytest.mark.parametrize(
    ("memory", "disk", "reward"),
    [
        (MUCH, MUCH, "imagereward"),
        (4e9, MUCH, "clipscore"),
        (3e9, MUCH, None),
        (MUCH, 2.75e9, "clipscore"),
        (MUCH, 2e9, None),
        (4e9, 2.75e9, "clipscore"),
    ],
)
def test_what_fits_memory_and_disk(tmp_path, memory, disk, reward):
    found = recommend([tmp_path], memory, disk)
    assert found.reward == reward
    assert ("no learned reward fits" in found.why) == (reward is None)


def test_this_machines_memory_and_disk_are_asked(tmp_path):
    assert 1e8 < free_memory() < 1e14
    assert recommend([tmp_path / "not" / "there"]).command


def test_every_learned_reward_has_a_place():
    unranked = {"hps_v2", "image_similarity"}  # a forerunner; one that needs a reference
    assert set(PEAKS) | unranked == set(tiny.LEARNED)


def test_the_command_line_recommends(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOW_TTRL_MODELS", str(tmp_path))
    place(tmp_path, "clipscore")
    assert main(["rewards", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["recommended"]
    assert told == recommend([tmp_path]).report()
    assert main(["rewards"]) == 0
    assert f"to begin with: {told['reward']} ({told['why']})" in capsys.readouterr().out


@pytest.fixture
def comfy(models, tmp_path):
    """Folders of a ComfyUI whose clip_vision holds the towers under names of its users'."""
    own, host = tmp_path / "reward_models", tmp_path / HOST_FOLDER
    for folder in (own, host / "other"):
        folder.mkdir(parents=True)
    clip = load_file(models / "clip-vit-large-patch14" / "model.safetensors")
    save_file(clip, host / "vit_l.safetensors")
    siglip = load_file(models / "siglip-so400m-patch14-384" / "model.safetensors")
    vision = {k: v.half() for k, v in siglip.items() if k.startswith("vision_model.")}
    save_file(vision, host / "other" / "sigclip.safetensors")
    for head in models.glob("*.pth"):
        (own / head.name).write_bytes(head.read_bytes())
    return [own, host]


def known(monkeypatch, name, number, place, **wrong):
    """Makes ``place`` the twin of a file of the reward's."""
    twin = Twin(**{"size": place.stat().st_size, "sha256": checksum(place)} | wrong)
    files = list(CATALOGUE[name].files)
    files[number] = replace(files[number], twins=(twin,))
    monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], files=tuple(files)))


@pytest.fixture
def small(monkeypatch):
    """Towers of the tiny files' sizes, which no config beside a single file tells of."""
    from transformers import SiglipConfig

    from flow_ttrl.rewards import aesthetic, clip

    vision = {**tiny._TOWER, "image_size": 56, "patch_size": 14}
    monkeypatch.setattr(clip, "VIT_L_14", tiny.CLIP)
    monkeypatch.setattr(
        aesthetic, "SIGLIP_SO400M", SiglipConfig(vision_config=vision).vision_config.to_dict()
    )


@pytest.mark.parametrize(
    ("name", "number", "file"),
    [
        ("clipscore", 0, "vit_l.safetensors"),
        ("aesthetic", 1, "vit_l.safetensors"),
        ("image_similarity", 0, "vit_l.safetensors"),
        ("aesthetic_v2_5", 1, "other/sigclip.safetensors"),
    ],
)
def test_a_tower_in_clip_vision_serves(
    monkeypatch, models, images, comfy, small, name, number, file
):
    options = {"reference": images[:1], "place": on_device("cpu", torch.float16)}
    with pytest.raises(FileNotFoundError):
        load_reward(name, folders=comfy, **options)
    known(monkeypatch, name, number, comfy[1] / file)
    assert CATALOGUE[name].lacks(comfy) == []
    found = load_reward(name, folders=comfy, **options)
    expected = load_reward(name, folders=[models], **options).score(images, ["a red fox"] * 3)
    assert torch.equal(found.score(images, ["a red fox"] * 3), expected)
    assert not any(str(comfy[1]) in note for note in found.notes)
    if "aesthetic" not in name:  # their tiny heads are not the official ones
        assert download(name, comfy[0], others=comfy[1:]) == []


def test_a_file_that_is_a_twin_by_its_size_alone_is_refused(monkeypatch, comfy, small):
    known(monkeypatch, "clipscore", 0, comfy[1] / "vit_l.safetensors", sha256="0" * 64)
    with pytest.raises(ValueError, match="expected .*vit_l.safetensors to be the known file of"):
        load_reward("clipscore", folders=comfy)


def test_a_name_says_nothing_in_clip_vision(monkeypatch, comfy):
    """A vision tower of another size, under the very name that the whole model may have."""
    (comfy[1] / "vit_l.safetensors").rename(comfy[1] / "clip-vit-large-patch14.safetensors")
    assert CATALOGUE["clipscore"].missing(comfy) == list(CATALOGUE["clipscore"].files)


def test_clips_twin_is_the_official_file():
    (file,) = CATALOGUE["clipscore"].files
    assert file.twins == (Twin(file.size, file.sha256),)
