"""A tower in the host's own clip_vision folder serves a reward. Prints one JSON object.

    COMFYUI_PATH=... <the host's python> towers.py MODELS EMPTY

MODELS are tiny checkpoints; EMPTY becomes the host's models folder, with CLIP's in clip_vision
under a name of its own.
"""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from started_host import start_host

MODELS, EMPTY = map(Path, sys.argv[1:])
start_host("--base-directory", str(EMPTY))

import folder_paths  # noqa: E402, F401
import torch  # noqa: E402

rewards = importlib.import_module("pack.rewards")
files = importlib.import_module("pack.rewards.files")
ours = importlib.import_module("pack.rewards.comfy")

official = MODELS / "clip-vit-large-patch14"
host = EMPTY / "models" / "clip_vision" / "own name"
host.mkdir(parents=True)
before = rewards.CATALOGUE["clipscore"].lacks(ours.folders())
tower = host / "model.safetensors"  # with its config, since it is tiny
for name in ("model.safetensors", "config.json"):
    shutil.copy(official / name, host / name)
twin = files.Twin(tower.stat().st_size, files.checksum(tower))
entry = rewards.CATALOGUE["clipscore"]
entry = replace(entry, files=(replace(entry.files[0], twins=(twin,)),))
rewards.CATALOGUE["clipscore"] = entry

images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
scores = [
    rewards.load_reward("clipscore", folders=folders, place=ours.managed).score(images, ["a", "b"])
    for folders in (ours.folders(), [MODELS])
]
found = {
    "first_folder": ours.folders()[0].name,
    "lacked_before": len(before),
    "lacks": entry.lacks(ours.folders()),
    "same_scores": torch.equal(*scores),
}
sys.stdout.write(json.dumps(found) + "\n")
