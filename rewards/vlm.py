"""A vision-language model as judge: the probability of yes to questions about an image.

VQAScore's idea (arXiv 2404.01291): the model is asked, and of the first token of its answer the
share of yes in yes and no is the score. One forward, nothing is generated. Where the model runs is
another matter: ``vlm_folder.py`` has transformers', ``comfy_vlm.py`` ComfyUI's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .base import Reward
from .networks import Network
from .preprocess import channels_first, resize
from .questions import ANSWERED, Question, about, check_combine, parse, split

YES, NO = ("Yes", "yes", "YES", " Yes", " yes"), ("No", "no", "NO", " No", " no")
LEAST = 0.5
"""Probability of yes and no together, below which the judge is not answering."""
SIDES = (256, 2048)
"""Of squares with as many pixels as a judged image may have; the usual one is 1024."""
TOLD_APART = 0.1
"""By how much yes has to be likelier of what is so than of what is not."""
TOKENS = 8192
"""That run through the judge at once."""
_REPLY = "{} Please answer yes or no."


class VisionLanguageModel(ABC):
    """A chat model that looks at an image; a host says how it runs.

    Attributes:
        network: what has to be on the device.
        control_words: texts that its tokenizer takes for more than text.
        multiple: pixels that an image's sides are multiples of.
        tokens_per_pixel: of an image, for how many rows run at once.
    """

    network: Network
    control_words: tuple[str, ...]
    multiple: int = 1
    tokens_per_pixel: float = 1 / 32**2

    @abstractmethod
    def token(self, word: str) -> int | None:
        """The one token that ``word`` is, and that is ``word`` again; None where there is none."""

    @abstractmethod
    def look(self, image: Tensor) -> object:
        """What the model takes of an image [1, H, W, 3], for any number of questions."""

    @abstractmethod
    def next_logits(self, seen: list, questions: list[str]) -> Tensor:
        """float32 logits [N, V] of the first token of the answers to ``questions``, one each.

        Args:
            seen: of :meth:`look`, of images of one size.
        """


def yes_probability(logits: Tensor, yes: list[int], no: list[int]) -> tuple[Tensor, Tensor]:
    """The share of yes in yes and no [N], and how likely both together are [N].

    Args:
        logits: [N, V] of the next token.
        yes, no: token ids.
    """
    known = logits.float().log_softmax(-1)
    agrees, disagrees = (known[:, ids].logsumexp(-1) for ids in (yes, no))
    return torch.sigmoid(agrees - disagrees), agrees.exp() + disagrees.exp()


def plain(text: str, control_words: tuple[str, ...]) -> str:
    """``text`` with a space in each control word, which makes it text like any other.

    What a space does not change, a letter or white space, is left as it is.
    """
    words = [word for word in control_words if len(word) > 1 and len(word.split()) == 1]
    while found := [word for word in words if word in text]:
        longest = max(found, key=len)
        text = text.replace(longest, f"{longest[:1]} {longest[1:]}")
    return text


def working_memory(width: int, mlp: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Bytes that a judge takes beside its weights, by its sizes.

    A layer holds three tensors as wide as its MLP and six as wide as the model, of as many tokens
    as run at once; then the weights of the vocabulary's words, in float32.
    """
    return TOKENS * (3 * mlp + 6 * width) * dtype.itemsize + 4 * vocabulary * width


def judged_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """(height, width) that an image is judged at, in multiples.

    Its own, unless it has more pixels than a square of ``side`` or fewer than one of 256.
    """
    own = math.sqrt(height * width)
    scale = min(max(own, SIDES[0]), side) / own
    return tuple(math.ceil(n * scale / multiple - 1e-6) * multiple for n in (height, width))


