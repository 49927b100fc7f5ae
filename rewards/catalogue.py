"""Every reward by name: what it judges, which files it needs, where they are from, how it loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .analytic import ANALYTIC
from .base import Reward
from .files import File, Folder, Twin
from .networks import Place

PREPROCESS = ("official", "paper")


@dataclass(frozen=True)
class Options:
    """What a reward is loaded with, besides its files.

    Attributes:
        preprocess: ``official``, or what the paper's code does in its place, where that differs.
        reference: images [R, H, W, 3] in 0..1 that a reward compares with.
        text, engine: of the OCR reward.
        questions, combine, split_prompt, side: of the vision-language judge.
    """

    place: Place
    preprocess: str = "official"
    reference: Tensor | None = None
    text: str = ""
    engine: str = "auto"
    questions: str = ""
    combine: str = "mean"
    split_prompt: bool = False
    side: int = 1024


@dataclass(frozen=True)
class Entry:
    """A reward of the catalogue.

    Attributes:
        about: what it judges, in what units.
        files: the first is the one that a path of the user's own stands for.
        load: the reward from its files' paths; heavy packages are imported in there.
        needs: what else is lacking, in words.
    """

    name: str
    about: str
    load: Callable[[list[Path], Options], Reward]
    files: tuple[File | Folder, ...] = ()
    needs_reference: bool = False
    needs: Callable[[], list[str]] = list

    def missing(self, folders: Sequence[Path]) -> list[File | Folder]:
        return [file for file in self.files if file.find(folders) is None]

    def lacks(self, folders: Sequence[Path]) -> list[str]:
        """What keeps it from loading, in words; nothing where it is ready."""
        return [*(file.lacking(folders) for file in self.missing(folders)), *self.needs()]


def entry(name: str) -> Entry:
    """The catalogue's entry.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in CATALOGUE:
        raise ValueError(
            f"expected a reward of the catalogue ({', '.join(CATALOGUE)}), got {name!r}; check the "
            "spelling"
        )
    return CATALOGUE[name]


def _hps(name: str) -> Callable[[list[Path], Options], Reward]:
    def load(paths: list[Path], options: Options) -> Reward:
        from .hps import HPS

        return HPS(name, paths[0], options.place, preprocess=options.preprocess)

    return load


def _imagereward(paths: list[Path], options: Options) -> Reward:
    from .imagereward import ImageReward

    return ImageReward(*paths, options.place)


def _pickscore(paths: list[Path], options: Options) -> Reward:
    from .clip import VIT_H_14, pick_score

    return pick_score(paths[0], options.place, VIT_H_14)


def _clipscore(paths: list[Path], options: Options) -> Reward:
    from .clip import VIT_L_14, clip_score

    return clip_score(paths[0], options.place, VIT_L_14, options.preprocess)


def _image_similarity(paths: list[Path], options: Options) -> Reward:
    from .clip import VIT_L_14, ImageSimilarity, load_image_tower

    tower = load_image_tower(paths[0], VIT_L_14, options.place, options.preprocess)
    return ImageSimilarity(tower, options.reference)


def _aesthetic(paths: list[Path], options: Options) -> Reward:
    from .aesthetic import laion
    from .clip import VIT_L_14, load_image_tower

    head, clip = paths
    return laion(head, load_image_tower(clip, VIT_L_14, options.place, "official"), options.place)


def _aesthetic_v2_5(paths: list[Path], options: Options) -> Reward:
    from .aesthetic import load_siglip_tower, v2_5

    head, siglip = paths
    return v2_5(head, load_siglip_tower(siglip, options.place), options.place)


def _ocr_needs() -> list[str]:
    from .ocr import ENGINES, INSTALL, installed_engines

    engines = f"an OCR engine ({' or '.join(ENGINES)}): {INSTALL}"
    return [] if installed_engines() else [engines]


def _ocr(paths: list[Path], options: Options) -> Reward:
    from .ocr import OCR

    return OCR(options.text, options.engine)


def _vlm(paths: list[Path], options: Options) -> Reward:
    from .vlm import VLM
    from .vlm_folder import FolderVLM

    return VLM(
        FolderVLM(paths[0], options.place),
        options.questions,
        options.combine,
        options.split_prompt,
        options.side,
    )


