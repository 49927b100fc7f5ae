"""The two sides of versus_paper.py: the same components, searched by ours and by theirs."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from paper_worlds import WORLDS
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from flow_ttrl.headless import paper_settings, search_images
from flow_ttrl.rewards.mixer import Judge
from flow_ttrl.sampling import make_settings

FILES = {"sd3": "pipeline_SD3_with_log_prob", "flux": "pipeline_FLUX_with_log_prob"}
CLASSES = {"sd3": "SD3TTRLPipeline", "flux": "FluxTTRLPipeline"}


class Stages:
    """Seconds of a search by stage; what one stage does within another is the inner one's."""

    NAMES = ("model", "backward", "decode", "reward")

    def __init__(self, pipe):
        self.seconds, self.within = dict.fromkeys(self.NAMES, 0.0), [0.0]
        self._watch(pipe.transformer, "forward", "model")
        self._watch(pipe.vae, "decode", "decode")
        self._watch(Judge, "score", "reward")
        self._watch(torch.autograd, "grad", "backward")
        self._watch(torch.autograd, "backward", "backward")  # what Tensor.backward calls

    def _watch(self, owner, name: str, stage: str) -> None:
        exact = getattr(owner, name)

        def timed(*args, **kwargs):
            began = now()
            self.within.append(0.0)
            try:
                return exact(*args, **kwargs)
            finally:
                took = now() - began
                self.seconds[stage] += took - self.within.pop()
                self.within[-1] += took

        setattr(owner, name, timed)

    def take(self, whole: float) -> dict[str, float]:
        """Of a search of ``whole`` seconds; ``rest`` is what no stage has."""
        found = self.seconds | {"rest": whole - sum(self.seconds.values())}
        self.seconds, self.within = dict.fromkeys(self.NAMES, 0.0), [0.0]
        return found


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Counted:
    """Model calls and backwards of a pipeline's transformer, counted alike for both sides."""

    def __init__(self, pipe, pair: bool):
        self.rows = self.graphs = 0
        self.pair = 2 if pair else 1
        self.hook = pipe.transformer.register_forward_hook(self._saw, with_kwargs=True)

    def _saw(self, module, args, kwargs, output) -> None:
        rows = len(kwargs["hidden_states"]) // self.pair
        self.rows += rows
        self.graphs += rows * output[0].requires_grad

    def take(self) -> dict[str, int]:
        found = {"model_calls": self.rows, "backwards": self.graphs}
        self.rows = self.graphs = 0
        return found | {"calls": found["model_calls"] + 2 * found["backwards"]}


class Side:
    """One side in its process."""

    def __init__(self, args, arch: str):
        torch.set_num_threads(args.threads)
        self.pipe, self.reward, self.call = WORLDS[args.world](arch)
        self.pipe.set_progress_bar_config(disable=True)
        self.call["num_inference_steps"] = args.steps
        self.counted = Counted(self.pipe, pair=arch == "sd3")
        self.stages = Stages(self.pipe)
        self.arch = arch

    def run(self, prompt: str, seed: int, plain: bool) -> dict:
        """One image: reward, time and cost; with ``plain`` that of an unsearched one, too."""
        told = {}
        if plain:
            sampled = search_images(
                self.pipe,
                self.reward,
                make_settings(budget=1, keep_better=False),
                seed=seed,
                prompt=prompt,
                **self.call,
            )
            told["plain"] = self.judged(sampled.images[0], prompt)
        self.counted.take()
        self.stages.take(0)
        with Peak() as peak:
            began = now()
            image = self.search(prompt, seed)
            told["seconds"] = now() - began
        told |= self.counted.take()
        told["stages"] = self.stages.take(told["seconds"])
        return told | {"reward": self.judged(image, prompt), "peak_memory": peak.gigabytes}

    def judged(self, image: Image.Image, prompt: str) -> float:
        return self.reward.score(_tensor([image]), [prompt]).total.item()

    def search(self, prompt: str, seed: int) -> Image.Image:
        raise NotImplementedError


class Ours(Side):
    """Our search by its public interface."""

    def __init__(self, args, arch: str):
        super().__init__(args, arch)
        self.settings = paper_settings(arch)
        if args.strategy != "flow_ttrl":
            self.settings = make_settings(args.strategy, budget=args.budget, keep_better=False)
        self.settings = replace(self.settings, micro_batch=args.micro_batch)

    def search(self, prompt: str, seed: int) -> Image.Image:
        call = self.call | {"prompt": prompt}
        return search_images(self.pipe, self.reward, self.settings, seed=seed, **call).images[0]


class Theirs(Side):
    """The published pipeline on the same components, at its demo's settings."""

    def __init__(self, args, arch: str):
        super().__init__(args, arch)
        sys.path[:] = [str(Path(args.reference).absolute()), *filter(_free, sys.path)]
        sys.dont_write_bytecode = True
        module = __import__(FILES[arch])
        published = getattr(module, CLASSES[arch])
        own = type(self.pipe)
        if not issubclass(published, own):  # it has a prompt encoder of its own
            published = type(published.__name__, (own, published), {})
        self.pipe.__class__ = published
        parameters = paper_settings(arch).parameters
        self.settings = {
            "noise_range": list(parameters.noise_range),
            "scale_factor": parameters.scale_factor,
            "group_size": parameters.group_size,
            "beta1": parameters.beta1,
            "beta2": parameters.beta2,
            "internal_reward_timestep": parameters.internal_reward_timestep,
            "external_reward_timestep": parameters.external_reward_timestep,
            "reward_diff_threshold": parameters.reward_diff_threshold,
            "RL_interation_num": parameters.rl_iterations,
        }

    def score(self, images, prompts, metadata) -> tuple[dict, dict]:
        """What its scorer gives: totals, and nothing else."""
        return {"avg": [self.reward.score(_tensor(images), prompts).total]}, {}

    def search(self, prompt: str, seed: int) -> Image.Image:
        torch.manual_seed(seed)  # of its rollouts, which the generator does not reach
        with redirect_stdout(open(os.devnull, "w")):
            return self.pipe(
                prompt,
                generator=torch.Generator().manual_seed(seed),
                scoring_fn=self.score,
                **self.call,
                **self.settings,
            ).images[0]


def _free(place: str) -> bool:
    """Whether a folder of the path has no module that hides theirs, which is a bare folder."""
    names = ("rewards.py", "rewards/__init__.py")
    return not any((Path(place or ".") / name).exists() for name in names)


def _tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([to_tensor(image) for image in images]).movedim(1, -1)


class Peak:
    """GiB that a search takes at its most, beyond what was there: on the card, or of the process.

    A process is looked at every two milliseconds.
    """

    def __enter__(self) -> Peak:
        self.most, self.done = 0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before = self._resident()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        if torch.cuda.is_available():
            self.most = torch.cuda.max_memory_allocated()
        else:
            self.thread.join()

    @property
    def gigabytes(self) -> float:
        return max(self.most - self.before, 0) / 2**30

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
