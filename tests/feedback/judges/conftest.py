"""A tiny real model that knows the words A and B, and a server that has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers as hf
from model_server import ModelServer
from models import build_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from accord.policy.load import load_policy
from accord.policy.policy import Policy

WORDS = ["<pad>", "<eos>", "A", "B", *(f"w{i}" for i in range(4, 20))]


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 20 words and 1024 positions: every word is among the 20 likeliest."""
    folder = tmp_path_factory.mktemp("judge_model")
    model = build_model(vocab_size=len(WORDS), max_position_embeddings=1024).float()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def judge_policy(judge_folder: Path) -> Policy:
    """The model, loaded as a user's is."""
    return load_policy(judge_folder)


@pytest.fixture(scope="session")
def judge_server(judge_policy: Policy) -> Iterator[ModelServer]:
    """The same model behind HTTP."""
    with ModelServer(judge_policy) as running:
        yield running
