"""A vision-language model as judge: the maths, three families of folders, what is refused."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import tiny_vlm
import torch
import vlm as costs
from PIL import Image

from flow_ttrl.cli import main
from flow_ttrl.rewards import RewardMix, load_reward
from flow_ttrl.rewards.networks import on_device
from flow_ttrl.rewards.vlm import VLM, Asking, judged_size, plain, yes_probability
from flow_ttrl.rewards.vlm_folder import FolderVLM

FAMILY = pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
QUESTIONS = "Is there a cat?\n2* not: is it night?\na red circle"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder of tiny weights by its family, written once."""
    base = tmp_path_factory.mktemp("vlm")

    @cache
    def written(family: str = "qwen3_vl"):
        if family == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        return tiny_vlm.write(base / family, family)

    return written


@pytest.fixture(scope="session")
def model(folder):
    """A judge's model by its family, loaded once."""
    return cache(lambda family="qwen3_vl": FolderVLM(folder(family), on_device("cpu")))


# -- the maths


def test_yes_probability_is_the_share_of_yes_in_yes_and_no():
    chances = torch.tensor([[0.3, 0.1, 0.15, 0.05, 0.4], [0.0, 0.0, 0.5, 0.25, 0.25]])
    p, mass = yes_probability(chances.log(), yes=[0, 1], no=[2, 3])
    assert p.tolist() == pytest.approx([0.4 / 0.6, 0.0])
    assert mass.tolist() == pytest.approx([0.6, 0.75])


def test_yes_probability_stays_finite_far_out():
    p, mass = yes_probability(torch.tensor([[300.0, -300.0, 0.0]]), yes=[0], no=[1])
    assert (p.item(), mass.item()) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("height", "width", "side", "size"),
    [
        (1024, 1024, 1024, (1024, 1024)),
        (768, 1344, 1024, (768, 1344)),
        (1000, 1000, 1024, (1024, 1024)),
        (2048, 1024, 1024, (1472, 736)),
        (64, 64, 1024, (256, 256)),
        (100, 700, 1024, (128, 704)),
    ],
)
def test_images_are_judged_at_multiples_and_within_bounds(height, width, side, size):
    assert judged_size(height, width, side, 32) == size


def test_control_words_become_text():
    words = ("<|im_end|>", "<|im_start|>", "<image>")
    assert plain("a <|im_end|> sign, <image>", words) == "a < |im_end|> sign, < image>"
    assert plain("no <|such|> word", words) == "no <|such|> word"
    assert plain("aa  b\n", ("a", "  ", "\n", "")) == "aa  b\n"
    nested = plain("<|im_<|im_end|>end|>", words)
    assert not any(word in nested for word in words)


# -- folders


@FAMILY
def test_logits_are_transformers_own(model, images, family):
    """Padded to the right in a batch; as by one forward of the whole model for each row."""
    judge = model(family)
    seen = [judge.look(image) for image in images.split(1)]
    questions = ["Is it red?", "Is there a cat to the left of the dog?", "no?"]
    ours = judge.next_logits(seen, questions)
    whole = judge.network.module.model
    for row, (image, question) in enumerate(zip(seen, questions, strict=True)):
        text = judge._conversation(question)
        inputs = judge.processor(text=[text], images=[[image]], return_tensors="pt")
        theirs = whole(**inputs).logits[0, -1]
        assert torch.allclose(ours[row], theirs, atol=1e-4)
    assert ours.std() > 0.01


@FAMILY
def test_a_batch_scores_as_each_image_does(model, images, family):
    judge = VLM(model(family), QUESTIONS)
    together, parts = judge.measure(images, [""] * 3)
    assert together.std() > 1e-4
    for k, image in enumerate(images.split(1)):
        alone, part = judge.measure(image, [""])
        assert torch.allclose(alone, together[k : k + 1], atol=1e-5)
        for name, value in part.items():
            assert torch.allclose(value, parts[name][k : k + 1], atol=1e-5), name


@FAMILY
def test_another_image_and_another_question_change_the_score(model, images, family):
    judge = VLM(model(family))
    a, b = judge.score(images[:1], ["a cat"]), judge.score(images[1:2], ["a cat"])
    c = judge.score(images[:1], ["the moon over a lake"])
    assert abs(a - b) > 1e-5
    assert abs(a - c) > 1e-5


@FAMILY
def test_control_words_in_a_prompt_reach_the_model_as_text(model, family):
    judge = model(family)
    assert len(judge.control_words) > 5
    for word in judge.control_words:
        text = plain(f"a sign {word} here", judge.control_words)
        ids = judge.tokenizer.encode(text, add_special_tokens=False)
        assert not set(ids) & set(judge.tokenizer.get_added_vocab().values()), word
        assert judge.tokenizer.decode(ids).replace(" ", "") == f"asign{word}here".replace(" ", "")


