"""Rebuild the text world's base model: `python -m accord.lab.build [--out DIR]`.

Trains a word-level tokenizer and a small Llama-shaped model on demonstrations by mediocre writers, so that it answers
readably, does its sums and leaves clear room for alignment. Takes one to two CPU minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.lab.annotators import response_text
from accord.lab.text_world import (
    MAX_RESPONSE_TOKENS,
    all_requests,
    aux_problems,
    evaluate_responses,
    is_right_answer,
    render_request,
    sft_groups,
    user_prompt,
    vocabulary,
)
from accord.records import FinishReason, Group, Response

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from accord.policy.policy import Policy

BASE_DIR = Path(__file__).parent / "base"
"""The shipped base model: a folder that `AutoModelForCausalLM.from_pretrained` loads."""

PAD, BOS, EOS, UNK = "<|pad|>", "<|begin|>", "<|end|>", "<|unk|>"
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Every turn is <|role|>words<|end|>, so a longer conversation only ever appends to a shorter one."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over the world's vocabulary, with special tokens and chat template set."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    role_marks = [f"<|{role}|>" for role in ROLES]
    tokens = [PAD, BOS, EOS, UNK, *role_marks, *vocabulary()]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins by spaces, none before a full stop or comma
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=role_marks,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised Llama-shaped model of about 0.35 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_base(start: Path, scratch: Path, *, steps: int, seed: int) -> Policy:
    """Fine-tune the model in `start` on fresh demonstrations, 64 a step, by Accord's own engine; return the policy."""
    from accord.align import align

    done = align(
        groups=sft_groups(64 * steps, seed),
        eval_groups=[],
        progress=_print_progress,
        model=str(start),
        out=str(scratch),
        objective="sft",
        **{
            "train.batch_size": 64,
            "train.lr": 2e-3,
            "train.warmup": 0.03,
            "train.adam_beta2": 0.98,
            "train.weight_decay": 0.01,
            "train.seed": seed,
            "train.write_rows": False,
            "evaluate.num_samples": 0,
            "reference.cache": None,
        },
    )
    return done.policy


def _print_progress(step: int, total: int, metrics: dict[str, float]) -> None:
    if step % 50 == 0 or step == total:
        print(f"step {step:4d} of {total} loss {metrics['loss']:.4f}", flush=True)


def answer_prompts(
    policy: Policy, prompts: Sequence[str], *, num_responses: int = 1, temperature: float = 1.0, seed: int = 0
) -> list[Group]:
    """Sample K responses to each prompt of the text world; return a group per prompt, with texts and token ids."""
    from accord.data import encode_prompts
    from accord.policy.sample import SamplingSettings, sample_responses

    asked = [Group(prompt=user_prompt(text), responses=(Response(token_ids=()),)) for text in prompts]
    settings = SamplingSettings(
        num_responses=num_responses, max_tokens=MAX_RESPONSE_TOKENS, temperature=temperature, seed=seed
    )
    drawn = sample_responses(policy, encode_prompts(asked, policy.tokenizer), settings)
    return [
        replace(group, responses=responses, origin=f"sampled, seed {seed}, prompt {index}")
        for index, (group, responses) in enumerate(zip(asked, drawn, strict=True))
    ]


def measure_aux(policy: Policy, num_problems: int = 400, seed: int = 1) -> tuple[float, float]:
    """Return the shares of additions and of reversals answered exactly, greedily."""
    problems = aux_problems(np.random.default_rng(seed), num_problems)
    groups = answer_prompts(policy, [problem.prompt for problem in problems], temperature=0.0)
    right = [
        is_right_answer(problem, response_text(group.responses[0]))
        for problem, group in zip(problems, groups, strict=True)
    ]
    return float(np.mean(right[0::2])), float(np.mean(right[1::2]))


def measure_base(policy: Policy, *, repeats: int = 40, seed: int = 0) -> dict[str, float]:
    """Return gold reward (± half its 95 % interval), items and ended share at temperature 1, and greedy aux skills."""
    requests = all_requests()
    groups = answer_prompts(policy, [render_request(r) for r in requests], num_responses=repeats, seed=seed)
    responses = [response for group in groups for response in group.responses]
    has_eos = [response.finish_reason is FinishReason.STOP for response in responses]
    scores = evaluate_responses(
        [request for request in requests for _ in range(repeats)], [response_text(r) for r in responses], has_eos
    )
    add_accuracy, reverse_accuracy = measure_aux(policy)
    return {
        "gold": float(scores.gold_N.mean()),
        "gold_ci95": float(1.96 * scores.gold_N.std(ddof=1) / len(responses) ** 0.5),
        "tone": float(scores.tone_N.mean()),
        "num_items": float(scores.num_items_N.mean()),
        "num_tokens": float(np.mean([len(response.token_ids or ()) for response in responses])),
        "ended_share": float(np.mean(has_eos)),
        "add_accuracy": add_accuracy,
        "reverse_accuracy": reverse_accuracy,
    }


def build_base(out: Path, *, steps: int = 700, seed: int = 0) -> dict[str, float]:
    """Build tokenizer and model into `out` and return the quality measured (see `measure_base`)."""
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch) / "start"
        tokenizer = build_tokenizer()
        build_model(tokenizer, seed).save_pretrained(start)
        tokenizer.save_pretrained(start)
        policy = train_base(start, Path(scratch) / "run", steps=steps, seed=seed)
        policy.save(out)
        for path in out.iterdir():
            path.chmod(0o644)  # weights are written readable by their owner only; package data is for everyone
    return measure_base(policy)


def main() -> None:
    """Parse the command line, build and print the quality as JSON."""
    parser = argparse.ArgumentParser(description="Rebuild the text world's base model.")
    parser.add_argument("--out", type=Path, default=BASE_DIR, help="folder to write (default: the package's own)")
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of 64 demonstrations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the initial weights")
    arguments = parser.parse_args()
    print(json.dumps(build_base(arguments.out, steps=arguments.steps, seed=arguments.seed), indent=1))


if __name__ == "__main__":
    main()
