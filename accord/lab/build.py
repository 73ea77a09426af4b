"""Rebuild the text world's base model: `python -m accord.lab.build [--out DIR]`.

Trains a word-level tokenizer and a small Llama-shaped model on demonstrations by mediocre writers, so that it answers
readably, does its sums and leaves clear room for alignment. Takes one to two CPU minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.lab.base_model import base_model_folder
from accord.lab.measure import measure_aux, sample_answers
from accord.lab.text_world import all_requests, sft_groups, vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from accord.policy.policy import Policy

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
    from accord.alignment import align

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


def measure_base(policy: Policy, *, num_answers: int = 40, seed: int = 0) -> dict[str, float]:
    """Return gold reward (± half its 95 % interval over answers), length, ended share and auxiliary skills."""
    answers = sample_answers(policy, all_requests(), num_answers=num_answers, seed=seed)
    add_accuracy, reverse_accuracy = measure_aux(policy)
    gold_RA = answers.gold_RA
    return {
        "gold": float(gold_RA.mean()),
        "gold_ci95": float(1.96 * gold_RA.std(ddof=1) / gold_RA.size**0.5),
        "num_items": float(answers.num_items_RA.mean()),
        "num_tokens": answers.num_tokens,
        "ended_share": answers.ended_share,
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
    parser.add_argument(
        "--out", type=Path, default=base_model_folder(), help="folder to write (default: the package's own)"
    )
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of 64 demonstrations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the initial weights")
    arguments = parser.parse_args()
    print(json.dumps(build_base(arguments.out, steps=arguments.steps, seed=arguments.seed), indent=1))


if __name__ == "__main__":
    main()
