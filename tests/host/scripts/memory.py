"""Rewards' networks under the host's memory manager. Prints one JSON object.

    COMFYUI_PATH=... <the host's python> memory.py MODELS

On a CPU there is no second device to move to: this shows the host's bookkeeping, not a move.
"""

import importlib
import json
import sys
from pathlib import Path

from started_host import start_host

MODELS = Path(sys.argv[1])
start_host()

import comfy.model_management as management  # noqa: E402
import torch  # noqa: E402

rewards = importlib.import_module("pack.rewards")
ours = importlib.import_module("pack.rewards.comfy")

images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def load(name: str):
    return rewards.load_reward(name, folders=[MODELS], place=ours.managed)


with torch.inference_mode():
    mix = rewards.RewardMix(((load("clipscore"), 1.0), (load("aesthetic"), 1.0)))
    before = mix.score(images, ["a red fox"]).total
    sizes = [patcher.model_size() for patcher in mix.patchers]
    management.load_models_gpu(mix.patchers)
    listed = {id(loaded.model.model) for loaded in management.current_loaded_models}
    counted = all(id(patcher.model) in listed for patcher in mix.patchers)
    management.unload_all_models()
    after = mix.score(images, ["a red fox"]).total

    # "meta" plays a card that is short of memory
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    card, own = torch.device("meta"), torch.device("cpu")
    patcher = ours.WholePatcher(module, load_device=card, offload_device=own)
    patcher.partially_load(card, 1)
    whole = all(parameter.device == card for parameter in module.parameters())
    honest = patcher.loaded_size() == patcher.model_size()
    freed = patcher.partially_unload(own, 1)
    kept = all(parameter.device == card for parameter in module.parameters())

sys.stdout.write(
    json.dumps(
        {
            "networks": len(mix.patchers),
            "patchers_for_the_cache": len(mix.get_models()),
            "sizes": sizes,
            "counted": counted,
            "same_scores_after_unloading": bool(torch.equal(before, after)),
            "whole_though_short_of_memory": whole and kept and honest,
            "freed_in_part": freed,
        }
    )
)
