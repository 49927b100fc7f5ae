"""The adapter for diffusers, held against the stock pipelines themselves."""

import pytest
import torch
from tiny_pipelines import tiny_flux, tiny_sd3

from flow_ttrl.rewards import ANALYTIC, RewardMix
from flow_ttrl.sampling import STRATEGIES, make_settings
from flow_ttrl.sampling.hosts.diffusers import search_images

SLOW = pytest.mark.slow
QUICK, OTHERS = "flow_ttrl", [name for name in STRATEGIES if name != "flow_ttrl"]
OFF = make_settings(budget=1, keep_better=False)
MAKE = {"sd3": tiny_sd3, "flux": tiny_flux}
PROMPT, OTHER = "a red fox", "two cats, and a dog!"
LONG = "a very long prompt of many words " * 12
HOST = "flow_ttrl.sampling.hosts.diffusers"
GUIDED = {"negative_prompt": "blur", "true_cfg_scale": 3.0}
SMALL = {"height": 64, "width": 64, "num_inference_steps": 3}


def contrast() -> RewardMix:
    return RewardMix(((ANALYTIC["contrast"], 1.0),))


@pytest.fixture(scope="module")
def pipes():
    made = {arch: make() for arch, make in MAKE.items()}
    made["schnell"] = tiny_flux(guided=False)
    made["dynamic"] = tiny_sd3(dynamic=True)
    return made


def both(pipe, seed=5, **call):
    """Images of the stock call and of ours with the search off."""
    call = SMALL | {"output_type": "pt"} | call
    stock = pipe(**call, generator=torch.Generator().manual_seed(seed)).images
    ours = search_images(pipe, contrast(), OFF, seed=seed, **call)
    return stock, ours


CALLS = {
    "one prompt": {},
    "a batch": {"prompt": [PROMPT, OTHER]},
    "several each": {"prompt": [PROMPT, OTHER], "num_images_per_prompt": 2},
    "a long prompt": {"prompt": LONG},
    "a longer one": {"prompt": LONG, "max_sequence_length": 128},
    "wide": {"height": 48, "width": 96},
    "tall": {"height": 96, "width": 48},
    "own levels": {"num_inference_steps": 2, "sigmas": [1.0, 0.4]},
    "another prompt for the second encoder": {"prompt_2": OTHER},
    "latents out": {"output_type": "latent"},
    "arrays out": {"output_type": "np"},
}
SD3_CALLS = {
    "negative prompts": {"prompt": [PROMPT, OTHER], "negative_prompt": ["blur", "fog"]},
    "no guidance": {"guidance_scale": 1.0},
    "skip-layer guidance": {"num_inference_steps": 5, "skip_guidance_layers": [1]}
    | {"skip_layer_guidance_stop": 0.7},
    "clip skip": {"clip_skip": 1},
    "a third prompt": {"prompt_3": OTHER, "negative_prompt_3": "fog"},
}
FLUX_CALLS = {
    "distilled guidance": {"guidance_scale": 1.5},
    "true guidance": GUIDED,
    "true guidance of a batch": {"prompt": [PROMPT, OTHER], "negative_prompt": ["fog", ""]}
    | {"true_cfg_scale": 2.0, "num_images_per_prompt": 2},
    "a size between": {"height": 70, "width": 88},
}
CASES = [
    *(("sd3", name, call) for name, call in (CALLS | SD3_CALLS).items()),
    *(("flux", name, call) for name, call in (CALLS | FLUX_CALLS).items()),
    ("schnell", "one prompt", {}),
    ("dynamic", "wide", {"height": 48, "width": 96}),
]


@pytest.mark.parametrize(("arch", "name", "call"), CASES, ids=[f"{a}-{n}" for a, n, _ in CASES])
def test_search_off_is_the_stock_call_bit_by_bit(pipes, arch, name, call):
    stock, ours = both(pipes[arch], **({"prompt": PROMPT} | call))
    assert torch.equal(torch.as_tensor(stock), torch.as_tensor(ours.images))
    assert len(ours.result.rewards) == len(stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=SLOW)])
