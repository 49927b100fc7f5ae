"""Frozen networks and where they run; image towers that rewards share; text features kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

KEPT_PROMPTS = 512


class Network:
    """A frozen module and the device that it runs on; called like the module.

    Args:
        module: its towers are in a low precision on a GPU, its heads in float32.
        device: where it runs. This class leaves the module there for good; a host's memory manager
            may bring it only when it is needed (``comfy.py``).

    Attributes:
        working_memory: bytes that it takes at most while it runs, where that is worth telling.
    """

    working_memory: int = 0

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.device = module, device

    def bring(self) -> None:
        """Have the module on its device."""

    def rest(self) -> None:
        """What was to be scored is scored: the module may leave its device until the next time."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The module's float32 output for ``inputs``, on its device."""
        self.bring()
        return self.module(*(x.to(self.device) for x in inputs)).float()


Place = Callable[[nn.Module], Network]
"""Puts a module where it is to run: ``on_device``, or ComfyUI's memory manager."""


def tower_dtype(device: torch.device) -> torch.dtype:
    """Half precision on an accelerator, float32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def found_device(device: str | torch.device = "auto") -> torch.device:
    """A device by name; "auto" takes an accelerator where there is one.

    Raises:
        ValueError: this machine has none of that name.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected a device of this machine, such as cpu, cuda or cuda:1, got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None


class Visiting(Network):
    """A network that is on its device only while images are scored or prompts encoded."""

    def bring(self) -> None:
        self.module.to(self.device)

    def rest(self) -> None:
        self.module.to("cpu")


@cache
def on_device(
    device: str | torch.device = "auto", dtype: torch.dtype | None = None, visiting: bool = False
) -> Place:
    """Networks that stay on ``device``, or are ``visiting`` it; see :func:`found_device`."""
    device = found_device(device)

    def place(module: nn.Module) -> Network:
        lowered = lower(module, dtype or tower_dtype(device))
        return Visiting(lowered, device) if visiting else Network(lowered.to(device), device)

    return place


class WideRange(nn.Module):
    """A network that overflows in float16: it is in bfloat16 where others are in that.

    Its buffers stay as they are, since positions are counted by some.
    """


def lower(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``module`` with its towers in ``dtype``; children named "head" stay in float32."""
    if isinstance(module, Head):
        return module.float()
    if isinstance(module, WideRange):
        wide = torch.bfloat16 if dtype == torch.float16 else dtype
        for parameter in module.parameters():
            parameter.data = parameter.data.to(wide)
        return module
    for name, child in module.named_children():
        child.to(torch.float32 if name == "head" else dtype)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    return module


class Head(nn.Sequential):
    """Layers of a regression head, always in float32."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.float())


_shared: ContextVar[dict | None] = ContextVar("shared image features", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Inside, the features of one images tensor are computed once a tower."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


class ImageTower:
    """An image encoder and the preprocessing that it was trained with.

    Args:
        network: pixels [B, 3, h, w] to features [B, D].
        pixels: images [B, H, W, 3] to what the network takes.
        width: D.
    """

    def __init__(self, network: Network, pixels: Callable[[Tensor], Tensor], width: int):
        self.network, self.pixels, self.width = network, pixels, width

    def features(self, images: Tensor) -> Tensor:
        """float32 features [B, D] of ``images``."""
        known = _shared.get()
        if known is None:
            return self.network(self.pixels(images.to(self.network.device)))
        key = id(images), id(self.network), self.pixels
        if key not in known:
            features = self.network(self.pixels(images.to(self.network.device)))
            known[key] = images, features  # the images too, so that no others get their id
        return known[key][1]

    def unit_features(self, images: Tensor) -> Tensor:
        """The same of length 1."""
        return functional.normalize(self.features(images), dim=-1)


class TextFeatures:
    """Features [N, D] of prompts, of length 1, each prompt encoded once.

    Args:
        network: token ids [N, L] to features [N, D].
        tokens: prompts to ids.
    """

    def __init__(self, network: Network, tokens: Callable[[list[str]], Tensor]):
        self.network, self.tokens = network, tokens
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: list[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            # ordinary tensors, so that a gradient through the images may use them later
            with torch.inference_mode(False), torch.no_grad():
                self._known.update(zip(new, self._encode(new), strict=True))
        found = torch.stack([self._known[prompt] for prompt in prompts])
        while len(self._known) > KEPT_PROMPTS:
            self._known.popitem(last=False)
        return found

    def _encode(self, prompts: list[str]) -> Tensor:
        return functional.normalize(self.network(self.tokens(prompts)), dim=-1)
