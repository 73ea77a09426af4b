"""Tokenizers of the data tests: GPT-2's own vocabulary, and tiny ones built here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_tokenizers import CHATML, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_data: Path) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE: EOS = BOS = <|endoftext|>, no chat template."""
    folder = shared_data / "gpt2_bpe"
    vocabulary = json.loads((folder / "encoder.json").read_text())
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Byte level, with EOS only: no BOS, no padding, no chat template."""
    return byte_tokenizer(eos_token="<eos>")


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte level with a ChatML template whose end of turn is the EOS."""
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])  # type: ignore[arg-type]
    tokenizer.chat_template = CHATML
    return tokenizer
