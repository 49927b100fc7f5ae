"""Random graphs and settings of stock nodes and ours, valid and not, by a seed.

Every graph has a stock KSampler by 'euler' ("stock") as the oracle of what ours may do.
"""

from __future__ import annotations

import random

import graphs
from graphs import node

PROMPTS = ("two red squares", "a green cross above a blue circle", graphs.PROMPT)
STRATEGIES = (
    *("steered", "steered", "best_of_n", "drafts", "zero_order", "paths", "particles"),
    *("rbf", "evolution", "glass", "glass", "flow_ttrl", "reward_gradient"),
)
PATCHES = {
    "APG": {"momentum": (0.0, 0.0, -0.5), "eta": (1.0, 0.3), "norm_threshold": (5.0, 0.0)},
    "CFGZeroStar": {},
    "TemporalScoreRescaling": {"tsr_k": (0.9,), "tsr_sigma": (1.0,)},
    "SkipLayerGuidanceDiT": {
        "double_layers": ("0",),
        "single_layers": ("1",),
        "scale": (3.0,),
        "start_percent": (0.0, 0.1),
        "end_percent": (0.4, 1.0),
        "rescaling_scale": (0.0, 0.7),
    },
    "RescaleCFG": {"multiplier": (0.7,)},
    "EasyCache": {
        "reuse_threshold": (0.2, 3.0),
        "start_percent": (0.0, 0.15),
        "end_percent": (0.95,),
        "verbose": (False,),
    },
    "LazyCache": {
        "reuse_threshold": (0.2, 3.0),
        "start_percent": (0.0, 0.15),
        "end_percent": (0.95,),
        "verbose": (False,),
    },
    "FreSca": {"scale_low": (1.0,), "scale_high": (1.25,), "freq_cutoff": (3,)},
    "CFGNorm": {"strength": (1.0, 0.5)},
    "Mahiro": {},
    "DifferentialDiffusion": {"strength": (1.0,)},
    "Epsilon Scaling": {"scaling_factor": (1.005, 1.2)},
    "ModelSamplingSD3": {"shift": (1.0, 2.14, 3.0, 4.03)},
}
"""Stock nodes on a MODEL, and what their inputs are drawn from."""


