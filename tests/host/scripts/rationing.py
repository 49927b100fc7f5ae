"""Searches that run short of memory, and hooks that follow the level. Prints one JSON object.

    COMFYUI_PATH=... <the host's python> rationing.py

On a CPU nothing runs short: the host's own out-of-memory error is raised inside model, decoder and
reward, for more rows than a limit.
"""

import contextlib
import importlib
import json
import sys

from started_host import start_host

start_host()

import comfy.hooks  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

world = importlib.import_module("pack.world.comfy")
rewards = importlib.import_module("pack.world.rewards")
sampling = importlib.import_module("pack.sampling")
hosts = importlib.import_module("pack.sampling.hosts.comfy_sampler")
ksampler = importlib.import_module("pack.sampling.hosts.comfy_ksampler")

PROMPT, STEPS, SEED = "a red circle left of a blue square", 8, 3
model, clip, vae = world.load_model("sd3"), world.load_clip(), world.load_vae("sd3")
positive, negative = (
    clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")
)
ARGUMENTS = {"steps": STEPS, "cfg": 3.0, "scheduler": "simple", "denoise": 1.0}


def empty(batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 16, 12, 12)}


def run(batch: int = 1, conditioning=positive, judge=None, **settings) -> tuple:
    judge = judge or rewards.driven_by("verifier").judge([PROMPT])
    settings = sampling.make_settings(**{"keep_better": False, **settings})
    sampler = hosts.SearchSampler(settings, vae, judge)
    out = ksampler.sample_latents(
        model, conditioning, negative, empty(batch), sampler, seed=SEED, **ARGUMENTS
    )
    return out["samples"], sampler.report()["host"]


def baseline(conditioning) -> torch.Tensor:
    """The plain sample that a search makes beside itself."""
    judge = rewards.driven_by("verifier").judge([PROMPT])
    settings = sampling.make_settings(budget=3.0, keep_better=False)
    sampler = hosts.SearchSampler(settings, vae, judge, baseline=True)
    ksampler.sample_latents(model, conditioning, negative, empty(), sampler, seed=SEED, **ARGUMENTS)
    return sampler.plain


def stock() -> torch.Tensor:
    arguments = (SEED, STEPS, 3.0, "euler", "simple", positive, negative, empty())
    return nodes.common_ksampler(model, *arguments)[0]["samples"]


def limited(function, rows):
    """``function`` with the host's out-of-memory error for more rows than ``rows()``."""

    def short(x, *args, **kwargs):
        if len(x) > rows():
            raise management.OOM_EXCEPTION("out of memory, as a card says it")
        return function(x, *args, **kwargs)

    return short


@contextlib.contextmanager
def short_of_memory(owner, name: str, rows):
    whole = getattr(owner, name)
    setattr(owner, name, limited(whole, rows))
    try:
        yield
    finally:
        if name in vars(type(owner)) or not isinstance(owner, torch.nn.Module):
            delattr(owner, name)
        else:
            setattr(owner, name, whole)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def memory() -> dict:
    shapes, estimate = [], comfy.sampler_helpers.estimate_memory

    def seen(patcher, noise_shape, conds):
        shapes.append(list(noise_shape))
        return estimate(patcher, noise_shape, conds)

    before = stock()
    comfy.sampler_helpers.estimate_memory = seen
    usual, _ = run()
    run(batch=3)
    run(micro_batch=2)
    comfy.sampler_helpers.estimate_memory = estimate
    found = {"reserved": shapes, "usual_width": usual.std().item()}

    base = model.model
    with short_of_memory(base, "apply_model", lambda: 4):
        latents, told = run()
        found["model"] = {"far": far(latents, usual), **told["ran_out_of_memory"]}
    with short_of_memory(vae.first_stage_model, "decode", lambda: 1):
        latents, told = run()
        found["decode"] = {"far": far(latents, usual), **told["ran_out_of_memory"]}
    tiles, in_tiles = [], vae.decode_tiled_

    def tiled(*args, **kwargs):
        tiles.append(1)
        try:
            return in_tiles(*args, **kwargs)
        finally:
            tiles.pop()

    vae.decode_tiled_ = tiled
    with short_of_memory(vae.first_stage_model, "decode", lambda: 9 if tiles else 0):
        latents, told = run()
        found["tiles"] = {"far": far(latents, usual), **told["ran_out_of_memory"]}
    del vae.decode_tiled_
    judge = rewards.driven_by("verifier").judge([PROMPT])
    judge.score = limited(judge.score, lambda: 1)
    latents, told = run(judge=judge)
    found["reward"] = {"far": far(latents, usual), **told["ran_out_of_memory"]}

    found["errors"] = {}
    for what, owner, name in (
        ("model", base, "apply_model"),
        ("decode", vae.first_stage_model, "decode"),
    ):
        with short_of_memory(owner, name, lambda: 0):
            try:
                run()
            except MemoryError as error:
                found["errors"][what] = str(error)
    found["stock_as_before"] = torch.equal(before, stock())
    found["same_after"] = far(run()[0], usual)
    return found


