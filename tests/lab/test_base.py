"""The shipped base model: loads like any model folder, round-trips its texts, adds well and writes middling facts."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.lab.annotators import response_text
from accord.lab.base_model import base_model_folder
from accord.lab.build import build_base, build_tokenizer, measure_base
from accord.lab.text_world import (
    MAX_RESPONSE_TOKENS,
    all_requests,
    render_request,
    sft_groups,
    user_prompt,
    vocabulary,
)
from accord.policy.load import load_policy
from accord.records import FinishReason


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_model_folder())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(base_model_folder()).eval()


def test_the_package_data_is_small_and_of_the_stated_shape(model) -> None:
    assert sum(path.stat().st_size for path in base_model_folder().iterdir()) < 3_000_000
    assert 300_000 <= model.num_parameters() <= 1_000_000
    assert model.config.model_type == "llama"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_shipped_tokenizer_is_the_one_the_command_builds(tokenizer) -> None:
    built = build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab()
    assert built.chat_template == tokenizer.chat_template
    specials = ("pad", "bos", "eos", "unk")
    assert len({getattr(tokenizer, f"{name}_token_id") for name in specials}) == 4
    assert [getattr(built, f"{name}_token") for name in specials] == [
        getattr(tokenizer, f"{name}_token") for name in specials
    ]
    assert set(vocabulary()) <= set(tokenizer.get_vocab())


def test_every_text_of_the_world_survives_a_round_trip(tokenizer) -> None:
    for group in sft_groups(300, seed=1):
        for text in (group.prompt[0].content, group.responses[0].content[0].content):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert len(ids) < MAX_RESPONSE_TOKENS


def test_the_template_only_ever_appends(tokenizer) -> None:
    turns = [
        {"role": "system", "content": "also"},
        {"role": "user", "content": "add 3 and 9"},
        {"role": "assistant", "content": "1 2"},
    ]
    prompt = tokenizer.apply_chat_template(turns[:2], add_generation_prompt=True, tokenize=False)
    full = tokenizer.apply_chat_template(turns, tokenize=False)
    assert full == prompt + "1 2<|end|>"
    assert tokenizer.encode(full, add_special_tokens=False) == [
        *tokenizer.encode(prompt, add_special_tokens=False),
        *tokenizer.encode("1 2", add_special_tokens=False),
        tokenizer.eos_token_id,
    ]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(prompt, add_special_tokens=False)) == [
        *("<|begin|>", "<|system|>", "also", "<|end|>", "<|user|>", "add", "3", "and", "9", "<|end|>", "<|assistant|>")
    ]


def test_the_base_is_skilled_at_sums_and_mediocre_at_facts() -> None:
    quality = measure_base(load_policy(base_model_folder(), device="cpu"), num_answers=10)
    assert quality["add_accuracy"] >= 0.97
    assert quality["reverse_accuracy"] >= 0.97
    assert quality["ended_share"] >= 0.99
    assert 0.5 < quality["gold"] < 1.2  # far below the 2.5 an ideal answer earns
    assert 2.5 < quality["num_items"] < 4.0


def test_the_base_knows_how_likely_its_own_ending_is(model, tokenizer) -> None:
    """No probability leaks to special tokens other than the end, at any place of a written answer."""
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": render_request(all_requests()[0])},
            {"role": "assistant", "content": "indeed bees make honey."},
        ],
        tokenize=False,
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.inference_mode():
        probs_TV = model(torch.tensor([ids])).logits[0].softmax(-1)
    start = ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>"))
    others = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|begin|>", "<|unk|>", "<|system|>", "<|user|>"])
    assert probs_TV[start:-1, others].sum(-1).max() < 1e-3
    assert probs_TV[start, tokenizer.eos_token_id] < 1e-2  # never an empty answer
    assert probs_TV[-2, tokenizer.eos_token_id] > 0.05  # may stop after a sentence


def test_answers_come_as_groups_with_words_and_ids(tokenizer) -> None:
    policy = load_policy(base_model_folder(), device="cpu")
    prompts = [user_prompt(text) for text in ("reverse 3 1 4", "two facts about bees, formally")]
    groups = policy.sample(prompts, num_responses=3, max_tokens=MAX_RESPONSE_TOKENS, seed=5)
    assert [len(group.responses) for group in groups] == [3, 3]
    assert [group.prompt[0].content for group in groups] == ["reverse 3 1 4", "two facts about bees, formally"]
    for group in groups:
        for response in group.responses:
            assert tokenizer.decode(response.token_ids, skip_special_tokens=True) == response_text(response)
            assert response.finish_reason is FinishReason.STOP
            assert response.token_ids[-1] == tokenizer.eos_token_id
    (greedy,) = policy.sample(prompts[:1], temperature=0.0)
    assert response_text(greedy.responses[0]) == "4 1 3"


def test_the_rebuild_command_learns_and_writes_a_model_folder(tmp_path, tokenizer) -> None:
    """The command cut short: in 40 steps the loss per token falls from log V to less than two thirds of it."""
    quality = build_base(tmp_path / "base", steps=40, seed=3)
    assert quality["num_items"] > 0
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").get_vocab() == tokenizer.get_vocab()
    nats, count = 0.0, 0
    for group in sft_groups(50, seed=9):
        turns = [{"role": turn.role, "content": turn.content} for turn in (*group.prompt, *group.responses[0].content)]
        start = len(tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False))
        ids = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])
        with torch.inference_mode():
            logps_TV = rebuilt(ids).logits[0].log_softmax(-1)
        nats -= float(logps_TV[start - 1 : -1].gather(-1, ids[0, start:, None]).sum())
        count += ids.shape[1] - start
    assert nats / count < math.log(len(tokenizer)) * 2 / 3
