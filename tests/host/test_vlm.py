"""Qwen3-VL as a CLIP, asked about images (``scripts/vlm.py`` measures beside transformers)."""

from __future__ import annotations

import json

import graphs
import pytest
import tiny_vlm
from graphs import LOADS_QWEN3_VL, node

EQUAL = 1e-4
KINDS = ("qwen3vl_4b", "qwen3vl_8b", "krea2", "mage_flow", "ideogram4", "boogu", "joyimage")
needs_qwen3_vl = pytest.mark.skipif(
    not LOADS_QWEN3_VL, reason="this ComfyUI does not load Qwen3-VL as a CLIP"
)


def judge(clip: list, questions: str = "", split_prompt: str = "", combine: str = "mean") -> dict:
    widgets = {"questions": questions, "split_prompt": split_prompt, "combine": combine}
    return node("TTRLVLMReward", clip=clip, **widgets, side=1024)


def judged_search(vlm_weights: str, questions: str) -> dict:
    """The demo model searched by the judge alone."""
    graph = {**graphs.demo(), **graphs.search("vlm", 3, 8, budget=3.0)}
    graph["tiny"] = node("TinyVLM", weights=vlm_weights)
    graph["judge"] = judge(["tiny", 0], questions)
    graph["vlm search"]["inputs"]["reward"] = ["judge", 0]
    return graph


@needs_qwen3_vl
@pytest.mark.parametrize("kind", KINDS)
def test_first_token_logits_are_transformers_own(vlm_measured, kind):
    """In every text encoder that has the whole of Qwen3-VL; batches and single rows."""
    told = vlm_measured["parity"][kind]
    assert told["apart"] < EQUAL
    assert told["spread"] > 100 * EQUAL


