"""Qwen3-VL as a CLIP of the host's beside transformers' own. Prints one JSON object.

    COMFYUI_PATH=... <the host's python> vlm.py FOLDER

Random weights of the true architecture at tiny sizes, the same in both. FOLDER gets a tiny CLIP
with a fitted head, ``judge.safetensors``, for a server.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

from started_host import ROOT, start_host

FOLDER = Path(sys.argv[1])
start_host(package="flow_ttrl")

import comfy.model_management as management  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402

sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "rewards")]

import tiny_vlm  # noqa: E402
import tiny_vlm_nodes as host_models  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from flow_ttrl.rewards import RewardMix  # noqa: E402
from flow_ttrl.rewards.comfy_vlm import ComfyVLM  # noqa: E402
from flow_ttrl.rewards.networks import on_device  # noqa: E402
from flow_ttrl.rewards.vlm import VLM, plain  # noqa: E402
from flow_ttrl.rewards.vlm_folder import FolderVLM  # noqa: E402

QUESTIONS = ["Is it red?", 'Does this image show "a cat to the left of a dog"?', "no?"]
SHAPES = [(256, 256), (256, 320), (384, 256)]


def smooth(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    big = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (big.movedim(1, -1) * 255).round() / 255


def on_disk(kind: str, state: dict) -> FolderVLM:
    """The same weights as a Hugging Face folder, by transformers."""
    folder = FOLDER / kind
    words = Path(comfy.sd.__file__).parent / "text_encoders" / "qwen25_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(words)
    config = tiny_vlm.qwen3_config(
        tokenizer.get_vocab(),
        151936,
        head_dim=128,
        tie_word_embeddings="model.lm_head.weight" not in state,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
        },
    )
    tiny_vlm.write(folder, "qwen3_vl", tokenizer=tokenizer, config=config, fitted=False)
    renamed = {}
    for key, value in state.items():
        name = key if key.startswith("model.lm_head") else key.replace("model.", "", 1)
        part = "" if name.startswith(("model.lm_head", "visual")) else "language_model."
        name = "lm_head.weight" if "lm_head" in name else f"model.{part}{name}"
        renamed[name] = value.clone()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return FolderVLM(folder, on_device("cpu"))


def network_state(clip) -> dict:
    outer = clip.cond_stage_model
    return getattr(outer, outer.clip).transformer.state_dict()


def apart(ours, theirs) -> dict:
    """First-token logits of both, over sizes and questions, in a batch and one by one."""
    worst, spread = 0.0, 0.0
    for shape in SHAPES:
        images = smooth(len(QUESTIONS), *shape)
        both = []
        for judge in (ours, theirs):
            seen = [judge.look(image) for image in images.split(1)]
            both.append(judge.next_logits(seen, QUESTIONS))
            each = [judge.next_logits([s], [q]) for s, q in zip(seen, QUESTIONS, strict=True)]
            both.append(torch.cat(each))
        worst = max(worst, *((one - both[2]).abs().max().item() for one in both))
        spread = max(spread, both[2].std().item())
    return {"apart": worst, "spread": spread}


def parity() -> dict:
    from comfy.text_encoders import boogu, ideogram4, joyimage, krea2, mage_flow

    kinds = {
        "qwen3vl_4b": ("qwen3vl_4b", None, None),
        "qwen3vl_8b": ("qwen3vl_8b", None, None),
        "krea2": ("qwen3vl_4b", krea2.te(), krea2.Krea2Tokenizer),
        "mage_flow": ("qwen3vl_4b", mage_flow.te(), mage_flow.MageFlowTokenizer),
        "ideogram4": ("qwen3vl_8b", ideogram4.te_qwen3vl(), ideogram4.Ideogram4Qwen3VLTokenizer),
        "boogu": ("qwen3vl_8b", boogu.te(), boogu.BooguTokenizer),
        "joyimage": ("qwen3vl_8b", joyimage.te(), joyimage.JoyImageTokenizer),
    }
    found = {}
    for name, (kind, te, tokenizer) in kinds.items():
        clip = host_models.qwen3_vl(kind, te, tokenizer)
        tiny_vlm.fill(clip.cond_stage_model)
        found[name] = apart(ComfyVLM(clip), on_disk(kind, network_state(clip)))
    return found


def fitted() -> comfy.sd.CLIP:
    clip = host_models.qwen3_vl()
    tiny_vlm.fill(clip.cond_stage_model)
    judge = ComfyVLM(clip)
    tiny_vlm.fit(judge, judge.net.model.lm_head.weight)
    save_file(clip.cond_stage_model.state_dict(), FOLDER / "judge.safetensors")
    return clip


def told(function) -> str:
    try:
        function()
    except ValueError as error:
        return str(error)
    return ""


def qwen2_5_vl() -> comfy.sd.CLIP:
    """Qwen2.5-VL, which ComfyUI loads without the layer that says what comes next."""
    from comfy.text_encoders import qwen_image, qwen_vl

    whole = qwen_vl.Qwen2VLVisionTransformer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_layers": 9}

    def small(hidden_size, output_hidden_size, **more):
        return whole(output_hidden_size=output_hidden_size, **sizes, **more)

    with host_models.mock.patch.object(qwen_vl, "Qwen2VLVisionTransformer", small):
        te, tokenizer = qwen_image.te(), qwen_image.QwenImageTokenizer
        heads = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
        return host_models.make(te, tokenizer, "qwen25_7b", **heads)


def refused(clip) -> dict:
    """What is said of CLIPs that cannot be asked, and of a host that has changed."""
    from comfy.text_encoders import flux

    klein = host_models.make(
        flux.klein_te(model_type="qwen3_8b"), flux.KleinTokenizer8B, "qwen3_8b"
    )
    found = {
        "without_eyes": told(lambda: ComfyVLM(klein)),
        "without_words": told(lambda: ComfyVLM(qwen2_5_vl())),
    }
    tokenize = clip.tokenizer.tokenize_with_weights
    clip.tokenizer.tokenize_with_weights = lambda text, *a, images=(), **k: tokenize(text, *a, **k)
    found["ignored_image"] = told(lambda: ComfyVLM(clip))
    del clip.tokenizer.tokenize_with_weights
    encoder = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
    own = encoder.process_tokens
    encoder.process_tokens = lambda *a: (0.9 * own(*a)[0], *own(*a)[1:])
    found["changed_host"] = told(lambda: ComfyVLM(clip))
    del encoder.process_tokens
    random = host_models.qwen3_vl()
    tiny_vlm.fill(random.cond_stage_model)
    found["random_head"] = told(lambda: VLM(ComfyVLM(random)))
    return found


def texts(judge: ComfyVLM) -> dict:
    """Control words in a question: which ids of theirs are left, and what is read instead."""
    control = set(judge.tokenizer.get_added_vocab().values())
    whole = plain(f"a sign {' '.join(judge.control_words)} here", judge.control_words)
    ids = judge.tokenizer(whole)["input_ids"]
    read = judge.tokenizer.decode(ids).replace(" ", "")
    written = f"a sign {' '.join(judge.control_words)} here".replace(" ", "")
    return {
        "words": len(judge.control_words),
        "left": len(control & set(ids)),
        "kept": read == written,
    }


def scoring(clip) -> dict:
    judge = VLM(ComfyVLM(clip), "a cat\n2* not: is it night?\nthe circle is red")
    images = smooth(3, 256, 288)
    together, parts = judge.measure(images, [""] * 3)
    alone = [judge.measure(image, [""]) for image in images.split(1)]
    return {
        "parts": list(parts),
        "spread": together.std().item(),
        "batch_off": (together - torch.cat([score for score, _ in alone])).abs().max().item(),
        "answered": parts["answered"].min().item(),
        "again": bool(torch.equal(together, judge.score(images, [""] * 3))),
    }


def cancelled(clip) -> bool:
    """Whether a cancel gets through a mix, and ends the judging of a batch."""
    mix = RewardMix(((VLM(ComfyVLM(clip), "a cat"), 1.0),))
    management.interrupt_current_processing()
    try:
        mix.score(smooth(2, 256, 256), [""])
    except management.InterruptProcessingException:
        return True
    return False


def in_half(clip) -> dict:
    """As on a card: the host's own forward in bfloat16, too, and what it does to a score."""
    judge = VLM(ComfyVLM(clip), "a cat")
    image = smooth(1, 256, 256)
    full = judge.score(image, [""])
    judge.ask.model.dtype = torch.bfloat16
    return {
        "own_forward": told(lambda: judge.ask.model._check_own_forward(clip)),
        "off": (judge.score(image, [""]) - full).abs().item(),
    }


