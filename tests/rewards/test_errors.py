"""Bad files and bad inputs: each error says what was expected, what came, and the mend."""

import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from flow_ttrl.rewards import CATALOGUE, RewardMix, load_reward
from flow_ttrl.rewards.checkpoints import weights_file
from flow_ttrl.rewards.networks import on_device


@pytest.fixture
def own(models, tmp_path):
    """A copy of the models folder, to damage."""
    return shutil.copytree(models, tmp_path / "reward_models")


def load(folder, name, **options):
    if name in tiny.PATHS:
        options.setdefault("path", folder / tiny.PATHS[name])
    options.setdefault("reference", torch.rand(1, 32, 32, 3))
    return load_reward(name, folders=[folder], place=on_device("cpu"), **options)


CLIP = "clip-vit-large-patch14/model.safetensors"
SIGLIP = "siglip-so400m-patch14-384/model.safetensors"
PICK = "PickScore_v1/pytorch_model.bin"
HPS = f"{tiny.PATHS['hps']}/open_clip_pytorch_model.bin"
REWARD = f"{tiny.PATHS['imagereward']}/pytorch_model.bin"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"


def changed(file, change):
    """The file with ``change`` made to its tensors."""
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        save_file(state, file)
    else:
        found = torch.load(file, weights_only=True)
        change(found["state_dict"] if "state_dict" in found else found)
        torch.save(found, file)


def cut(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def flip(file):
    whole = bytearray(file.read_bytes())
    whole[8:40] = bytes(32)
    file.write_bytes(whole)


def empty(file):
    file.write_bytes(b"")


def page(file):
    file.write_text("<html><body>Access denied</body></html>")


def pointer(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


class Evil:
    def __reduce__(self):
        return (print, ("run by a checkpoint",))


def evil(file):
    torch.save({"state_dict": {}, "hook": Evil()}, file)


def plain_pickle(file):
    file.write_bytes(pickle.dumps({"a": [1, 2]}))


def a_list(file):
    torch.save([torch.zeros(2)], file)


def scripted(file):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))


def a_zip(file):
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("readme.txt", "hello")


def without(key):
    return lambda file: changed(file, lambda state: state.pop(key))


def extra(key):
    return lambda file: changed(file, lambda state: state.update({key: torch.zeros(2)}))


def wider(key):
    def change(state):
        state[key] = torch.cat([state[key], state[key]]).contiguous()

    return lambda file: changed(file, change)


def as_integers(key):
    return lambda file: changed(file, lambda state: state.update({key: state[key].char()}))


def set_to(key, value):
    return lambda file: changed(file, lambda state: state.update({key: torch.tensor(value)}))


def first_lines(file):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:40]))


def replaced_by(other):
    return lambda file: shutil.copy(file.parents[1] / other, file)


def bad_config(file):
    (file.parent / "config.json").write_text("{not json")


def nothing(file):
    file.write_bytes(b"")


def fp8(file):
    changed(
        file,
        lambda state: state.update(
            {k: v.to(torch.float8_e4m3fn) for k, v in state.items() if v.ndim > 1}
        ),
    )


def one_in_fp8(key):
    return lambda file: changed(
        file, lambda state: state.update({key: state[key].to(torch.float8_e4m3fn)})
    )


def an_optimizer(file):
    torch.save({"optimizer": {"lr": torch.zeros(1)}, "epoch": 3}, file)


def configured(**parts):
    """The config beside the file with these changed; None takes one out."""

    def change(file):
        path = file.parent / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, **parts}))

    return change


def open_clip_configured(part=None, **values):
    def change(file):
        path = file.parent / "open_clip_config.json"
        config = json.loads(path.read_text())["model_cfg"]
        (config[part] if part else config).update(values)
        path.write_text(json.dumps({"model_cfg": config}))

    return change


