"""The learned rewards at tiny sizes: official layouts in, scores out."""

import logging

import pytest
import tiny
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from flow_ttrl.rewards import CATALOGUE, RewardMix, imagereward
from flow_ttrl.rewards.networks import TextFeatures, on_device
from flow_ttrl.rewards.preprocess import clip_pixels, normalise
from flow_ttrl.rewards.tokens import Tokens, clip_tokenizer

PROMPTS = ["a red fox", "", "a photo of the cat"]
LEARNED = pytest.mark.parametrize("name", tiny.LEARNED)
WITH_TEXT = [n for n in tiny.LEARNED if "aesthetic" not in n and n != "image_similarity"]


@LEARNED
def test_scores_a_batch_as_it_scores_each_image(load, images, name):
    reward = load(name)
    together = reward.score(images, PROMPTS)
    assert together.shape == (3,)
    assert together.isfinite().all()
    assert together.std() > 1e-3
    each = [
        reward.score(image, [text]) for image, text in zip(images.split(1), PROMPTS, strict=True)
    ]
    assert torch.allclose(together, torch.cat(each), atol=1e-5)


@LEARNED
def test_any_shape_scores(load, name):
    reward = load(name)
    for height, width in ((20, 20), (40, 200), (200, 40), (300, 300)):
        assert reward.score(torch.rand(2, height, width, 3), ["a", "b"]).isfinite().all()


@LEARNED
def test_gradients_reach_the_image(load, images, name):
    leaf = images[1:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(load(name).score(leaf, ["a red fox"]).sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@LEARNED
def test_what_the_catalogue_says_is_what_is_loaded(load, name):
    reward, entry = load(name), CATALOGUE[name]
    assert reward.name == name
    assert reward.units
    assert reward.typical[0] < reward.typical[1]
    assert reward.needs_reference == entry.needs_reference
    assert reward.needs_prompt == (name in WITH_TEXT)
    assert reward.networks
    assert not any(p.requires_grad for n in reward.networks for p in n.module.parameters())


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_prompt_matters(load, images, name):
    reward = load(name)
    one, other = (reward.score(images[:1], [prompt]) for prompt in ("a red fox", "the sign"))
    assert (one - other).abs().item() > 1e-4


@LEARNED
def test_half_precision_towers_have_float32_heads(load, images, name):
    half = load(name, place=on_device("cpu", torch.bfloat16))
    low, full = half.score(images, PROMPTS), load(name).score(images, PROMPTS)
    assert low.dtype == torch.float32
    assert (low - full).abs().max() < 0.3 * full.abs().max().clamp(min=1)
    types = {p.dtype for n in half.networks for p in n.module.parameters()}
    heads = name.startswith(("aesthetic", "imagereward"))
    assert types == ({torch.bfloat16, torch.float32} if heads else {torch.bfloat16})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hps", True),
        ("clipscore", True),
        ("image_similarity", True),
        ("pickscore", False),
        ("aesthetic", False),
        ("imagereward", False),
    ],
)
def test_the_papers_preprocessing(load, name, changes):
    """A tall zone plate, which shows every difference."""
    y, x = torch.meshgrid(torch.arange(240.0), torch.arange(120.0), indexing="ij")
    rings = 0.5 + 0.5 * torch.cos(3.14 * ((x - 60) ** 2 + (y - 120) ** 2) / 240)
    images = rings[None, ..., None].expand(1, -1, -1, 3)
    official, paper = (
        load(name, preprocess=kind).score(images, ["a cat"]) for kind in ("official", "paper")
    )
    assert ((official - paper).abs().item() > 1e-4) == changes


def test_clip_scores_are_transformers_own(models, load, images):
    """The same file through CLIPModel and its processor, on 8-bit images."""
    from safetensors.torch import load_file

    model = CLIPModel(CLIPConfig(**tiny.CLIP)).eval()
    model.load_state_dict(load_file(models / "clip-vit-large-patch14" / "model.safetensors"))
    size = {"shortest_edge": 56}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 56, "width": 56})
    eight_bits = (images * 255).round().byte()
    pixels = processor(images=list(eight_bits.numpy()), return_tensors="pt")["pixel_values"]
    ids = Tokens("", clip_tokenizer(), 77)(PROMPTS)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()
        ours = load("clipscore").score(eight_bits.float() / 255, PROMPTS)
    assert torch.allclose(ours, logits / 30, atol=5e-3)


def test_imagereward_keys_all_have_a_place():
    official = tiny.imagereward_shapes()
    new = {key: imagereward.renamed(key) for key in official}
    network = imagereward.ImageRewardNetwork(*tiny.BLIP.values())
    used = [name for name in new.values() if name is not None]
    assert len(used) == len(set(used))
    assert set(used) == set(network.state_dict())
    for key, name in new.items():
        if name is not None:
            assert network.state_dict()[name].shape == official[key], key
    unused = {key for key, name in new.items() if name is None}
    assert unused == {k for k in official if "_proj." in k and ".visual" not in k or "_ids" in k}