def patched(clip) -> dict:
    """A LoRA's patch on a clone of the CLIP counts for the clone's judge alone."""
    other = clip.clone()
    key = f"{clip.cond_stage_model.clip}.transformer.model.layers.2.mlp.down_proj.weight"
    shape = clip.cond_stage_model.state_dict()[key].shape
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    other.add_patches({key: ("diff", (0.01 * drawn,))})
    judges = [VLM(ComfyVLM(one), "a cat") for one in (clip, other)]
    image = smooth(1, 256, 256)
    own, changed, again = (judges[k].score(image, [""]).item() for k in (0, 1, 0))
    return {"moved": abs(own - changed), "back": abs(own - again)}


def sampling(clip) -> dict:
    """A search of the demo model's driven by the judge: twice, and what the host loads for it."""
    world = importlib.import_module("flow_ttrl.world.comfy")
    settings = importlib.import_module("flow_ttrl.sampling").make_settings
    hosts = importlib.import_module("flow_ttrl.sampling.hosts.comfy_sampler")
    ksampler = importlib.import_module("flow_ttrl.sampling.hosts.comfy_ksampler")
    model, words, vae = world.load_model("sd3"), world.load_clip(), world.load_vae("sd3")
    prompt = "a red circle left of a blue square"
    positive, negative = (
        words.encode_from_tokens_scheduled(words.tokenize(text)) for text in (prompt, "")
    )
    calls, load = [], management.load_models_gpu

    def seen(models, *args, **kwargs):
        inside = [part for one in models for part in one.model_patches_models()]
        calls.append([type(one.model).__name__ for one in [*models, *inside]])
        return load(models, *args, **kwargs)

    free, estimate = [], comfy.sampler_helpers.estimate_memory

    def estimated(patcher, noise_shape, conds):
        free.append(patcher.model.memory_required(list(noise_shape)))
        return estimate(patcher, noise_shape, conds)

    def run(judging: int | None = None, steps: int = 8) -> tuple[torch.Tensor, dict]:
        mix = RewardMix(((VLM(ComfyVLM(clip), split_prompt=True), 1.0),))
        sampler = hosts.SearchSampler(
            settings(budget=3.0, keep_better=False),
            vae,
            mix.judge([prompt]),
            models=mix.patchers,
            judging=mix.working_memory if judging is None else judging,
        )
        calls.clear()
        out = ksampler.sample_latents(
            model,
            positive,
            negative,
            {"samples": torch.zeros(1, 16, 12, 12)},
            sampler,
            seed=3,
            steps=steps,
            cfg=3.0,
            scheduler="simple",
            denoise=1.0,
        )
        return out["samples"], sampler.report() | {"working_memory": mix.working_memory}

    comfy.sampler_helpers.estimate_memory = estimated
    management.load_models_gpu = seen
    management.unload_all_models()
    (first, report), loads = run(), list(calls)
    (second, _), again = run(), list(calls)
    usual = min(free)
    free.clear()
    run(judging=3 * usual, steps=2)
    management.load_models_gpu, comfy.sampler_helpers.estimate_memory = load, estimate
    loaded = [type(one.model.model).__name__ for one in management.current_loaded_models]
    return {
        "same_bits": bool(torch.equal(first, second)),
        "reserved": [usual, min(free)],
        "working_memory": report["working_memory"],
        "loads": loads,
        "again": again,
        "loaded": loaded,
        "values": list(report["values"]),
        "rewards": report["rewards"],
        "best": [max(record["rewards"][0]) for record in report["search_steps"]],
        "questions": report["reward"]["details"]["vlm"]["questions"],
        "failures": report["reward"]["failures"],
    }


with torch.inference_mode():
    parities = parity()
    clip = fitted()
    answer = {
        "parity": parities,
        "refused": refused(clip),
        "texts": texts(ComfyVLM(clip)),
        "scoring": scoring(clip),
        "patched": patched(clip),
        "cancelled": cancelled(clip),
        "in_half": in_half(clip),
        "sampling": sampling(clip),
    }
shutil.rmtree(FOLDER / "qwen3vl_4b")
shutil.rmtree(FOLDER / "qwen3vl_8b")
sys.stdout.write("\n" + json.dumps(answer))