_VISION = "vision_model.encoder.layers.1.mlp.fc1.weight"
DAMAGED = [
    ("clipscore", CLIP, cut, "whole checkpoint"),
    ("clipscore", CLIP, flip, "whole checkpoint"),
    ("clipscore", CLIP, empty, "0 bytes"),
    ("clipscore", CLIP, page, "whole checkpoint"),
    ("clipscore", CLIP, pointer, "whole checkpoint"),
    ("clipscore", CLIP, without(_VISION), _VISION),
    ("clipscore", CLIP, without("logit_scale"), "logit_scale"),
    ("clipscore", CLIP, without("text_projection.weight"), "text_projection.weight"),
    ("clipscore", CLIP, extra("vision_model.encoder.layers.2.extra"), "layers.2.extra"),
    ("clipscore", CLIP, extra("lora_down.weight"), "lora_down.weight"),
    ("clipscore", CLIP, wider("visual_projection.weight"), "visual_projection.weight"),
    ("clipscore", CLIP, bad_config, "JSON"),
    ("clipscore", CLIP, as_integers("visual_projection.weight"), "int8"),
    ("clipscore", CLIP, set_to("logit_scale", [4.6, 4.6]), "logit_scale"),
    ("clipscore", CLIP, set_to("logit_scale", 100.0), "logit_scale"),
    ("clipscore", CLIP, set_to("logit_scale", float("nan")), "logit_scale"),
    ("clipscore", CLIP, fp8, "float8_e4m3fn; get a file that is not quantised"),
    ("clipscore", CLIP, lambda file: (file.parent / "config.json").write_text("[]"), "a list"),
    ("clipscore", CLIP, configured(vision_config={"hidden_size": "wide"}), "config of the model"),
    ("clipscore", CLIP, configured(vision_config={"hidden_size": 7}), "config of the model"),
    ("aesthetic_v2_5", SIGLIP, replaced_by(CLIP), "text_projection"),
    ("aesthetic_v2_5", SIGLIP, extra("adapter.weight"), "adapter.weight"),
    ("pickscore", PICK, cut, "whole checkpoint"),
    ("pickscore", PICK, page, "whole checkpoint"),
    ("pickscore", PICK, nothing, "0 bytes: it is empty or cut off"),
    ("pickscore", PICK, an_optimizer, "one of optimizer, epoch"),
    ("pickscore", PICK, fp8, "float8_e4m3fn; get a file that is not quantised"),
    ("pickscore", PICK, evil, "run code"),
    ("pickscore", PICK, plain_pickle, "no checkpoint"),
    ("pickscore", PICK, a_list, "dictionary of tensors"),
    ("pickscore", PICK, scripted, "TorchScript"),
    ("pickscore", PICK, a_zip, "whole checkpoint"),
    ("hps", HPS, without("visual.proj"), "visual.proj"),
    ("hps", HPS, extra("visual.head.weight"), "visual.head.weight"),
    ("hps", HPS, wider("text_projection"), "text_projection"),
    ("hps", HPS, cut, "whole checkpoint"),
    ("hps", HPS, nothing, "0 bytes"),
    ("hps", HPS, one_in_fp8("visual.proj"), "float8_e4m3fn"),
    ("hps", HPS, open_clip_configured(custom_text=True), "text."),
    ("hps", HPS, open_clip_configured(made_up=1), "made_up"),
    ("hps", HPS, open_clip_configured("text_cfg", hf_model_name="xlm-roberta"), "xlm-roberta"),
    ("hps", HPS, open_clip_configured("vision_cfg", timm_model_name="vit_so"), "vit_so"),
    ("hps", HPS, replaced_by(PICK), "positional_embedding"),
    ("imagereward", REWARD, without("mlp.layers.7.weight"), "head.7.weight"),
    ("imagereward", REWARD, extra("blip.visual_encoder.blocks.2.norm1.weight"), "layers.2"),
    ("imagereward", REWARD, replaced_by(PICK), "embeddings"),
    ("imagereward", "bert-base-uncased/vocab.txt", page, "vocab.txt"),
    ("imagereward", "bert-base-uncased/vocab.txt", first_lines, "got 40"),
    ("aesthetic", HEAD, without("layers.4.bias"), "layers.4.bias"),
    ("aesthetic", HEAD, wider("layers.0.weight"), "layers.0.weight"),
    ("aesthetic", HEAD, evil, "run code"),
    ("aesthetic", HEAD, nothing, "0 bytes: it is empty or cut off"),
    ("aesthetic", HEAD, fp8, "float8_e4m3fn"),
]


