"""API-format graphs that the host tests queue."""

from __future__ import annotations

PROMPT = "a red circle left of a blue square"


def demo(architecture: str = "sd3", prompt: str = PROMPT, batch: int = 1) -> dict:
    """The demo model with its prompt encoded and an empty latent: nodes "model" to "latent"."""
    return {
        "model": _node("TTRLDemoModel", architecture=architecture, reward="verifier"),
        "positive": _node("CLIPTextEncode", clip=["model", 1], text=prompt),
        "negative": _node("CLIPTextEncode", clip=["model", 1], text=""),
        "latent": _node("EmptySD3LatentImage", width=96, height=96, batch_size=batch),
    }


def _node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def sampling(seed: int, steps: int, cfg: float = 3.0, scheduler: str = "simple") -> dict:
    return {"seed": seed, "steps": steps, "cfg": cfg, "scheduler": scheduler, "denoise": 1.0}


def wires() -> dict:
    return {
        "model": ["model", 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
    }


def stock(name: str, seed: int, steps: int, cfg: float = 3.0, **more) -> dict:
    """A stock KSampler with euler, its latent saved as ``name``."""
    arguments = {**sampling(seed, steps, cfg), **wires(), "sampler_name": "euler", **more}
    return {
        f"{name} sampler": _node("KSampler", **arguments),
        f"{name} saved": _node("SaveLatent", samples=[f"{name} sampler", 0], filename_prefix=name),
    }


def search(name: str, seed: int, steps: int, cfg: float = 3.0, **settings) -> dict:
    """Our search, its latent saved as ``name``, its image scored by "<name> scores"."""
    nodes = {
        f"{name} search": _node(
            "TTRLSDELatentSearch",
            **sampling(seed, steps, cfg),
            **wires(),
            vae=["model", 2],
            reward=["model", 3],
            prompt=PROMPT,
            baseline=True,
            settings=[f"{name} settings", 0],
        ),
        f"{name} settings": _node("TTRLSearchSettings", **{**SETTINGS, **settings}),
        f"{name} saved": _node("SaveLatent", samples=[f"{name} search", 0], filename_prefix=name),
        f"{name} plain": _node(
            "SaveLatent", samples=[f"{name} search", 1], filename_prefix=f"{name}-plain"
        ),
    }
    for kind, output in (("searched", 0), ("baseline", 1)):
        nodes[f"{name} {kind} image"] = _node(
            "VAEDecode", samples=[f"{name} search", output], vae=["model", 2]
        )
        nodes[f"{name} {kind} score"] = _node(
            "TTRLRewardScorer",
            images=[f"{name} {kind} image", 0],
            reward=["model", 3],
            prompt=PROMPT,
        )
        nodes[f"{name} {kind} preview"] = _node("PreviewImage", images=[f"{name} {kind} image", 0])
    return nodes


SETTINGS = {
    "preset": "balanced v1",
    "keep_better": False,
    "max_calls": 0,
    "max_seconds": 0.0,
    "target_reward": 1e6,
    "micro_batch": 0,
    "group_size": 6,
    "rl_iterations": 1,
    "internal_reward_timestep": 0.0,
    "external_reward_timestep": 0.9,
    "step": "midpoint",
    "noise_first": 0.2,
    "noise_last": 0.5,
    "gradient": "jacobian_free",
    "update": "steered",
    "update_first": 0.5,
    "update_last": 0.2,
    "elitist": True,
    "scale_factor": 500.0,
    "prdp_scale": 0.01,
    "grpo_scale": 10.0,
    "beta1": 2e-4,
    "beta2": 0.0,
    "clip": 0.2,
    "adv_clip_max": 5.0,
    "reward_diff_threshold": 0.0,
    "rationorm": True,
}
"""Every widget of TTRLSearchSettings: the API fills in no defaults."""