class Fuzz:
    """One random graph.

    Attributes:
        graph: nodes up to the samplers' inputs.
        stock, ours: the samplers' own nodes; ours in its plain form ("off") and searching ("on").
    """

    def __init__(self, seed: int, known: set[str]):
        self.random = random.Random(seed)
        self.known = known
        pick = self.random.choice
        self.architecture = pick(("sd3", "flux"))
        self.batch = pick((1, 1, 1, 2, 3))
        self.width, self.height = pick(((96, 96), (96, 96), (112, 80), (104, 88), (72, 136)))
        self.cfg = pick((1.0, 1.0, 3.0, 0.0, 7.5))
        self.graph = graphs.demo(self.architecture, pick(PROMPTS), self.batch)
        self.graph["latent"]["inputs"] |= {"width": self.width, "height": self.height}
        self.model, self.positive, self.latent = ["model", 0], ["positive", 0], ["latent", 0]
        for number in range(pick((0, 0, 1, 1, 2))):
            self._patch(number)
        self._condition()
        self._image()
        schedulers = ("simple", "normal", "sgm_uniform", "beta", "karras", "kl_optimal")
        self.sampling = {
            "seed": self.random.randrange(2**64),
            "steps": pick((1, 2, 4, 7, 10)),
            "cfg": self.cfg,
            "scheduler": pick(schedulers),
            "denoise": pick((1.0, 1.0, 1.0, 0.6, 0.3, 0.01, 0.0)),
        }
        self.wires = {
            "model": self.model,
            "positive": self.positive,
            "negative": ["negative", 0],
            "latent_image": self.latent,
        }

    def _patch(self, number: int) -> None:
        names = [name for name in PATCHES if name in self.known]
        name = self.random.choice(names)
        inputs = {key: self.random.choice(values) for key, values in PATCHES[name].items()}
        self.graph[f"patch {number}"] = node(name, model=self.model, **inputs)
        self.model = [f"patch {number}", 0]

    def _condition(self) -> None:
        kind = self.random.choice(("", "", "", "guided", "combined", "area", "range", "averaged"))
        other = node("CLIPTextEncode", clip=["model", 1], text="a white circle")
        made = {
            "guided": node("FluxGuidance", conditioning=["positive", 0], guidance=3.0),
            "combined": node(
                "ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["other", 0]
            ),
            "area": node(
                "ConditioningSetAreaPercentage",
                conditioning=["positive", 0],
                **{"width": 0.5, "height": 1.0, "x": 0.25, "y": 0.0, "strength": 0.8},
            ),
            "range": node(
                "ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.0, end=0.7
            ),
            "averaged": node(
                "ConditioningAverage",
                conditioning_to=["positive", 0],
                conditioning_from=["other", 0],
                conditioning_to_strength=0.7,
            ),
        }
        self.readable = kind not in ("combined", "averaged")  # in the demo's small language
        if kind:
            self.graph |= {"other": other, "conditioned": made[kind]}
            self.positive = ["conditioned", 0]

    def _image(self) -> None:
        kind = self.random.choice(("", "", "", "image", "mask", "odd mask", "repeated", "selected"))
        if not kind:
            return
        size = {"width": self.width, "height": self.height}
        drawn = node("EmptyImage", **size, batch_size=self.batch, color=0x40A020)
        self.graph |= {
            "drawn": drawn,
            "encoded": node("VAEEncode", pixels=["drawn", 0], vae=["model", 2]),
        }
        self.latent = ["encoded", 0]
        if kind == "repeated":
            self.graph["used"] = node("RepeatLatentBatch", samples=self.latent, amount=2)
            self.batch *= 2
        elif kind == "selected":
            self.graph["used"] = node(
                "LatentFromBatch", samples=self.latent, batch_index=self.batch - 1, length=1
            )
            self.batch = 1
        elif kind != "image":
            if kind == "odd mask":
                size = {"width": 40, "height": 56}
            self.graph["mask"] = node("SolidMask", value=self.random.choice((0.5, 1.0)), **size)
            self.graph["used"] = node("SetLatentNoiseMask", samples=self.latent, mask=["mask", 0])
        if kind != "image":
            self.latent = ["used", 0]

    def stock(self) -> dict:
        sampler = node("KSampler", **self.sampling, **self.wires, sampler_name="euler")
        return {**self.graph, "sampler": sampler, **_saved("stock", "sampler")}

    def ours(self, name: str, **settings) -> dict:
        """Our search, with these settings in place of drawn ones."""
        pick = self.random.choice
        drawn = {
            "strategy": pick(STRATEGIES),
            "budget": pick((1.5, 2.0, 3.0, 3.0, 6.0)),
            "keep_better": pick((True, False)),
            "micro_batch": pick((0, 0, 1, 2)),
        }
        search = node(
            "TTRLSDELatentSearch",
            **self.sampling,
            **self.wires,
            vae=["model", 2],
            reward=["model", 3],
            prompt=pick(("", "two red squares")) if self.readable else "two red squares",
            baseline=pick((True, False)),
            settings=["settings", 0],
        )
        return {
            **self.graph,
            "settings": graphs.search_settings(**{**drawn, **settings}),
            "sampler": search,
            "plot": node("TTRLRewardPlot", report=["sampler", 2], item=0),
            "report": node("PreviewAny", source=["plot", 1]),
            **_saved(name, "sampler"),
        }


def _saved(name: str, sampler: str) -> dict:
    return {f"{name} saved": node("SaveLatent", samples=[sampler, 0], filename_prefix=name)}