@pytest.mark.parametrize(
    ("name", "file", "damage", "named"),
    DAMAGED,
    ids=[f"{n}-{number}" for number, (n, *_) in enumerate(DAMAGED)],
)
def test_a_damaged_or_wrong_file_is_named(own, capsys, name, file, damage, named):
    damage(own / file)
    with pytest.raises(ValueError, match="(?s)expected .*got .*[;,] ?.*") as caught:
        load(own, name)
    told = str(caught.value)
    assert named in told
    assert str(own) in told
    assert "run by a checkpoint" not in capsys.readouterr().out


def prefixed(prefix):
    def change(file):
        def rename(state):
            whole = {f"{prefix}{key}": value for key, value in state.items()}
            state.clear()
            state.update(whole)

        changed(file, rename)

    return change


def kept_under(name):
    return lambda file: torch.save({name: torch.load(file, weights_only=True), "epoch": 3}, file)


def returning_tuples(file):
    """As of a model that somebody called in ways of his own."""
    strange = {"return_dict": False, "torchscript": True, "output_hidden_states": True}
    strange |= {
        "_attn_implementation": "flash_attention_2",
        "attn_implementation": "flex_attention",
    }
    path = file.parent / "config.json"
    config = json.loads(path.read_text())
    for part in ("text_config", "vision_config"):
        config[part] |= strange
    path.write_text(json.dumps(config | strange))


HARMLESS = [
    ("clipscore", CLIP, returning_tuples),
    ("pickscore", PICK, returning_tuples),
    ("aesthetic_v2_5", SIGLIP, returning_tuples),
    ("imagereward", REWARD, returning_tuples),
    ("hps", HPS, open_clip_configured(custom_text=False)),
    ("hps", HPS, prefixed("module.")),
    ("clipscore", CLIP, prefixed("module.")),
    ("pickscore", PICK, prefixed("module._orig_mod.")),
    ("imagereward", REWARD, prefixed("module.")),
    ("aesthetic", HEAD, prefixed("module.")),
    ("aesthetic", HEAD, kept_under("model_state_dict")),
    ("imagereward", REWARD, kept_under("model")),
]


@pytest.mark.parametrize(
    ("name", "file", "change"), HARMLESS, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(HARMLESS)]
)
def test_what_is_no_matter_of_the_model_changes_no_score(own, name, file, change):
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    before = load(own, name).score(images, ["a red fox", "the sign"])
    change(own / file)
    assert torch.equal(load(own, name).score(images, ["a red fox", "the sign"]), before)


def test_a_custom_text_tower_of_open_clips_own_loads(own):
    """The same tensors under the keys that open_clip gives them then."""
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    before = load(own, "hps").score(images, ["a red fox", "the sign"])
    towers = ("visual.", "logit_scale")

    def rename(state):
        whole = {k if k.startswith(towers) else f"text.{k}": v for k, v in state.items()}
        state.clear()
        state.update(whole)

    changed(own / HPS, rename)
    open_clip_configured(custom_text=True)(own / HPS)
    assert torch.equal(load(own, "hps").score(images, ["a red fox", "the sign"]), before)


MISSING = [(name, file) for name in tiny.LEARNED for file in CATALOGUE[name].files]


@pytest.mark.parametrize(
    ("name", "file"), MISSING, ids=[f"{name}-{file.path}" for name, file in MISSING]
)
def test_a_missing_file_is_named_with_all_one_needs_to_get_it(tmp_path, name, file):
    with pytest.raises(FileNotFoundError) as caught:
        load_reward(name, folders=[tmp_path], reference=torch.rand(1, 8, 8, 3))
    told = str(caught.value)
    for part in (str(tmp_path / file.path), file.licence, file.repo or file.source, "MB"):
        assert part in told
    assert f"flow-ttrl rewards --download {name}" in told