_CLIP_L = File(
    path="clip-vit-large-patch14/model.safetensors",
    also=("clip-vit-large-patch14/pytorch_model.bin", "clip-vit-large-patch14.safetensors"),
    repo="openai/clip-vit-large-patch14",
    revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    source="model.safetensors",
    size=1710540580,
    sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    licence="none stated with the weights; OpenAI's CLIP code is MIT",
    # itself, which ComfyUI Manager puts into clip_vision
    twins=(Twin(1710540580, "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),),
)
_HPS_REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"

CATALOGUE: dict[str, Entry] = {
    item.name: item
    for item in (
        Entry(
            "hps",
            "HPS v2.1, human preference: cosine of image and prompt, mostly 0.2..0.35",
            _hps("hps"),
            (
                File(
                    path="HPS_v2.1_compressed.pt",
                    also=("HPS_v2.1_compressed.safetensors",),
                    repo="xswu/HPSv2",
                    revision=_HPS_REVISION,
                    source="HPS_v2.1_compressed.pt",
                    size=1972490005,
                    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
                    licence="Apache-2.0",
                ),
            ),
        ),
        Entry(
            "hps_v2",
            "HPS v2.0, the forerunner of v2.1: cosine of image and prompt, mostly 0.2..0.3",
            _hps("hps_v2"),
            (
                File(
                    path="HPS_v2_compressed.pt",
                    also=("HPS_v2_compressed.safetensors",),
                    repo="xswu/HPSv2",
                    revision=_HPS_REVISION,
                    source="HPS_v2_compressed.pt",
                    size=1972484501,
                    sha256="07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
                    licence="Apache-2.0",
                ),
            ),
        ),
        Entry(
            "imagereward",
            "ImageReward-v1.0, human preference: standardised score, mostly -2..2",
            _imagereward,
            (
                File(
                    path="ImageReward.pt",
                    also=("ImageReward.safetensors",),
                    repo="zai-org/ImageReward",
                    revision="5736be03b2652728fb87788c9797b0570450ab72",
                    source="ImageReward.pt",
                    size=1786880927,
                    sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
                    licence="Apache-2.0",
                ),
                File(
                    path="bert-base-uncased/vocab.txt",
                    also=("bert-base-uncased-vocab.txt", "vocab.txt"),
                    repo="google-bert/bert-base-uncased",
                    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
                    source="vocab.txt",
                    size=231508,
                    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    licence="Apache-2.0",
                ),
            ),
        ),
        Entry(
            "pickscore",
            "PickScore v1, human preference: logit / 26, mostly 0.7..0.9",
            _pickscore,
            (
                File(
                    path="PickScore_v1/model.safetensors",
                    also=("PickScore_v1/pytorch_model.bin", "PickScore_v1.safetensors"),
                    repo="yuvalkirstain/PickScore_v1",
                    revision="a4e4367c6dfa7288a00c550414478f865b875800",
                    source="model.safetensors",
                    size=3944552236,
                    sha256="ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
                    licence="none stated with the weights; PickScore's code is MIT",
                ),
            ),
        ),
        Entry(
            "clipscore",
            "CLIP ViT-L/14, likeness of image and prompt: logit / 30, mostly 0.6..1",
            _clipscore,
            (_CLIP_L,),
        ),
        Entry(
            "aesthetic",
            "LAION's aesthetic predictor on CLIP ViT-L/14: a rating, mostly 4.5..7 of 10",
            _aesthetic,
            (
                File(
                    path="sac+logos+ava1-l14-linearMSE.pth",
                    also=("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.safetensors"),
                    repo="trl-lib/ddpo-aesthetic-predictor",
                    source="aesthetic-model.pth",
                    size=3714759,
                    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
                    licence="Apache-2.0",
                ),
                _CLIP_L,
            ),
        ),
        Entry(
            "aesthetic_v2_5",
            "Aesthetic Predictor V2.5 on SigLIP: a rating, mostly 3..7 of 10; not in the paper",
            _aesthetic_v2_5,
            (
                File(
                    path="aesthetic_predictor_v2_5.pth",
                    source="https://github.com/discus0434/aesthetic-predictor-v2-5/raw/"
                    "c0e15567fa61252cbff43d70c49a8bd27202ca9a/models/aesthetic_predictor_v2_5.pth",
                    size=2644834,
                    sha256="a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220",
                    licence="AGPL-3.0",
                ),
                File(
                    path="siglip-so400m-patch14-384/model.safetensors",
                    also=("siglip-so400m-patch14-384.safetensors",),
                    repo="google/siglip-so400m-patch14-384",
                    revision="9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
                    source="model.safetensors",
                    size=3511950624,
                    sha256="ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a",
                    licence="Apache-2.0",
                    # sigclip_vision_patch14_384.safetensors of Comfy-Org/sigclip_vision_384, for
                    # FLUX Redux: the image tower in half precision, as it runs on a GPU
                    twins=(
                        Twin(
                            856505640,
                            "1fee501deabac72f0ed17610307d7131e3e9d1e838d0363aa3c2b97a6e03fb33",
                        ),
                    ),
                ),
            ),
        ),
        Entry(
            "image_similarity",
            "likeness to a reference image in CLIP ViT-L/14's space: cosine, mostly 0.5..0.95",
            _image_similarity,
            (_CLIP_L,),
            needs_reference=True,
        ),
        Entry(
            "ocr",
            "how much of the text that the prompt quotes is spelt right, 0..1",
            _ocr,
            needs=_ocr_needs,
        ),
        Entry(
            "vlm",
            "a vision-language model asked whether the image shows the prompt: P(yes), 0..1",
            _vlm,
            (
                Folder(
                    path="Qwen3-VL-4B-Instruct",
                    also=(
                        "Qwen3-VL-8B-Instruct",
                        "Qwen3-VL-2B-Instruct",
                        "Qwen2.5-VL-7B-Instruct",
                        "Qwen2.5-VL-3B-Instruct",
                        "SmolVLM2-2.2B-Instruct",
                        "SmolVLM2-500M-Video-Instruct",
                        "SmolVLM-500M-Instruct",
                        "SmolVLM-256M-Instruct",
                    ),
                    repo="Qwen/Qwen3-VL-4B-Instruct",
                    revision="ebb281ec70b05090aa6165b016eac8ec08e71b17",
                    size=8875631616,
                    licence="Apache-2.0",
                    sha256=(
                        (
                            "model-00001-of-00002.safetensors",
                            "30a01a0556622645a3cce87b655bbbbbc1f170c196099f1b666c93202c3339a9",
                        ),
                        (
                            "model-00002-of-00002.safetensors",
                            "046296a2a387efb43b0c997d5833c789604d168834f6e0d3064bf7bb13d002a6",
                        ),
                    ),
                ),
            ),
        ),
        *(
            Entry(name, reward.units, lambda paths, options, reward=reward: reward)
            for name, reward in ANALYTIC.items()
        ),
    )
}