class Asking:
    """Puts questions to a model, and says how sure it is of yes.

    Raises:
        ValueError: the tokenizer has no yes or no, or the model fails :meth:`check`.
    """

    def __init__(self, model: VisionLanguageModel, side: int = 1024):
        if not SIDES[0] <= side <= SIDES[1]:
            raise ValueError(f"expected a side of {SIDES[0]}..{SIDES[1]} pixels, got {side}")
        self.model, self.side = model, side
        self.yes, self.no = self._tokens(YES), self._tokens(NO)
        self.check()

    def _tokens(self, words: tuple[str, ...]) -> list[int]:
        found = dict.fromkeys(self.model.token(word) for word in words)
        found.pop(None, None)
        if not found:
            raise ValueError(
                f"expected a model with a token for {words[0]!r}, got none; take a Qwen3-VL, "
                "Qwen2.5-VL or SmolVLM with its own tokenizer"
            )
        return list(found)

    def __call__(self, images: Tensor, questions: list[list[str]]) -> tuple[Tensor, Tensor]:
        """P(yes) and the probability of yes and no together, of each image's questions in turn.

        Args:
            images: [B, H, W, 3] in 0..1.
            questions: B lists, which may differ in length.

        Returns:
            Two tensors [B * their number], on the judge's device.
        """
        size = judged_size(*images.shape[1:3], self.side, self.model.multiple)
        pixels = channels_first(images.to(self.model.network.device))
        pixels = resize(pixels, size).movedim(1, -1)
        rows = max(1, int(TOKENS / (math.prod(size) * self.model.tokens_per_pixel)))
        answers, chunk = [], []
        for image, asked in zip(pixels.split(1), questions, strict=True):
            seen = self.model.look(image)  # once, for all of its questions
            for question in asked:
                chunk.append((seen, question))
                if len(chunk) == rows:
                    answers.append(self._answers(chunk))
                    chunk = []
        if chunk:
            answers.append(self._answers(chunk))
        return torch.cat([p for p, _ in answers]), torch.cat([mass for _, mass in answers])

    def _answers(self, rows: list[tuple[object, str]]) -> tuple[Tensor, Tensor]:
        texts = [_REPLY.format(plain(text, self.model.control_words)) for _, text in rows]
        logits = self.model.next_logits([seen for seen, _ in rows], texts)
        return yes_probability(logits, self.yes, self.no)

    @torch.inference_mode()
    def check(self) -> None:
        """Ask about a red and a blue square.

        Raises:
            ValueError: the model does not answer, does not see, or does not tell them apart.
        """
        squares = torch.zeros(2, SIDES[0], SIDES[0], 3)
        squares[0, ..., 0] = squares[1, ..., 2] = 1
        p, mass = (x.tolist() for x in self(squares, [["Is this image red?"]] * 2))
        mend = "take a Qwen3-VL, Qwen2.5-VL or SmolVLM that is tuned for instructions"
        if not min(mass) >= LEAST:
            raise ValueError(
                "expected a judge that answers yes or no, got one that gives both together a "
                f"probability of {min(mass):.2g}; {mend}"
            )
        if p[0] == p[1]:
            raise ValueError(
                f"expected a judge that looks at the image, got {p[0]:.4f} for a red and for a "
                f"blue square alike; {mend}"
            )
        if not p[0] - p[1] >= TOLD_APART:
            raise ValueError(
                "expected a judge that tells a red square from a blue one, got "
                f"{p[0]:.4f} and {p[1]:.4f} as the probability that they are red; {mend}"
            )


class VLM(Reward):
    """How sure a vision-language model is that an image is what was asked for.

    Args:
        model: runs on some host.
        questions: as text, see :func:`parse`, or made. Empty: the prompt as a whole.
        combine: questions to one score: their weighted ``mean``, or the ``weakest``.
        split_prompt: ask for the prompt's parts, too, by :func:`split`.
        side: images with more pixels than a square of this side are scaled down.
    """

    name = "vlm"
    units = "probability of yes, 0..1"
    typical = (0.0, 1.0)
    not_finite = (
        "it does not answer yes or no there (see 'answered'); ask what can be answered so, or take "
        "a model that is tuned for instructions"
    )

    def __init__(
        self,
        model: VisionLanguageModel,
        questions: str | tuple[Question, ...] = "",
        combine: str = "mean",
        split_prompt: bool = False,
        side: int = 1024,
    ):
        self.questions = parse(questions) if isinstance(questions, str) else questions
        check_combine(self.questions, combine)
        self.combine, self.split_prompt = combine, split_prompt
        self.needs_prompt = not self.questions
        self.networks = (model.network,)
        self.ask = Asking(model, side)

    def asked(self, prompt: str) -> tuple[Question, ...]:
        """The questions about an image of ``prompt``."""
        if self.questions:
            return self.questions
        return split(prompt) if self.split_prompt else (about(prompt),)

    def check(self, prompts: list[str]) -> None:
        if not self.questions and not all(prompt.strip() for prompt in prompts):
            raise ValueError(
                "expected a prompt or questions to judge by, got neither; write one of them"
            )

    def parts(self, prompts: list[str]) -> list[str]:
        asked = [self.asked(prompt) for prompt in prompts]
        several = any(len(questions) > 1 for questions in asked)
        names = dict.fromkeys(q.name for questions in asked for q in questions)
        return [*(names if several else ()), ANSWERED]

    def describe(self, prompts: list[str]) -> dict:
        asked = {q: None for prompt in prompts for q in self.asked(prompt)}
        listed = [
            {"name": q.name, "asked": q.asked, "weight": q.weight, "wanted": q.wanted}
            for q in asked
        ]
        return {"combine": self.combine, "side": self.ask.side, "questions": listed}

    def _measure(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The score [B]; each question's P(what is wanted), and ``answered``: the least probability
        of yes and no together. Below ``LEAST`` the judge has no verdict: NaN."""
        asked = [self.asked(prompt) for prompt in prompts]
        counts = [len(questions) for questions in asked]
        p, mass = self.ask(images, [[q.asked for q in questions] for questions in asked])
        p, mass = p.to(images.device), mass.to(images.device)
        p = p.where(mass >= LEAST, torch.nan)
        scores, parts = [], {}
        for row, (questions, yes) in enumerate(zip(asked, p.split(counts), strict=True)):
            wanted = torch.tensor([q.wanted for q in questions], device=yes.device)
            held = yes.where(wanted, 1 - yes)
            scores.append(self._combined(questions, held))
            for question, value in zip(questions, held, strict=True):
                column = parts.setdefault(question.name, p.new_full((len(images),), torch.nan))
                column[row] = value
        parts[ANSWERED] = torch.stack([m.min() for m in mass.split(counts)])
        return torch.stack(scores), parts

    def _combined(self, questions: tuple[Question, ...], held: Tensor) -> Tensor:
        weights = held.new_tensor([question.weight for question in questions])
        counting = held[weights > 0]
        if self.combine == "weakest":
            return counting.min()
        return (counting * weights[weights > 0]).sum() / weights.sum()

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self._measure(images, prompts)[0]
