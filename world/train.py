"""Train the tiny world's bundled models: ``python -m flow_ttrl.world.train STAGE --work DIR``.

Stages in order: ``vae``, ``latents`` (the training set through the VAE), then ``sd3``, ``flux`` and
``scorer`` in any order, then ``export`` (bfloat16 safetensors into ``world/weights``). Each keeps
a checkpoint in the work folder and goes on from it when started again. Two CPU cores do.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import l1_loss, mse_loss

from ..sampling.hosts.diffusers_networks import (
    flux_velocity,
    packed,
    patch_places,
    sd3_velocity,
    unpacked,
)
from . import latents as latent_space
from .diffusers import build_transformer, build_vae
from .encoder import encode_tokens, pad_tokens
from .prompts import parse, tokenize
from .scorer import Scorer, contrastive_loss, smear, spoil
from .training import Data, Training

log = logging.getLogger("flow_ttrl.train")

DATASET_SIZE = 49_152
DISTILLED_GUIDANCE = (1.0, 6.0)
"""Range of guidance scales that the FLUX model is distilled over."""


def train_vae(work: Path, steps: int) -> None:
    """L1 and a light pull of the latents to the unit normal."""
    data = Data(seed=1)

    def loss_at(_):
        images, _ = data.batch(8)
        images = images * 2 - 1
        latent = vae.encode(images).latent_dist
        decoded = vae.decode(latent.sample()).sample
        kl = latent_space.kl_to_standard_normal(latent.mean, latent.std)
        return l1_loss(decoded, images) + mse_loss(decoded, images) + 1e-3 * kl

    torch.manual_seed(1)
    vae = build_vae()
    Training(vae, work / "vae.pt", steps=steps, lr=1.5e-3, average_decay=0.99).train(loss_at, 100)


@torch.no_grad()
def encode_dataset(work: Path) -> None:
    """The training set as unit latents [N, 16, 12, 12] (fp16) and tokens; the VAE normalised."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["average"])
    data = Data(seed=2)
    means, tokens = [], []
    for _ in range(DATASET_SIZE // 64):
        images, captions = data.batch(64)
        means.append(vae.encode(images * 2 - 1).latent_dist.mean)
        tokens += [pad_tokens(tokenize(caption)) for caption in captions]
    latents = torch.cat(means)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    torch.save(latent_space.normalise(vae.state_dict(), mean, std), work / "vae_unit.pt")
    unit = (latents - mean[:, None, None]) / std[:, None, None]
    torch.save({"latents": unit.half(), "tokens": torch.tensor(tokens)}, work / "latents.pt")


class FlowTraining:
    """Rectified-flow training of one architecture on the encoded data set."""

    def __init__(self, arch: str, work: Path, seed: int):
        data = torch.load(work / "latents.pt", weights_only=True)
        self.latents, self.tokens, self.arch = data["latents"], data["tokens"], arch
        torch.manual_seed(seed)
        self.model = build_transformer(arch)

    def velocity(self, model, x, sigma, tokens: Tensor, guidance: float = 1.0) -> Tensor:
        embeds, pooled = encode_tokens(tokens)
        with torch.autocast(x.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            if self.arch == "sd3":
                v = sd3_velocity(model, x, sigma, embeds, pooled)
            else:
                side = x.shape[-1] // 2
                places = patch_places(side, side)
                v = flux_velocity(model, packed(x), sigma, embeds, pooled, guidance, places)
                v = unpacked(v, side, side)
        return v.float()

    def example(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, their levels, the true velocities and tokens, a tenth of them empty."""
        pick = torch.randint(len(self.latents), (n,))
        x0, tokens = self.latents[pick].float(), self.tokens[pick]
        sigma = torch.sigmoid(0.4 + 1.1 * torch.randn(n))
        noise = torch.randn_like(x0)
        s = sigma[:, None, None, None]
        tokens = tokens * (torch.rand(n, 1) > 0.1)
        return (1 - s) * x0 + s * noise, sigma, noise - x0, tokens

    def loss(self, _) -> Tensor:
        x, sigma, target, tokens = self.example(32)
        return mse_loss(self.velocity(self.model, x, sigma, tokens), target)

    def distillation_loss(self, teacher):
        """The guidance embedding learns classifier-free guidance of the frozen teacher."""
        low, high = DISTILLED_GUIDANCE

        def loss_at(_):
            x, sigma, _, tokens = self.example(32)
            guidance = low + (high - low) * torch.rand(()).item()
            with torch.no_grad():
                x2, s2 = torch.cat([x, x]), torch.cat([sigma, sigma])
                both = torch.cat([tokens, torch.zeros_like(tokens)])
                cond, uncond = self.velocity(teacher, x2, s2, both).chunk(2)
                target = uncond + guidance * (cond - uncond)
            return mse_loss(self.velocity(self.model, x, sigma, tokens, guidance), target)

        return loss_at


def train_sd3(work: Path, steps: int) -> None:
    flow = FlowTraining("sd3", work, seed=3)
    Training(flow.model, work / "sd3.pt", steps=steps, lr=6e-4).train(flow.loss)


def train_flux(work: Path, steps: int) -> None:
    """Plain training at guidance 1, then guidance distillation for an eighth as many steps."""
    flow = FlowTraining("flux", work, seed=4)
    teacher = Training(flow.model, work / "flux_base.pt", steps=steps, lr=6e-4).train(flow.loss)
    flow.model.load_state_dict(teacher.state_dict())
    run = Training(flow.model, work / "flux.pt", steps=steps // 8, lr=2e-4)
    run.train(flow.distillation_loss(teacher))


def train_scorer(work: Path, steps: int) -> None:
    """Contrastive learning on captioned images; captions spoilt in one respect are negatives."""
    data = Data(seed=5)
    trained = {c for pool in data.pools.values() for c in pool}

    def spoilt(caption: str) -> str:
        while (other := spoil(parse(caption), data.rng)) not in trained:
            pass
        return other.prompt

    def loss_at(_):
        images, captions = data.batch(48)
        wrong = [spoilt(caption) for caption in captions]
        return contrastive_loss(scorer, smear(images, data.rng), captions, wrong)

    torch.manual_seed(5)
    scorer = Scorer()
    Training(scorer, work / "scorer.pt", steps=steps, lr=1e-3).train(loss_at)


def export(work: Path, folder: Path) -> None:
    """The averaged weights, in bfloat16 (the scorer and the VAE too), to ``folder``."""
    vae = torch.load(work / "vae_unit.pt", weights_only=True)
    parts = {"vae": vae}
    for name in ("sd3", "flux", "scorer"):
        parts[name] = torch.load(work / f"{name}.pt", weights_only=True)["average"]
    for name, state in parts.items():
        small = {k: v.bfloat16().contiguous() for k, v in state.items()}
        save_file(small, folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "latents", "sd3", "flux", "scorer", "export"))
    parser.add_argument("--work", type=Path, default=Path("runs"), help="checkpoints and data")
    parser.add_argument("--steps", type=int, help="how long to train, where the stage trains")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(sys.stderr), logging.FileHandler(args.work / "train.log")]
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", handlers=handlers)
    log.info("%s: torch %s, %d threads", args.stage, torch.__version__, torch.get_num_threads())
    match args.stage:
        case "vae":
            train_vae(args.work, args.steps or 1_600)
        case "latents":
            encode_dataset(args.work)
        case "sd3":
            train_sd3(args.work, args.steps or 10_000)
        case "flux":
            train_flux(args.work, args.steps or 8_500)
        case "scorer":
            train_scorer(args.work, args.steps or 1_500)
        case "export":
            export(args.work, Path(__file__).parent / "weights")


if __name__ == "__main__":
    main()