def test_one_image_tower_serves_all_rewards_that_use_it(load, images):
    names = ("clipscore", "aesthetic", "image_similarity")
    rewards = [load(name) for name in names]
    towers = {reward.networks[0] for reward in rewards}
    assert len(towers) == 1
    runs = []
    module = towers.pop().module
    hook = module.register_forward_hook(lambda *_: runs.append(1))
    scores = RewardMix(tuple((reward, 1.0) for reward in rewards)).score(images, PROMPTS)
    hook.remove()
    assert len(runs) == 1
    for reward in rewards:
        assert torch.allclose(scores.values[reward.name], reward.score(images, PROMPTS), atol=1e-5)


def test_a_prompt_is_encoded_once(load, images):
    reward = load("pickscore")
    runs = []
    reward.text.network.module.register_forward_hook(lambda *_: runs.append(1))
    judge = RewardMix(((reward, 1.0),)).judge(["a red fox"])
    assert len(runs) == 1
    for _ in range(3):
        judge.score(images)
    assert len(runs) == 1


def test_text_features_kept_are_bounded(monkeypatch):
    from flow_ttrl.rewards import networks

    monkeypatch.setattr(networks, "KEPT_PROMPTS", 3)
    features = TextFeatures(
        lambda ids: ids.float(), lambda prompts: torch.tensor([[len(p), 1] for p in prompts])
    )
    prompts = ["a" * n for n in range(1, 9)]
    found = features(prompts)
    assert found.shape == (8, 2)
    assert len(features._known) == 3
    assert torch.equal(features(prompts[:1]), found[:1])


def test_a_tower_dies_with_its_last_reward(load):
    import gc
    import weakref

    module = weakref.ref(load("clipscore", preprocess="paper").text.network.module)
    gc.collect()
    assert module() is None


def test_similarity_is_1_to_itself_and_takes_the_best_reference(load, images):
    reward = load("image_similarity", reference=images[:2])
    scores = reward.score(images, [""] * 3)
    assert scores[:2].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert scores[2] < 1
    one, other = (
        load("image_similarity", reference=images[k : k + 1]).score(images[2:], [""])
        for k in (0, 1)
    )
    assert scores[2:] == pytest.approx(torch.maximum(one, other), abs=1e-5)


LONG = "a " + " ".join(f"word{n}" for n in range(90))


@pytest.mark.parametrize("name", WITH_TEXT)
def test_what_of_a_prompt_does_not_count_is_told_once(load, images, name, caplog):
    reward = load(name)
    with caplog.at_level(logging.WARNING, logger="flow_ttrl"):
        mix = RewardMix(((reward, 1.0),))
        for _ in range(2):
            mix.score(images[:1], [LONG])
        mix.score(images[:1], ["a red fox"])
    assert len(caplog.records) == 1
    assert f"{name} reads {reward.token_limit} tokens" in caplog.text
    assert "word89'" in caplog.text
    cut = reward.tokens.cut_off(LONG)
    kept = LONG[: len(LONG) - len(cut)]
    whole, short = (reward.score(images[:1], [prompt]) for prompt in (LONG, kept))
    assert torch.allclose(whole, short, atol=1e-5)
    assert not reward.tokens.cut_off(kept)


def test_clip_tokens_are_transformers_own(tmp_path):
    """Against CLIPTokenizer with the same vocabulary, on prompts that trip tokenizers."""
    import json

    from transformers import CLIPTokenizer

    state = json.loads(clip_tokenizer().to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    prompts = [
        "a photo of a cat",
        "",
        'It\'s  "quoted", \u201ccurly\u201d  and\tspaced',
        "\u65e5\u672c caf\u00e9 \U0001f98a 1,234 pieces!",
        "UPPER lower 'll 've don't",
    ]
    ours = Tokens("", clip_tokenizer(), 77)
    for prompt, ids, mask in zip(prompts, ours(prompts), ours.masks(prompts), strict=True):
        assert ids[mask.bool()].tolist() == theirs(prompt)["input_ids"], prompt


def test_pixels_of_the_tiny_models_are_normalised_clip_pixels(load, images):
    tower = load("clipscore").tower
    assert torch.equal(tower.pixels(images), clip_pixels(images, 56))
    assert normalise(torch.ones(1, 3, 2, 2), (0.5,) * 3, (0.5,) * 3).unique().tolist() == [1.0]


def test_visiting_networks_are_there_to_score_and_to_encode_alone(load, images):
    staying, moves = load("clipscore"), []
    reward = load("clipscore", place=on_device("cpu", visiting=True))
    (image,), (text,) = reward.networks, reward.text_networks
    for name, network in (("image", image), ("text", text)):
        network.module.to = lambda device, name=name: moves.append((name, str(device)))
        network.device = torch.device("cpu", 0)  # told apart from where it rests
    judge = RewardMix(((reward, 1.0),)).judge(PROMPTS)
    scores = judge.score(images)["clipscore"]
    rest = [("image", "cpu"), ("text", "cpu")]
    assert moves == [("text", "cpu:0"), *rest, ("image", "cpu:0"), *rest]
    assert torch.equal(scores, staying.score(images, PROMPTS))