@pytest.mark.parametrize("arch", MAKE)
def test_so_it_is_in_half_precision(arch, dtype):
    """Where the pipeline rounds its latents after every step."""
    prompts = [PROMPT, OTHER]
    stock, ours = both(MAKE[arch](dtype), prompt=prompts, num_inference_steps=6)
    assert torch.equal(stock, ours.images)


@pytest.mark.parametrize("arch", MAKE)
def test_a_baseline_beside_a_search_is_the_stock_image(pipes, arch):
    pipe, call = pipes[arch], {"prompt": [PROMPT, OTHER], "output_type": "pt"} | SMALL
    stock = pipe(**call, generator=torch.Generator().manual_seed(5)).images
    found = search_images(pipe, contrast(), make_settings(budget=3), seed=5, baseline=True, **call)
    assert torch.equal(found.plain, stock)
    assert (found.result.rewards >= found.result.plain_rewards).all()
    assert not torch.equal(found.images, stock)
    assert found.report["prompts"] == [PROMPT, OTHER]


@pytest.mark.parametrize("arch", MAKE)
def test_embeddings_stand_for_prompts(pipes, arch):
    pipe, names = pipes[arch], ("prompt_embeds", "pooled_prompt_embeds")
    with torch.no_grad():
        if arch == "sd3":
            embeds, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT, None, None)
            call = {"negative_prompt_embeds": negative}
            call["negative_pooled_prompt_embeds"] = negative_pooled
        else:
            (embeds, pooled, _), call = pipe.encode_prompt(PROMPT), {}
    call |= dict(zip(names, (embeds, pooled), strict=True))
    stock = pipe(**call, **SMALL, output_type="pt", generator=torch.Generator().manual_seed(1))
    ours = search_images(
        pipe, contrast(), OFF, seed=1, judged_as=[PROMPT], output_type="pt", **call, **SMALL
    )
    assert torch.equal(stock.images, ours.images)
    with pytest.raises(ValueError, match="expected judged_as of 1 texts, one an image, got none"):
        search_images(pipe, contrast(), OFF, **call, **SMALL)


@pytest.mark.parametrize("arch", MAKE)
def test_latents_and_generators_of_the_users_own(pipes, arch):
    pipe, call = pipes[arch], {"prompt": [PROMPT, OTHER], "output_type": "pt"} | SMALL
    shape = (2, 4, 8, 8) if arch == "sd3" else (2, 16, 16)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    ours = search_images(pipe, contrast(), OFF, latents=latents, **call)
    assert torch.equal(pipe(latents=latents, **call).images, ours.images)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (4, 9)]

    ours = search_images(pipe, contrast(), OFF, generator=generators(), **call)
    assert torch.equal(pipe(generator=generators(), **call).images, ours.images)


