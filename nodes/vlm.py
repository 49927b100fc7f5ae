"""A vision-language model that the user has as a CLIP, asked about images."""

from __future__ import annotations

from comfy_api.latest import io
from server import PromptServer

from ..rewards import RewardMix
from ..rewards.comfy_vlm import ComfyVLM
from ..rewards.questions import COMBINE, check_combine, parse, split
from ..rewards.vlm import SIDES, VLM
from .types import ADVANCED, CATEGORY, Reward, schema


class VLMReward(io.ComfyNode):
    """Questions to a vision-language model: to a reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLVLMReward",
            display_name="TTRL VLM Judge",
            category=CATEGORY,
            description=(
                "Asks a vision-language model about the images; how sure it is of yes is the "
                "score. Takes Qwen3-VL as Load CLIP loads it, and downloads nothing."
            ),
            search_aliases=["ttrl", "vqascore", "vision language", "qwen3-vl", "question", "judge"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Qwen3-VL 4B or 8B with its vision tower, such as the text encoder of "
                    "Krea 2.",
                ),
                io.String.Input(
                    "questions",
                    multiline=True,
                    default="",
                    tooltip="One a line: a question to be answered with yes or no, or a statement "
                    "that the image should show. 'not:' before it wants a no, '2*' counts it "
                    "twice. Empty: split_prompt's, or else whether the image shows the prompt of "
                    "the search.",
                ),
                io.String.Input(
                    "split_prompt",
                    multiline=True,
                    default="",
                    tooltip="A prompt in English to be split into questions (counts, colours, "
                    "relations, quoted texts), which the node shows before the search runs. Does "
                    "nothing where there are questions. Empty: none.",
                ),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINE),
                    default=COMBINE[0],
                    tooltip="Several questions to one score. mean: their weighted mean. weakest: "
                    "the one that holds least.",
                ),
                io.Int.Input(
                    "side",
                    default=1024,
                    min=SIDES[0],
                    max=SIDES[1],
                    step=32,
                    tooltip="Images with more pixels than a square of this side are scaled down to "
                    "it for judging. 512 takes a quarter of the time of 1024, and sees less.",
                    extra_dict=dict(ADVANCED),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[Reward.Output(display_name="reward")],
        )

    @classmethod
    def validate_inputs(cls, questions=None, combine=None) -> bool | str:
        try:
            check_combine(parse(questions or ""), combine or COMBINE[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, clip, questions, split_prompt, combine, side) -> io.NodeOutput:
        asked = parse(questions)
        if not asked and split_prompt.strip():
            asked = split(split_prompt)
        judge = VLM(ComfyVLM(clip), asked, combine, side=side)
        told = "\n".join(question.name for question in asked) or "the prompt as a whole"
        PromptServer.instance.send_progress_text(f"Asks for:\n{told}", cls.hidden.unique_id)
        return io.NodeOutput(RewardMix(((judge, 1.0),)))