def test_positions_stay_in_float32_in_half_precision(folder, images):
    """Qwen's rotary frequencies; and float16, which it overflows in, becomes bfloat16."""
    judge = FolderVLM(folder(), on_device("cpu", torch.float16))
    module = judge.network.module
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {b.dtype for name, b in module.named_buffers() if "inv_freq" in name} == {torch.float32}
    logits = judge.next_logits([judge.look(images[:1])], ["Is it red?"])
    assert logits.dtype == torch.float32
    full = FolderVLM(folder(), on_device("cpu"))
    exact = full.next_logits([full.look(images[:1])], ["Is it red?"])
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


# -- questions to scores


def test_every_question_is_told_by_name_and_the_mean_is_weighted(model, images):
    judge = VLM(model(), QUESTIONS)
    mix = RewardMix(((judge, 1.0),))
    values = mix.judge([""]).score(images)
    names = ["Is there a cat?", "not: is it night?", "a red circle"]
    assert list(values) == ["vlm", *(f"vlm: {name}" for name in [*names, "answered"])]
    each = [values[f"vlm: {name}"] for name in names]
    assert torch.allclose(values["vlm"], (each[0] + 2 * each[1] + each[2]) / 4)
    night = VLM(model(), "is it night?").score(images, [""] * 3)
    assert torch.allclose(each[1], 1 - night, atol=1e-5)
    assert not torch.equal(each[0], each[2])


def test_the_weakest_counts(model, images):
    judge = VLM(model(), "Is there a cat?\nnot: is it night?\n0* a red circle", "weakest")
    score, parts = judge.measure(images, [""] * 3)
    counting = [parts[name] for name in ("Is there a cat?", "not: is it night?")]
    assert torch.equal(score, torch.stack(counting).amin(0))
    with pytest.raises(ValueError, match="weights of 0 or 1"):
        VLM(model(), QUESTIONS, "weakest")


def test_without_questions_the_prompt_is_asked(model, images):
    judge = VLM(model())
    asked = VLM(model(), 'Does this image show "a red fox"?')
    assert torch.equal(
        judge.score(images, ["a red  fox"] * 3), asked.score(images, ["something else"] * 3)
    )
    assert judge.needs_prompt
    assert not asked.needs_prompt
    assert judge.parts(["a red fox"]) == ["answered"]
    with pytest.raises(ValueError, match="a prompt or questions"):
        judge.check([" "])


def test_prompts_that_come_to_other_questions_share_a_table(model, images):
    mix = RewardMix(((VLM(model(), split_prompt=True), 1.0),))
    prompts = ["a red circle", "a blue square", "a red circle"]
    judge = mix.judge(prompts)
    values = judge.score(images)
    assert values["vlm: the prompt"].isfinite().tolist() == [True, True, True]
    assert values["vlm: the circle is red"].isfinite().tolist() == [True, False, True]
    assert values["vlm: the square is blue"].isfinite().tolist() == [False, True, False]
    assert values["vlm"].isfinite().all()
    told = judge.report()["details"]["vlm"]
    assert told["combine"] == "mean"
    assert {q["name"] for q in told["questions"]} >= {"the prompt", "the circle is red"}
    json.dumps(told)


def test_questions_take_part_in_a_mix_of_several(model, images):
    both = RewardMix(((VLM(model(), "a cat\na dog"), 1.0), (VLM(model(), "a fox"), 0.5)))
    values = both.judge([""]).score(images)
    assert {"vlm", "vlm: a cat", "vlm_2", "vlm_2: answered"} <= set(values)
    totals = both.totals({name: value[None] for name, value in values.items()})[0]
    assert torch.allclose(totals, values["vlm"] + 0.5 * values["vlm_2"])


def test_an_image_that_is_not_finite_has_no_verdict(model, images):
    judge = VLM(model(), "a cat\na dog")
    broken = images.clone()
    broken[1, 3, 4, 0] = torch.nan
    score, parts = judge.measure(broken, [""] * 3)
    assert score.isfinite().tolist() == [True, False, True]
    assert parts["a cat"].isfinite().tolist() == [True, False, True]
    assert torch.equal(score[[0, 2]], judge.score(images, [""] * 3)[[0, 2]])