@pytest.mark.parametrize("arch", MAKE)
def test_a_callback_watches_every_step(pipes, arch):
    def watching(seen):
        def watch(pipe, step, timestep, tensors):
            said = pipe.num_timesteps, pipe.guidance_scale, pipe.joint_attention_kwargs
            seen.append((step, float(timestep), said, {k: v.clone() for k, v in tensors.items()}))
            return tensors

        return watch

    stock, ours, pipe = [], [], pipes[arch]
    for name in ("_num_timesteps", "_guidance_scale", "_joint_attention_kwargs"):
        vars(pipe).pop(name, None)  # as of one that was never called
    call = {"prompt": PROMPT, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for asked, seen in (
        (lambda **given: search_images(pipe, contrast(), OFF, **given), ours),
        (pipe, stock),
    ):
        generator = torch.Generator().manual_seed(2)
        asked(generator=generator, callback_on_step_end=watching(seen), **call, **SMALL)
    assert [one[:3] for one in ours] == [one[:3] for one in stock]
    for a, b in zip(ours, stock, strict=True):
        assert a[3].keys() == b[3].keys() == {"latents", "prompt_embeds"}
        assert all(torch.equal(a[3][name], b[3][name]) for name in a[3])


def test_a_callback_ends_the_search_by_the_pipelines_own_interrupt(pipes):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    settings = make_settings(keep_better=False)
    call = {"prompt": PROMPT, "callback_on_step_end": stop, "num_inference_steps": 8}
    found = search_images(pipes["flux"], contrast(), settings, **SMALL | call)
    assert found.result.stopped == "finish_now"
    again = search_images(pipes["flux"], contrast(), settings, prompt=PROMPT, **SMALL)
    assert again.result.stopped is None


@pytest.mark.parametrize("arch", MAKE)
@pytest.mark.parametrize("strategy", [QUICK, *(pytest.param(s, marks=SLOW) for s in OTHERS)])
def test_every_strategy_runs(pipes, arch, strategy):
    """In the pipeline's own layout, oblong, in a batch, to rewards that are its images' own."""
    call = {"prompt": [PROMPT, OTHER], "height": 48, "width": 80, "num_inference_steps": 4}
    settings = make_settings(strategy, budget=4, keep_better=False)
    found = search_images(pipes[arch], contrast(), settings, seed=3, output_type="pt", **call)
    rewards = contrast().score(found.images.movedim(1, -1), call["prompt"]).total
    assert torch.allclose(found.result.rewards, rewards, atol=1e-4)
    assert found.result.cost.calls <= 2 * 16


def test_models_and_scheduler_are_left_as_they_were(pipes):
    pipe = pipes["sd3"]
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    stock, _ = both(pipe, prompt=PROMPT)
    settings = make_settings("flow_ttrl", budget=0)
    search_images(pipe, contrast(), settings, prompt=PROMPT, **SMALL)
    after = pipe.transformer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(both(pipe, prompt=PROMPT)[0], stock)
    assert all(p.grad is None for p in pipe.transformer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flow_ttrl", "reward_gradient"])
def test_gradients_of_large_images_keep_no_activations(pipes, monkeypatch, strategy):
    """The same search, the blocks computed once more for a backward; nothing stays switched on."""
    pipe, passes = pipes["flux"], {"whole": 0, "block": 0}

    def count(name):
        def counted(*_):
            passes[name] += 1

        return counted

    parts = {"whole": pipe.transformer, "block": pipe.transformer.transformer_blocks[0]}
    hooks = [part.register_forward_pre_hook(count(name)) for name, part in parts.items()]
    call = {"prompt": PROMPT, "num_inference_steps": 3, "seed": 2}
    settings = make_settings(strategy, budget=0 if strategy == "flow_ttrl" else 4)
    for size in (64, 512):
        passes.update(whole=0, block=0)
        made = search_images(pipe, contrast(), settings, height=size, width=size, **call)
        again = made.result.cost.backwards if size == 512 else 0
        assert made.result.cost.backwards > 0
        assert passes["block"] - passes["whole"] == again
    for hook in hooks:
        hook.remove()
    assert not pipe.transformer.is_gradient_checkpointing
    assert not pipe.vae.is_gradient_checkpointing
    call |= {"height": 512, "width": 512}
    recomputed = search_images(pipe, contrast(), settings, **call).result.latents
    monkeypatch.setattr(f"{HOST}.RECOMPUTED_FROM", 2**40)
    kept = search_images(pipe, contrast(), settings, **call).result.latents
    torch.testing.assert_close(recomputed, kept, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("arch", "more"), [("sd3", {}), ("flux", {}), ("flux", GUIDED)])
def test_rows_and_images_at_once_follow_their_size(pipes, monkeypatch, arch, more):
    """What is found is the same but for rounding."""
    pipe, rows, images = pipes[arch], [], []
    call = {"prompt": PROMPT, "output_type": "pt"} | SMALL | more
    settings = make_settings("best_of_n", budget=4, keep_better=False)
    whole = search_images(pipe, contrast(), settings, **call)
    monkeypatch.setattr(f"{HOST}.SAMPLED_AT_ONCE", 2 * 64 * 64)
    monkeypatch.setattr(f"{HOST}.DECODED_AT_ONCE", 64 * 64)
    decode = pipe.vae.decode

    def decoded(latents, *args, **kwargs):
        images.append(len(latents))
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", decoded)
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    parts = search_images(pipe, contrast(), settings, **call)
    hook.remove()
    assert max(rows) == 2  # SD3's guided candidates are two; FLUX's true guidance calls in turn
    assert set(images) == {1}
    torch.testing.assert_close(parts.images, whole.images, atol=1e-4, rtol=1e-4)


def test_skip_layer_guidance_counts_at_levels_between_steps(pipes):
    """A look-ahead between two levels is guided as the step that it lies in."""
    from flow_ttrl.sampling.hosts.diffusers_pipelines import call_of

    call = {"prompt": PROMPT, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5}
    made = call_of(pipes["sd3"])(pipes["sd3"], SMALL | call | {"num_inference_steps": 8})
    levels = made.sigmas.tolist()
    guided = [made._skips_layers(level) for level in levels[:-1]]
    assert guided == [False, True, True, True, False, False, False, False]
    assert made._skips_layers((levels[1] + levels[2]) / 2)
    assert not made._skips_layers((levels[4] + levels[5]) / 2)


def test_a_small_decoder_judges_and_the_pipelines_own_draws(pipes):
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    small = AutoencoderTiny(latent_channels=4, scaling_factor=1.0, shift_factor=0.0).eval()
    call = {"prompt": PROMPT, "output_type": "pt", "seed": 5} | SMALL
    ours = search_images(pipes["sd3"], contrast(), OFF, decoder=small, **call)
    plain = search_images(pipes["sd3"], contrast(), OFF, **call)
    assert torch.equal(ours.images, plain.images)
    with torch.no_grad():
        seen = small.decode(ours.result.latents).sample / 2 + 0.5
    expected = contrast().score(seen.clamp(0, 1).movedim(1, -1), [PROMPT]).total
    assert torch.allclose(ours.result.rewards, expected, atol=1e-5)
    assert not torch.allclose(ours.result.rewards, plain.result.rewards, atol=1e-3)


@pytest.mark.parametrize("arch", MAKE)
def test_lora_of_the_transformer_takes_part(arch):
    peft = pytest.importorskip("peft", reason="LoRA in diffusers needs peft")
    pipe = MAKE[arch]()
    bare = both(pipe, prompt=PROMPT)[0]
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(4)
    pipe.transformer.add_adapter(config)
    for scale in (1.0, 0.4):
        stock, ours = both(pipe, prompt=PROMPT, joint_attention_kwargs={"scale": scale})
        assert torch.equal(stock, ours.images)
        assert not torch.equal(stock, bare)


def refused(pipes):
    from diffusers import FlowMatchHeunDiscreteScheduler
    from diffusers.callbacks import SD3CFGCutoffCallback

    heun = tiny_flux()
    heun.scheduler = FlowMatchHeunDiscreteScheduler()

    def meddle(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * 0}

    return [
        (pipes["sd3"], {"promt": PROMPT}, "expected arguments of StableDiffusion3Pipeline's call"),
        (pipes["flux"], {"prompt": PROMPT, "ip_adapter_image": 1}, "without image prompts"),
        (pipes["sd3"], {"prompt": PROMPT, "height": 50}, "divisible by"),
        (pipes["sd3"], {}, "Provide either `prompt` or `prompt_embeds`"),
        (heun, {"prompt": PROMPT}, "expected a FlowMatchEulerDiscreteScheduler"),
        (object(), {"prompt": PROMPT}, "StableDiffusion3Pipeline or FluxPipeline of diffusers"),
        (pipes["sd3"], {"prompt": PROMPT, "callback_on_step_end": meddle}, "changes latents"),
        (
            pipes["sd3"],
            {"prompt": PROMPT, "callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=0.4)},
            "a callback that only watches",
        ),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_cannot_be_carried_out_is_refused(pipes, number):
    pipe, call, told = refused(pipes)[number]
    with pytest.raises(ValueError, match=told):
        search_images(pipe, contrast(), OFF, **SMALL | call)
