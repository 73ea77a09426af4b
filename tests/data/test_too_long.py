"""What rows longer than `max_tokens` get. One byte is one token here, and the start token is one more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer

from accord.data import encode_group, encode_groups
from accord.errors import DataError
from accord.records import Comparison, Group, Message, Response

TOKENIZER = byte_tokenizer(eos_token="<eos>", bos_token="<bos>")


def pair(prompt: str, chosen: str, rejected: str) -> Group:
    responses = (Response(content=chosen), Response(content=rejected))
    return Group(prompt=prompt, responses=responses, judgements=(Comparison(better=0, worse=1),), origin="a:1")


def texts(prompt: str, chosen: str, rejected: str, policy: str) -> list[str]:
    group = encode_group(pair(prompt, chosen, rejected), TOKENIZER, max_tokens=10, on_too_long=policy, add_bos="always")
    return [TOKENIZER.decode(list(ids)) for ids in (group.prompt_ids, *(r.ids for r in group.responses))]


def test_the_prompt_is_cut_first_and_keeps_its_start_token_and_end() -> None:
    assert texts("12345678", "xyz", "u", "truncate") == ["<bos>45678", "xyz<eos>", "u<eos>"]
    assert texts("12345678", "xyz", "u", "truncate_prompt") == ["<bos>45678", "xyz<eos>", "u<eos>"]


def test_then_the_responses_which_lose_their_end() -> None:
    assert texts("12345678", "uvwxyz", "u", "truncate") == ["<bos>5678", "uvwxy", "u<eos>"]
    group = encode_group(
        pair("12345678", "uvwxyz", "u"), TOKENIZER, max_tokens=10, on_too_long="truncate", add_bos="always"
    )
    assert [(r.has_eos, r.was_truncated) for r in group.responses] == [(False, True), (True, False)]


def test_the_responses_alone() -> None:
    assert texts("1234", "uvwxyz", "u", "truncate_response") == ["<bos>1234", "uvwxy", "u<eos>"]


@pytest.mark.parametrize(
    ("policy", "prompt", "reason"),
    [
        ("drop", "12345678", "too long"),
        ("truncate_response", "1234567890", "the prompt alone"),
        ("truncate_prompt", "1", "the response alone"),
    ],
)
def test_dropped_with_the_reason(policy: str, prompt: str, reason: str) -> None:
    data = encode_groups([pair(prompt, "uvwxyzuvwxyz", "u")], TOKENIZER, max_tokens=10, on_too_long=policy)
    assert data.groups == []
    assert reason in data.dropped[0].reason
    assert data.counts["too_long"] == 1


def test_refused_with_the_row_and_the_sizes() -> None:
    with pytest.raises(DataError, match=r"a:1: got too long a row: 8 prompt \+ 4 response tokens exceed max_tokens=10"):
        encode_groups([pair("12345678", "xyz", "u")], TOKENIZER, max_tokens=10, on_too_long="error")


def test_responses_that_differ_only_behind_the_cut_are_identical() -> None:
    data = encode_groups([pair("1", "abcdefghijkl", "abcdefghijkm")], TOKENIZER, max_tokens=10)
    assert data.dropped[0].reason == "identical responses"


def test_a_response_cut_before_its_first_trained_token_is_dropped() -> None:
    turns = (
        Message(role="user", content="x" * 90),
        Message(role="assistant", content="a"),
    )
    group = Group(prompt=(Message(role="user", content="q"),), responses=(Response(content=turns),))
    data = encode_groups([group], TOKENIZER, max_tokens=40)
    assert data.dropped[0].reason == "no trained token is left"


POLICIES = st.sampled_from(["truncate", "truncate_prompt", "truncate_response"])
LETTERS = st.text(alphabet="abc", min_size=1, max_size=15)


@settings(deadline=None)
@given(
    LETTERS, LETTERS, LETTERS, st.integers(2, 20), st.sampled_from(["truncate", "truncate_prompt", "truncate_response"])
)
def test_nothing_is_longer_than_asked_and_what_is_cut_is_said(
    prompt: str, chosen: str, rejected: str, limit: int, policy: str
) -> None:
    data = encode_groups([pair(prompt, chosen, rejected)], TOKENIZER, max_tokens=limit, on_too_long=policy)
    for group in data.groups:
        whole = TOKENIZER.decode(list(group.prompt_ids))
        assert whole
        assert prompt.endswith(whole)
        for response, text in zip(group.responses, (chosen, rejected), strict=True):
            assert len(group.prompt_ids) + len(response.ids) <= limit
            shown = TOKENIZER.decode(list(response.ids))
            assert response.has_eos != response.was_truncated
            assert (text + "<eos>").startswith(shown)
    assert len(data.groups) + len(data.dropped) == 1
