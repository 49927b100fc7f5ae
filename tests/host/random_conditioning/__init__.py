"""A node of the tests' own: CONDITIONING as a text encoder of a given width gives it, at random."""

import torch


class RandomConditioning:
    """In place of text encoders whose true size is gigabytes."""

    FUNCTION, CATEGORY, RETURN_TYPES = "draw", "tests", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        number = ("INT", {"default": 1, "max": 2**32})
        return {"required": {"width": number, "pooled": number, "seed": number}}

    def draw(self, width: int, pooled: int, seed: int):
        draws = torch.Generator().manual_seed(seed)
        features = torch.randn(1, 16, width, generator=draws)
        return ([[features, {"pooled_output": torch.randn(1, pooled, generator=draws)}]],)


NODE_CLASS_MAPPINGS = {"RandomConditioning": RandomConditioning}
