"""Tokenizers of the text towers, and what is said of a prompt that is too long for one."""

from __future__ import annotations

import gzip
import importlib.util
import logging
from functools import cache
from pathlib import Path

import torch
from tokenizers import (
    BertWordPieceTokenizer,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from torch import Tensor

log = logging.getLogger("flow_ttrl")

CLIP_LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens:
    """Prompts to ids [N, length], padded and cut; a cut is warned of once a prompt.

    Args:
        name: the reward's name, for the warning.
        length: ids in all, special ones included.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, length: int):
        self.name, self.length, self._whole = name, length, tokenizer
        self._cut = Tokenizer.from_str(tokenizer.to_str())
        self._cut.enable_truncation(length)
        self._cut.enable_padding(length=length)
        self._warned: set[str] = set()

    def __call__(self, prompts: list[str]) -> Tensor:
        return torch.tensor([coded.ids for coded in self._cut.encode_batch(prompts)])

    def masks(self, prompts: list[str]) -> Tensor:
        """1 where an id is the prompt's, 0 where it is padding [N, length]."""
        return torch.tensor([coded.attention_mask for coded in self._cut.encode_batch(prompts)])

    def cut_off(self, prompt: str) -> str:
        """The end of ``prompt`` that does not fit, as it stands there; "" if all of it fits."""
        offsets = [end for _, end in self._whole.encode(prompt).offsets]
        if len(offsets) <= self.length:
            return ""
        return prompt[max(offsets[: self.length - 1]) :].strip()

    def warn(self, prompts: list[str]) -> None:
        """Say, once a prompt, what of it does not count."""
        for prompt in prompts:
            if prompt in self._warned:
                continue
            self._warned.add(prompt)
            if cut := self.cut_off(prompt):
                log.warning(
                    "%s reads %d tokens of a prompt; this part does not count: %r",
                    self.name,
                    self.length,
                    cut,
                )


@cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's tokenizer, as Hugging Face's ``CLIPTokenizer`` is set up.

    Built from the vocabulary in open_clip's wheel, so that there is nothing to download.
    """
    merges = [tuple(line.split()) for line in _clip_merges()]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(pair) for pair in merges] + [_START, _END]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = [(word, vocabulary[word]) for word in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=special
    )
    return tokenizer


def _byte_letters() -> list[str]:
    """GPT-2's letters for bytes, in CLIP's order: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def _clip_merges() -> list[str]:
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ImportError(
            "expected the package open_clip_torch, got none; install it into ComfyUI's Python: "
            "pip install open_clip_torch"
        )
    file = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def bert_tokenizer(vocabulary: Path, size: int) -> Tokenizer:
    """bert-base-uncased's tokenizer from its vocab.txt of ``size`` rows.

    Raises:
        ValueError: the file is no BERT vocabulary, or one of another model.
    """
    words = vocabulary.read_text("utf-8", errors="replace").split("\n")
    wanted = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    lacking = [word for word in wanted if word not in words]
    if lacking:
        raise ValueError(
            f"expected bert-base-uncased's vocab.txt at {vocabulary}, got a file without "
            f"{lacking[0]}; get the file again"
        )
    rows = len(words) - (not words[-1])
    if rows != size:
        raise ValueError(
            f"expected bert-base-uncased's vocab.txt of {size} rows at {vocabulary}, got {rows}; "
            "it is cut off or of another model: get the file again"
        )
    made = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    return Tokenizer.from_str(made.to_str())
