"""Flow-TTRL on FLUX.1-dev: pipeline, rewards, search, image.

python demo/flux_ttrl.py --prompt "a red fox beside a blue door" --out fox.png
python demo/flux_ttrl.py --paper                      # the published settings
python demo/flux_ttrl.py --model tiny-flux --reward verifier --prompt "a red circle"
"""

import argparse
from pathlib import Path

from PIL import Image

from flow_ttrl.headless import (
    Model,
    load_mix,
    load_pipeline,
    make_settings,
    paper_settings,
    search_images,
)
from flow_ttrl.world.rewards import WORLD_REWARDS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev")
parser.add_argument("--prompt", default="a red fox beside a blue door")
parser.add_argument("--reward", default="imagereward=1.0,hps=0.5")
parser.add_argument("--budget", type=float, default=6.0)
parser.add_argument("--steps", type=int, default=28)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--paper", action="store_true")
parser.add_argument("--out", type=Path, default=Path("flux_ttrl.png"))
args = parser.parse_args()
args.out.parent.mkdir(parents=True, exist_ok=True)  # now, not when the image is there
if args.out.suffix.lower() not in Image.registered_extensions():
    parser.error(f"expected --out with an ending such as .png, got {args.out}")

reward = load_mix(args.reward, others=WORLD_REWARDS)
pipe = load_pipeline(Model(args.model))
settings = paper_settings("flux") if args.paper else make_settings(budget=args.budget)

found = search_images(
    pipe,
    reward,
    settings,
    seed=args.seed,
    baseline=True,
    prompt=args.prompt,
    num_inference_steps=40 if args.paper else args.steps,
    guidance_scale=3.5,
)

found.images[0].save(args.out)
found.plain[0].save(args.out.with_stem(f"{args.out.stem}_plain"))
plain, searched = found.result.plain_rewards.item(), found.result.rewards.item()
cost = found.report["cost"]["times_plain"]
print(f"reward {plain:.4f} plain, {searched:.4f} searched, at {cost:g} times a plain sample")
