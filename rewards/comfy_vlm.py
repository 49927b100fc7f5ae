"""Qwen3-VL as ComfyUI loads it for a text encoder, as a judge.

The CLIP stays what it is: nothing is set on it, and the host's memory manager moves it. It is asked
through the host's own parts, which may change from version to version: so what comes of them here
is compared with the host's own way from a text and an image to the last hidden state.
"""

from __future__ import annotations

import comfy.model_management
import comfyui_version
import torch
from torch import Tensor

from .networks import Network
from .vlm import VisionLanguageModel, working_memory

_START, _END = "<|im_start|>user\n<|vision_start|>", "<|im_end|>\n<|im_start|>assistant\n"
_IMAGE, _AFTER = "<|image_pad|>", "<|vision_end|>"
_HOST = comfyui_version.__version__
_AGREES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""By how much of its length a hidden state may be off the host's own."""
_TAKE = "load a Qwen3-VL 4B or 8B with Load CLIP, of a type other than flux and flux2"


class ClipNetwork(Network):
    """A CLIP's model, moved by the host's memory manager as the CLIP itself is."""

    def __init__(self, clip):
        self.patcher = clip.patcher
        super().__init__(clip.cond_stage_model, clip.patcher.load_device)

    def bring(self) -> None:
        """Have it loaded, with this CLIP's own patches.

        A load of one that is would push out what is sampling beside it.
        """
        loaded = [one.model for one in comfy.model_management.current_loaded_models]
        if not any(one and self.patcher.clone_has_same_weights(one) for one in loaded):
            comfy.model_management.load_models_gpu([self.patcher])


class ComfyVLM(VisionLanguageModel):
    """A CLIP of the host's that is Qwen3-VL with its vision tower.

    Raises:
        ValueError: a CLIP of another model, or a host that does not load this one, or has changed
            in how it runs it.
    """

    multiple = 32

    def __init__(self, clip):
        self.network = ClipNetwork(clip)
        self.encoder, self.net = _qwen3_vl(clip)
        inner = getattr(clip.tokenizer, clip.tokenizer.clip)
        self.tokenizer = inner.tokenizer
        self.control_words = tuple(self.tokenizer.get_added_vocab())
        half = comfy.model_management.should_use_bf16(self.network.device)
        self.dtype = torch.bfloat16 if half else torch.float32
        sizes = self.net.model.config
        self.network.working_memory = working_memory(
            sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size, self.dtype
        )
        with torch.inference_mode():
            self._check_own_forward(clip)

    def token(self, word: str) -> int | None:
        ids = self._ids(word)
        return ids[0] if len(ids) == 1 and self.tokenizer.decode(ids) == word else None

    def look(self, image: Tensor) -> tuple[Tensor, dict]:
        """The image's embeddings [L, C], and what goes into the layers beside them."""
        self.network.bring()
        return self.net.preprocess_embed({"type": "image", "data": image}, self.network.device)

    def next_logits(self, seen: list, questions: list[str]) -> Tensor:
        if not issubclass(comfy.model_management.InterruptProcessingException, Exception):
            # hosts whose cancel nobody can take for an error of the judge's
            comfy.model_management.throw_exception_if_processing_interrupted()
        hidden = self._hidden(seen, [f"{_AFTER}{question}{_END}" for question in questions])
        # in float32, since half precision knows but few logits apart
        return self.net.logits(hidden.float()[:, None])[:, -1]

    def _hidden(self, seen: list, texts: list[str]) -> Tensor:
        """The last hidden state [N, C] of each row: the template's start, an image, a text.

        Rows are padded to the right, where attention, which is causal, does not reach.
        """
        self.network.bring()
        device = self.network.device
        start = self._embedded(_START)
        rows = [
            torch.cat([start, image, self._embedded(text)])
            for (image, _), text in zip(seen, texts, strict=True)
        ]
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.dtype)
        image, told = seen[0]
        span = {"type": "image", "index": len(start), "size": len(image), "extra": told}
        places, mask, _ = self.net.build_image_inputs(padded[:1], [span])
        layers = zip(*(told["deepstack"] for _, told in seen), strict=True)
        out = self.net(
            None,
            embeds=padded,
            position_ids=places,
            visual_pos_masks=mask.expand(len(rows), -1),
            deepstack_embeds=[torch.cat(layer) for layer in layers],
        )[0]
        return out[torch.arange(len(rows), device=device), ends]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _embedded(self, text: str) -> Tensor:
        """Embeddings [L, C] of a text's tokens."""
        ids = torch.tensor(self._ids(text), device=self.network.device)
        return self.net.get_input_embeddings()(ids, out_dtype=torch.float32)

    def _check_own_forward(self, clip) -> None:
        """Compare with the host's own way from a text and an image to the last hidden state.

        Raises:
            ValueError: the host takes no image, or comes to something else.
        """
        self.network.bring()
        image = torch.linspace(0, 1, 256 * 288 * 3).view(1, 256, 288, 3).to(self.network.device)
        text = f"{_AFTER}Is this image red?{_END}"
        (row,) = next(iter(clip.tokenize(f"{_START}{_IMAGE}{text}", images=[image]).values()))
        tokens = [token for token, *_ in row]
        if sum(isinstance(token, dict) for token in tokens) != 1:
            raise ValueError(
                f"expected a CLIP whose tokenizer takes an image, got {type(clip.tokenizer)} which "
                f"ignores it; {_TAKE}"
            )
        embeds, _, _, spans = self.encoder.process_tokens([tokens], self.network.device)
        own = self.net(None, embeds=embeds.to(self.dtype), embeds_info=spans)[0][:, -1].float()
        ours = self._hidden([self.look(image)], [text]).float()
        off = ((ours - own).norm() / own.norm()).item()
        if not off <= _AGREES[self.dtype]:
            raise ValueError(
                f"expected ComfyUI {_HOST} to run {type(self.net).__name__} as it is known to, "
                f"got a hidden state that is off by {off:.2g} of its length; {_TAKE}, or tell us "
                "of this version"
            )


def _qwen3_vl(clip) -> tuple:
    """The encoder and the network inside a CLIP.

    Raises:
        ValueError: it is not Qwen3-VL with its vision tower.
    """
    outer = clip.cond_stage_model
    encoder = getattr(outer, getattr(outer, "clip", ""), None)
    net = getattr(encoder, "transformer", None)
    try:
        from comfy.text_encoders.qwen3vl import Qwen3VL
    except ImportError:
        raise ValueError(
            f"expected a ComfyUI that loads Qwen3-VL as a CLIP (0.29 does), got {_HOST}; update "
            "it, or take another reward"
        ) from None
    if not isinstance(net, Qwen3VL):
        got = type(outer if net is None else net).__name__
        raise ValueError(
            f"expected a CLIP that is Qwen3-VL with its vision tower, got {got}, which cannot be "
            f"asked about an image here; {_TAKE}"
        )
    return encoder, net