@needs_qwen3_vl
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("without_eyes", "got Qwen3_8B, which cannot be asked about an image"),
        ("without_words", "got Qwen25_7BVLI, which cannot be asked about an image"),
        ("ignored_image", "whose tokenizer takes an image"),
        ("changed_host", "a hidden state that is off by"),
        ("random_head", "answers yes or no"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(vlm_measured, what, words):
    assert words in vlm_measured["refused"][what]


@needs_qwen3_vl
def test_control_words_in_a_question_are_text(vlm_measured):
    assert vlm_measured["texts"]["words"] > 20
    assert vlm_measured["texts"]["left"] == 0
    assert vlm_measured["texts"]["kept"]


@needs_qwen3_vl
def test_a_batch_scores_as_each_image_does_and_images_matter(vlm_measured):
    told = vlm_measured["scoring"]
    assert told["batch_off"] < 1e-5
    assert told["spread"] > 1e-3
    assert told["again"]
    assert 0.5 < told["answered"] <= 1
    assert told["parts"] == ["a cat", "not: is it night?", "the circle is red", "answered"]


@needs_qwen3_vl
def test_a_cancel_ends_the_judging(vlm_measured):
    assert vlm_measured["cancelled"]


@needs_qwen3_vl
def test_bfloat16_agrees_with_the_hosts_own_forward(vlm_measured):
    assert vlm_measured["in_half"]["own_forward"] == ""
    assert 0 < vlm_measured["in_half"]["off"] < 0.05


@needs_qwen3_vl
def test_patches_of_a_clip_count_for_its_own_judge(vlm_measured):
    assert vlm_measured["patched"]["moved"] > 1e-4
    assert vlm_measured["patched"]["back"] < 1e-6


@needs_qwen3_vl
def test_a_search_by_it_is_the_same_twice_and_evicts_nothing(vlm_measured):
    """It is loaded in one call with the model and the VAE, and by none while they sample."""
    told = vlm_measured["sampling"]
    assert told["same_bits"]
    first = ["Qwen3VLTEModel_"]
    together = ["SD3", "AutoencoderKL", "Qwen3VLTEModel_"]
    for calls in (told["loads"], told["again"]):
        assert calls[0] == first
        assert [sorted(call) for call in calls[1:]] == [sorted(together)]
    assert sorted(told["loaded"]) == sorted(together)
    assert told["failures"] == {}


@needs_qwen3_vl
def test_what_judging_takes_is_kept_free(vlm_measured):
    """Its vocabulary in float32 and more; where that is less than a decode, the decode's."""
    told = vlm_measured["sampling"]
    assert told["working_memory"] > 64 * 151936 * 4
    usual, three_times = told["reserved"]
    assert usual >= told["working_memory"]
    assert three_times == pytest.approx(3 * usual, rel=0.1)


@needs_qwen3_vl
def test_every_question_of_a_split_prompt_is_in_the_report(vlm_measured):
    told = vlm_measured["sampling"]
    names = ["the prompt", "a circle", "the circle is red", "a square", "the square is blue"]
    names += ["the circle is left of the square"]
    assert told["values"] == ["vlm", *(f"vlm: {name}" for name in [*names, "answered"])]
    assert [question["name"] for question in told["questions"]] == names


@needs_qwen3_vl
def test_the_node_drives_a_search_twice_alike(server, vlm_weights):
    saved = []
    for questions in ("2* a red circle\nnot: is it night?", "2* a red circle\n\nnot: is it night?"):
        run = server.run(judged_search(vlm_weights, questions))
        assert run.status == "success", run.error
        report = json.loads(run.text("vlm report"))
        assert {"vlm", "vlm: a red circle", "vlm: not: is it night?", "vlm: answered"} <= set(
            report["values"]
        )
        assert report["reward"]["failures"] == {}
        saved.append(run.output("vlm saved")["latents"][0]["filename"])
    one, two = (server.load(name)["latent_tensor"] for name in saved)
    assert saved[0] != saved[1]
    assert one.equal(two)


@needs_qwen3_vl
def test_the_node_shows_what_it_asks_and_scores_a_batch(server, vlm_weights):
    graph = {**graphs.demo(batch=3), **graphs.stock("drawn", 5, 2)}
    graph["images"] = node("VAEDecode", samples=["drawn sampler", 0], vae=["model", 2])
    graph["tiny"] = node("TinyVLM", weights=vlm_weights)
    graph["judge"] = judge(["tiny", 0], split_prompt=graphs.PROMPT, combine="weakest")
    graph["scores"] = node("TTRLRewardScorer", images=["images", 0], reward=["judge", 0], prompt="")
    run = server.run(graph)
    assert run.status == "success", run.error
    (told,) = [line for line in run.lines if line.startswith("judge")]
    assert "the circle is red\n" in told
    header, *lines = run.text("scores").splitlines()
    assert header.split()[2:] == ["total", "vlm", *(f"({n})" for n in range(1, 8))]
    assert len(lines) == 3 + 7
    assert "(3) vlm: the circle is red" in lines
    assert "(7) vlm: answered" in lines


@needs_qwen3_vl
def test_questions_that_cannot_be_parsed_are_told_when_queued(server, vlm_weights):
    graph = judged_search(vlm_weights, "2*")
    answer = server.post("/prompt", {"prompt": graph, "client_id": "x"})
    assert answer.status_code == 400
    assert "write what is to be asked" in answer.text


def test_a_folder_of_transformers_judges_too(server, tmp_path):
    """By Load Reward Model, in every version of the host."""
    folder = tiny_vlm.write(tmp_path / "Qwen3-VL-4B-Instruct", "qwen3_vl")
    graph = {**graphs.demo(batch=3), **graphs.stock("drawn", 5, 2)}
    graph["images"] = node("VAEDecode", samples=["drawn sampler", 0], vae=["model", 2])
    widgets = {"path": str(folder), "text": "", "preprocess": "official"}
    graph["load"] = node("TTRLLoadReward", reward="vlm", **widgets)
    graph["scores"] = node(
        "TTRLRewardScorer", images=["images", 0], reward=["load", 0], prompt=graphs.PROMPT
    )
    run = server.run(graph)
    assert run.status == "success", run.error
    header, *lines = run.text("scores").splitlines()
    assert header.split()[2:] == ["total", "vlm", "(1)"]
    scores = [float(line.split()[3]) for line in lines[:3]]
    assert len(set(scores)) > 1
    assert all(0 < score < 1 for score in scores)


def test_another_clip_is_refused_with_the_reason(server):
    """Also where the host does not load Qwen3-VL at all."""
    graph = {**graphs.demo(), **graphs.search("vlm", 3, 8)}
    graph["judge"] = judge(["model", 1])
    graph["vlm search"]["inputs"]["reward"] = ["judge", 0]
    run = server.run(graph)
    assert run.status == "error"
    told = "a CLIP that is Qwen3-VL" if LOADS_QWEN3_VL else "a ComfyUI that loads Qwen3-VL"
    assert f"expected {told}" in run.error