def test_the_command_that_an_error_names_can_be_run(tmp_path):
    """As it stands there, by a shell, from a pack folder of any name."""
    home = tmp_path / "Comfy UI"
    (home / "custom_nodes").mkdir(parents=True)
    folder = home / "custom_nodes" / "my pack v1.0"
    folder.symlink_to(Path(__file__).resolve().parents[2])
    command = [sys.executable, str(folder), "score", __file__, "--reward", "hps"]
    told = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    assert told.returncode == 2
    (named,) = re.findall(r"or run: (.*)$", told.stderr, re.MULTILINE)
    assert named.endswith(f"--models '{home}/models/reward_models'")
    listing = named.replace("--download hps", "--json")
    ran = subprocess.run(listing, shell=True, capture_output=True, text=True, cwd="/")  # noqa: S602
    assert ran.returncode == 0, ran.stderr
    assert not json.loads(ran.stdout)["rewards"]["hps"]["ready"]


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_path_in_quotes_is_that_path(own, quote):
    path = f" {quote}{own / CLIP}{quote}"
    assert load(own, "clipscore", path=path).name == "clipscore"
    with pytest.raises(FileNotFoundError, match="expected a file or folder at /nowhere/a b, got"):
        load(own, "clipscore", path=f"{quote}/nowhere/a b{quote}")


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("hsp", {}, "'hsp'"),
        ("clipscore", {"preprocess": "squash"}, "'squash'"),
        ("clipscore", {"path": "/nowhere/model.safetensors"}, "/nowhere"),
        ("white", {"path": "/tmp"}, "'white'"),  # noqa: S108 - only named
        ("image_similarity", {"reference": None}, "reference"),
        ("image_similarity", {"reference": torch.rand(3, 8, 8)}, "3, 8, 8"),
        ("ocr", {"engine": "tesseract"}, "'tesseract'"),
        ("ocr", {"text": "   "}, "letters"),
    ],
)
def test_wrong_options_are_refused(own, name, options, named):
    with pytest.raises((ValueError, FileNotFoundError), match="expected .*got") as caught:
        load(own, name, **options)
    assert named in str(caught.value)


def test_weights_that_are_not_numbers_are_found_out_at_the_first_score(own):
    changed(own / CLIP, lambda state: state["visual_projection.weight"].fill_(float("nan")))
    with pytest.raises(ValueError, match="expected finite scores from 'clipscore', got nan"):
        RewardMix(((load(own, "clipscore"), 1.0),)).score(torch.rand(2, 32, 32, 3), ["a cat"])


@pytest.mark.parametrize("name", tiny.LEARNED)
def test_a_model_of_other_training_is_told_beside_its_scores(own, monkeypatch, name):
    """Such as a plain LAION ViT-H in the place of hps, with the same tensors but for their values;
    a file of the official one's size passes for it."""
    mix = RewardMix(((load(own, name), 1.0),))
    told = mix.judge(["a cat"]).report()["notes"]
    assert told == mix.notes
    assert len(told) == len(CATALOGUE[name].files)
    for note, file in zip(told, CATALOGUE[name].files, strict=True):
        assert re.match(rf"{name}: {re.escape(str(own))}.* bytes where the official ", note)
        assert f" has {file.size:,}: if it is of other training, so are its scores" in note
    first, *others = CATALOGUE[name].files
    path = own / tiny.PATHS[name] if name in tiny.PATHS else first.find([own])
    official = replace(first, size=weights_file(path).stat().st_size)
    entry = replace(CATALOGUE[name], files=(official, *others))
    monkeypatch.setitem(CATALOGUE, name, entry)
    assert len(RewardMix(((load(own, name), 1.0),)).notes) == len(told) - 1


def test_a_file_that_changes_on_disk_does_not_change_a_reward_in_use(own):
    reward, images = load(own, "clipscore"), torch.rand(2, 32, 32, 3)
    before = reward.score(images, ["a cat"] * 2)
    tiny.write_clip((own / CLIP).parent, 77)
    assert torch.equal(reward.score(images, ["a cat"] * 2), before)
    new = load(own, "clipscore", path=(own / CLIP).parent)
    assert not torch.equal(new.score(images, ["a cat"] * 2), before)


def test_a_device_that_is_not_there_is_refused():
    for device in ("foo", "cuda:99"):
        with pytest.raises(ValueError, match=f"expected a device .*got '{device}'"):
            on_device(device)


def test_a_folder_without_weights_lists_what_it_holds(own):
    folder = own / "empty"
    folder.mkdir()
    (folder / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="expected model.safetensors.*got notes.txt"):
        load(own, "clipscore", path=folder)


def test_a_file_of_another_kind_is_refused(own):
    file = own / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="expected a .safetensors file.*got model.gguf"):
        load(own, "clipscore", path=file)


def test_shards_are_read_and_a_lost_one_is_named(own):
    folder = own / "clip-vit-large-patch14"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(own, "clipscore", path=folder).name == "clipscore"
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        load(own, "clipscore", path=folder)