def rows() -> dict:
    """Conditioning with more rows than there are latents, of which the host takes the first."""
    text = "a green cross above a yellow triangle"
    other = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    (first, more), (second, _) = positive[0], other[0]
    pooled = torch.cat([more["pooled_output"], other[0][1]["pooled_output"]])
    both = [[torch.cat([first, second]), {**more, "pooled_output": pooled}]]
    arguments = (SEED, STEPS, 3.0, "euler", "simple", both, negative, empty())
    expected = nodes.common_ksampler(model, *arguments)[0]["samples"]
    searched, told = run(conditioning=both)
    return {
        "off_is_stock": torch.equal(run(conditioning=both, budget=1.0)[0], expected),
        "far": far(searched, run(micro_batch=1)[0]),
        "rows_at_once": told["rows_at_once"],
    }


def hooks() -> dict:
    """A LoRA on all of the model's first attention, whose strength falls with the level."""
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    weight = model.model.state_dict()[key]
    generator = torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(len(weight), 4, generator=generator),
        torch.randn(4, 256, generator=generator),
    )
    lora = {f"{key[:-7]}.lora_up.weight": 0.1 * up, f"{key[:-7]}.lora_down.weight": 0.1 * down}
    group = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.0, 0.3), (0.5, 0.6)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))

    def hooked(keyframes):
        own = group.clone()
        own.set_keyframes_on_hooks(keyframes)
        return comfy.hooks.set_hooks_for_conditioning(positive, hooks=own)

    flow_class, asked = importlib.import_module("pack.sampling.hosts.comfy").ComfyFlow, []
    ask = flow_class.ask

    def recorded(self, x, sigma):
        v = ask(self, x, sigma)
        asked.append((x.clone(), sigma, v.clone()))
        return v

    arguments = (SEED, STEPS, 3.0, "euler", "simple", hooked(frames), negative, empty())
    expected = nodes.common_ksampler(model, *arguments)[0]["samples"]
    off, _ = run(conditioning=hooked(frames), budget=1.0)
    flow_class.ask = recorded
    searched, _ = run(conditioning=hooked(frames), micro_batch=1)
    flow_class.ask = ask
    plain, _ = run(micro_batch=1)

    # more keyframes than steps: the host gives each a step of its own, and falls behind
    dense = comfy.hooks.HookKeyframeGroup()
    for number in range(12):
        dense.add(comfy.hooks.HookKeyframe(strength=number / 12, start_percent=number / 24))
    arguments = (SEED, STEPS, 3.0, "euler", "simple", hooked(dense), negative, empty())
    lagging = nodes.common_ksampler(model, *arguments)[0]["samples"]
    beside = baseline(hooked(dense))

    # each velocity against a model that has the level's own strength all the time
    strengths = {}
    for strength in (1.0, 0.0, 0.5):
        frame = comfy.hooks.HookKeyframeGroup()
        frame.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=0.0))
        strengths[strength] = frame
    sigma_of = model.get_model_object("model_sampling").percent_to_sigma
    starts = [(1.0, sigma_of(0.0)), (0.0, sigma_of(0.3)), (0.5, sigma_of(0.6))]
    start, wrong = flow_class.start, [0.0]
    for strength, frame in strengths.items():
        mine = [
            (x, sigma, v)
            for x, sigma, v in asked
            if [s for s, begin in starts if begin >= sigma or begin == starts[0][1]][-1] == strength
        ]

        def replayed(self, noise, item, mine=mine):
            wrong.extend(far(ask(self, x, sigma), v) for x, sigma, v in mine)
            return start(self, noise, item)

        flow_class.start = replayed
        run(conditioning=hooked(frame), budget=1.0)
        flow_class.start = start
    try:
        run(conditioning=hooked(frames), strategy="flow_ttrl", budget=0)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {
        "off_is_stock": torch.equal(off, expected),
        "baseline_far": far(beside, lagging),
        "asked": len(asked),
        "levels": len({sigma for _, sigma, _ in asked}),
        "compared": len(wrong) - 1,
        "wrong": max(wrong),
        "matters": far(searched, plain),
        "exact_refused": refused,
    }


with torch.inference_mode():
    sys.stdout.write("\n" + json.dumps({"memory": memory(), "rows": rows(), "hooks": hooks()}))