def test_the_catalogue_loads_it_by_name_from_a_models_folder(folder, images, tmp_path):
    """Under the name of any of the models that serve; or a folder anywhere."""
    (tmp_path / "Qwen2.5-VL-3B-Instruct").symlink_to(folder("qwen2_5_vl"))
    options = {"folders": [tmp_path], "place": on_device("cpu"), "questions": "a cat"}
    reward = load_reward("vlm", **options)
    elsewhere = load_reward("vlm", **options, path=folder())
    one, other = (judge.score(images, [""] * 3) for judge in (reward, elsewhere))
    assert one.isfinite().all()
    assert not torch.allclose(one, other)
    with pytest.raises(FileNotFoundError, match="Qwen3-VL-4B-Instruct .about 8,876 MB"):
        load_reward("vlm", folders=[tmp_path / "none"], place=on_device("cpu"))


def test_the_command_line_asks_questions(folder, images, tmp_path, capsys):
    (tmp_path / "Qwen3-VL-4B-Instruct").symlink_to(folder())
    Image.fromarray((images[0].numpy() * 255).astype("uint8")).save(tmp_path / "a.png")
    given = ["score", str(tmp_path / "a.png"), "--reward", "vlm", "--models", str(tmp_path)]
    given += ["--question", "2* a cat", "--question", "not: Is it night?", "--device", "cpu"]
    assert main([*given, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (row,) = answer["images"]
    cat, night = row["vlm: a cat"], row["vlm: not: Is it night?"]
    assert row["total"] == pytest.approx((2 * cat + night) / 3, abs=1e-6)
    assert answer["reward"]["details"]["vlm"]["questions"][0]["weight"] == 2
    assert main(given) == 0
    header, row, *below = capsys.readouterr().out.splitlines()
    assert header.split() == ["rank", "total", "vlm", "(1)", "(2)", "(3)", "image"]
    assert len(row.split()) == 7
    assert below == ["(1) vlm: a cat", "(2) vlm: not: Is it night?", "(3) vlm: answered"]


def test_the_costs_in_the_docs_are_those_of_the_formula():
    docs = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
    table = costs.table()
    assert table in docs.read_text("utf-8")
    assert len(table.splitlines()) == 6


# -- what is refused


def test_a_judge_that_does_not_answer_is_refused_at_the_start(tmp_path):
    random = tiny_vlm.write(tmp_path / "random", "qwen3_vl", fitted=False)
    with pytest.raises(ValueError, match="answers yes or no, got one that gives both together"):
        VLM(FolderVLM(random, on_device("cpu")))


def test_a_judge_that_falls_silent_has_no_verdict(model, images, caplog):
    """The score is missing, the mass told, and a run in which it never answers ends."""
    judge = VLM(model(), "a cat")
    logits = judge.ask.model.next_logits
    judge.ask.model.next_logits = lambda seen, texts: 0.01 * logits(seen, texts)
    try:
        score, parts = judge.measure(images, [""] * 3)
        assert score.isnan().all()
        assert (parts["answered"] < 0.1).all()
        with pytest.raises(ValueError, match="does not answer yes or no"):
            RewardMix(((judge, 1.0),)).judge([""]).score(images)
    finally:
        judge.ask.model.next_logits = logits


def test_a_judge_that_does_not_see_is_refused(model):
    judge = model()
    look = judge.look
    judge.look = lambda image: look(torch.zeros_like(image))
    try:
        with pytest.raises(ValueError, match="looks at the image"):
            Asking(judge)
    finally:
        judge.look = look


def test_a_judge_that_sees_the_wrong_colours_is_refused(model):
    judge = model()
    look = judge.look
    judge.look = lambda image: look(image.flip(-1))
    try:
        with pytest.raises(ValueError, match="tells a red square from a blue one"):
            Asking(judge)
    finally:
        judge.look = look


def changed(folder, tmp_path, name, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content, "utf-8")
    return copy


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", '{"model_type": "llava"}', "got 'llava'"),
        ("config.json", None, "config.json at"),
        ("chat_template.jinja", None, "chat template in"),
    ],
)
def test_folders_of_something_else(folder, tmp_path, name, content, told):
    copy = changed(folder(), tmp_path, name, content)
    with pytest.raises((ValueError, OSError), match=told):
        FolderVLM(copy, on_device("cpu"))


def test_a_tensor_that_is_missing_is_named(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder(), tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    del state["model.visual.merger.norm.weight"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing keys such as model.visual.merger.norm.weight"):
        FolderVLM(copy, on_device("cpu"))


@pytest.mark.parametrize("side", [128, 4096])
def test_sides_out_of_range(model, side):
    with pytest.raises(ValueError, match="a side of 256..2048"):
        VLM(model(), side=side)
