"""The benchmark's model and pairs, written once as files that every contender reads.

Model: `LlamaForCausalLM`, random weights from a fixed seed, hidden 512, 8 layers, 8 heads, intermediate 1408 (8/3 of
the hidden size, rounded up, as Llama does), GPT-2's 50 257-token vocabulary, input and output embeddings not tied.
Pairs: the first 32 of HH-RLHF helpful-base whose prompt is the same on both sides, whose responses differ and are not
empty, and whose prompt + longer response is at most 768 tokens.

Without the data (a sibling folder of the repository) the same lengths are filled with random words of a made-up
50 257-word vocabulary: the arithmetic is the same, and the report says that this was done.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NUM_PAIRS = 32
MAX_TOKENS = 768
EOS = "<|endoftext|>"
VOCABULARY = 50257
MODEL_SHAPE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408}
ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """One row of the preference file."""

    prompt: str
    chosen: str
    rejected: str


Lengths = tuple[int, int, int]
"""Tokens of the prompt, the chosen and the rejected response, the last two with their end-of-sequence token."""


def prepare(folder: Path) -> dict[str, object]:
    """Write `model/`, `warm_up_model/`, `pairs.jsonl` and `warm_up.jsonl` into a folder; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    is_real = (DATA / "gpt2_bpe" / "encoder.json").exists() and _hh_file().exists()
    tokenizer = _gpt2_tokenizer(DATA / "gpt2_bpe") if is_real else _word_tokenizer()
    pairs = _select(tokenizer, _read_hh(_hh_file())) if is_real else _synthetic_pairs()
    lengths = [_lengths(tokenizer, pair) for pair in pairs]
    _write_model(folder / "model", tokenizer, MODEL_SHAPE)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    _write_model(folder / "warm_up_model", tokenizer, tiny)
    _write_jsonl(folder / "pairs.jsonl", pairs)
    _write_jsonl(folder / "warm_up.jsonl", sorted(pairs, key=lambda pair: len(pair.prompt))[:8])
    description = {
        "data": "HH-RLHF helpful-base (test)" if is_real else "synthetic words, lengths of HH-RLHF helpful-base",
        "lengths": lengths,
        "num_prompt_tokens": sum(prompt for prompt, _, _ in lengths),
        "num_response_tokens": sum(chosen + rejected for _, chosen, rejected in lengths),
        "model": {**MODEL_SHAPE, "vocab_size": VOCABULARY, "tie_word_embeddings": False},
    }
    (folder / "workload.json").write_text(json.dumps(description))
    return description


def ids_sha256(rows: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> str:
    """Hash (prompt, chosen, rejected) token ids, in file order: equal on both sides or the comparison is void."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([list(map(int, part)) for part in row]).encode())
    return digest.hexdigest()[:16]


def _hh_file() -> Path:
    return DATA / "hh_rlhf" / "helpful-base.test.jsonl.gz"


def _read_hh(path: Path) -> Iterable[Pair]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, _, chosen = row["chosen"].rpartition(ASSISTANT)
            other, _, rejected = row["rejected"].rpartition(ASSISTANT)
            if prompt == other and chosen != rejected and chosen.strip() and rejected.strip():
                yield Pair(prompt + ASSISTANT, chosen, rejected)


def _select(tokenizer, candidates: Iterable[Pair]) -> list[Pair]:
    chosen: list[Pair] = []
    for pair in candidates:
        num_prompt, *responses = _lengths(tokenizer, pair)
        if num_prompt + max(responses) <= MAX_TOKENS and _cuts_cleanly(tokenizer, pair):
            chosen.append(pair)
            if len(chosen) == NUM_PAIRS:
                break
    return chosen


def _lengths(tokenizer, pair: Pair) -> Lengths:
    prompt, chosen, rejected = (len(tokenizer.encode(text).ids) for text in (pair.prompt, pair.chosen, pair.rejected))
    return prompt, chosen + 1, rejected + 1


def _cuts_cleanly(tokenizer, pair: Pair) -> bool:
    """Whether encoding prompt and response apart or together gives the same ids (the contenders differ in this)."""
    prompt = tokenizer.encode(pair.prompt).ids
    return all(
        tokenizer.encode(pair.prompt + text).ids == prompt + tokenizer.encode(text).ids
        for text in (pair.chosen, pair.rejected)
    )


def _gpt2_tokenizer(folder: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def _word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{index}": index for index in range(VOCABULARY - 1)} | {EOS: VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def _synthetic_pairs() -> list[Pair]:
    words = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{words.randrange(1, VOCABULARY - 1)}" for _ in range(count))

    return [
        Pair(text(prompt), " " + text(chosen - 1), " " + text(rejected - 1)) for prompt, chosen, rejected in HH_LENGTHS
    ]


def _write_model(folder: Path, tokenizer, shape: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    eos_id = tokenizer.token_to_id(EOS)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        **shape,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS).save_pretrained(folder)


def _write_jsonl(path: Path, pairs: Iterable[Pair]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps(pair.__dict__, ensure_ascii=False) + "\n")


# Of the 32 selected pairs with GPT-2's vocabulary, for when the data is not there.
HH_LENGTHS: tuple[Lengths, ...] = (
    (22, 48, 172), (90, 63, 66), (102, 122, 37), (179, 42, 28), (311, 215, 219), (70, 42, 55),
    (19, 27, 14), (249, 31, 14), (158, 35, 16), (59, 33, 26), (35, 171, 52), (16, 12, 20),
    (180, 66, 36), (67, 76, 225), (567, 98, 124), (297, 11, 7), (17, 66, 90), (17, 33, 70),
    (24, 13, 36), (18, 42, 21), (106, 31, 27), (58, 101, 46), (14, 15, 26), (261, 104, 60),
    (98, 5, 7), (25, 160, 19), (39, 10, 9), (245, 15, 79), (30, 61, 38), (225, 11, 18),
    (22, 31, 65), (17, 26, 36),
)  # fmt: skip
