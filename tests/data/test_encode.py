"""Token ids by construction, and what every policy does to awkward rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer, metaspace_tokenizer
from transformers import PreTrainedTokenizerFast

from accord.data import EncodeOptions, encode_group, encode_groups, select_responses
from accord.errors import ConfigError, DataError
from accord.records import Comparison, FinishReason, Group, Label, Message, Ranking, Rating, Response

WORDS = st.text(alphabet="A: b.\nredlu", max_size=12)


def pair(prompt: str, chosen: str, rejected: str, **kwargs: Any) -> Group:
    responses = (Response(content=chosen), Response(content=rejected))
    return Group(prompt=prompt, responses=responses, judgements=(Comparison(better=0, worse=1),), **kwargs)


@given(WORDS.filter(str.strip), WORDS.filter(str.strip), WORDS.filter(str.strip))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_boundary_never_depends_on_the_response(
    plain_tokenizer: PreTrainedTokenizerFast, prompt: str, chosen: str, rejected: str
) -> None:
    encoded = encode_group(pair(prompt, chosen, rejected), plain_tokenizer, on_identical="keep")
    assert list(encoded.prompt_ids) == plain_tokenizer(prompt)["input_ids"]
    for response, text in zip(encoded.responses, (chosen, rejected), strict=True):
        assert list(response.ids) == [*plain_tokenizer(text)["input_ids"], plain_tokenizer.eos_token_id]
        assert plain_tokenizer.decode([*encoded.prompt_ids, *response.ids]) == f"{prompt}{text}<eos>"


def test_a_merge_over_the_boundary_does_not_happen(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    together = plain_tokenizer("A: red")["input_ids"]
    encoded = encode_group(pair("A:", " red", " blue"), plain_tokenizer)
    assert len(together) == 5  # "A", ": ", "r", "e", "d"
    assert len(encoded.prompt_ids) == 2
    assert [*encoded.prompt_ids, *encoded.responses[0].ids[:-1]] != together


def test_a_vocabulary_that_puts_a_space_before_texts_does_not_put_one_at_the_boundary() -> None:
    tokenizer = metaspace_tokenizer()
    encoded = encode_group(pair("sky:", " blue", "red"), tokenizer)
    ids = [tokenizer.convert_ids_to_tokens(list(response.ids)) for response in encoded.responses]
    assert tokenizer.convert_ids_to_tokens(list(encoded.prompt_ids)) == ["<s>", "▁", "s", "k", "y", ":"]
    assert ids == [["▁", "b", "l", "u", "e", "</s>"], ["r", "e", "d", "</s>"]]


def test_language_modelling_starts_with_a_start_token() -> None:
    group = Group(prompt="", responses=(Response(content="abc"),), origin="a:1")
    for special, start in ((("bos_token", "eos_token"), "bos_token"), (("eos_token",), "eos_token")):
        tokenizer = byte_tokenizer(**{name: f"<{name}>" for name in special})
        encoded = encode_group(group, tokenizer)
        assert tokenizer.convert_ids_to_tokens(list(encoded.prompt_ids)) == [f"<{start}>"]
        assert tokenizer.decode(list(encoded.responses[0].ids)) == "abc<eos_token>"
    with pytest.raises(DataError, match=r"a:1: got an empty prompt and a tokenizer with neither BOS nor EOS"):
        encode_group(group, byte_tokenizer(), append_eos="never")


def test_tokenizer_without_eos_asks_for_a_choice() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match=r"never learn to stop.*append_eos=never"):
        encode_group(pair("A:", " b", " r"), tokenizer)
    data = encode_groups([pair("A:", " b", " r")], tokenizer, append_eos="never")
    assert [response.has_eos for response in data.groups[0].responses] == [False, False]
    assert data.counts["without_eos"] == 2
    assert "2 of 2 responses have no trained end" in data.notes[0]


def test_an_eos_in_the_text_is_not_doubled(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode_groups([pair("A:", " b<eos>", " r")], plain_tokenizer)
    assert [response.ids.count(plain_tokenizer.eos_token_id) for response in data.groups[0].responses] == [1, 1]
    assert (data.counts["eos_in_text"], data.counts["eos_appended"]) == (1, 1)


def test_sampled_ids_are_never_encoded_again(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    eos = plain_tokenizer.eos_token_id
    odd = tuple(plain_tokenizer("e")["input_ids"] + plain_tokenizer("r")["input_ids"])  # text "er" would be one token
    responses = (
        Response(token_ids=(*odd, eos)),
        Response(token_ids=odd, content="er", finish_reason=FinishReason.LENGTH),
        Response(token_ids=odd, finish_reason=FinishReason.STOP),
    )
    encoded = encode_group(Group(prompt="A:", responses=responses), plain_tokenizer)
    assert [response.ids for response in encoded.responses] == [(*odd, eos), odd, odd]
    assert [response.has_eos for response in encoded.responses] == [True, False, True]


GROUPS = [
    pair("A:", " b", " r", origin="a:1"),
    pair("A:", " b", " ", origin="a:2"),
    pair("A:", " b", " b", origin="a:3"),
]


def test_empty_and_identical_responses_are_dropped_and_counted(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode_groups(GROUPS, plain_tokenizer)
    assert [group.index for group in data.groups] == [0]
    assert [(item.index, item.origin, item.reason) for item in data.dropped] == [
        (1, "a:2", "empty response"),
        (2, "a:3", "identical responses"),
    ]
    assert {name: data.counts[name] for name in ("groups_read", "groups", "empty_responses", "identical")} == {
        "groups_read": 3, "groups": 1, "empty_responses": 1, "identical": 1,
    }  # fmt: skip


def test_empty_and_identical_responses_can_be_kept_or_refused(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    kept = encode_groups(GROUPS, plain_tokenizer, on_empty="keep", on_identical="keep")
    assert [group.index for group in kept.groups] == [0, 1, 2]
    assert kept.counts["identical"] == 1
    with pytest.raises(DataError, match=r"a:2: got an empty response.*on_empty"):
        encode_groups(GROUPS, plain_tokenizer, on_empty="error")
    with pytest.raises(DataError, match=r"a:3: got identical responses.*on_identical"):
        encode_groups(GROUPS, plain_tokenizer, on_identical="error")


def test_indices_do_not_depend_on_what_was_dropped(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert [group.index for group in encode_groups(GROUPS[::-1], plain_tokenizer).groups] == [2]


def test_a_dropped_response_takes_its_judgements_and_renumbers_the_rest(
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    group = Group(
        prompt="A:",
        responses=tuple(Response(content=text) for text in (" b", "", " r", " b")),
        judgements=(
            Ranking(order=((3,), (1, 2), (0,)), shown_order=(1, 0, 3, 2)),
            Comparison(better=2, worse=0, strength=2.0),
            Comparison(better=2, worse=1),
            Rating(response=1, value=5),
            Label(response=2, is_desirable=True),
        ),
    )
    selected = select_responses(group, [0, 2, 3])
    assert selected is not None
    assert selected.judgements == (
        Ranking(order=((2,), (1,), (0,)), shown_order=(0, 2, 1)),
        Comparison(better=1, worse=0, strength=2.0),
        Label(response=1, is_desirable=True),
    )
    encoded = encode_group(group, plain_tokenizer)  # the empty one, then the second " b"
    assert [plain_tokenizer.decode(list(response.ids)) for response in encoded.responses] == [" b<eos>", " r<eos>"]
    assert encoded.judgements[0] == Ranking(order=((1,), (0,)), shown_order=(0, 1))
    assert encoded.source is not None
    assert len(encoded.source.responses) == 2


def test_nothing_left_to_compare() -> None:
    assert select_responses(pair("A:", " b", " r"), [1]) is None
    rated = replace(pair("A:", " b", " r"), judgements=(Rating(response=1, value=3),))
    left = select_responses(rated, [1])
    assert left is not None
    assert left.judgements == (Rating(response=0, value=3),)


def test_equal_samples_of_a_rated_group_are_kept(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    group = replace(GROUPS[2], judgements=(Rating(response=0, value=1), Rating(response=1, value=1)))
    assert len(encode_group(group, plain_tokenizer).responses) == 2


def test_prompts_that_differ(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    def rest(question: str, answer: str) -> Response:
        return Response(content=(Message(role="user", content=question), Message(role="assistant", content=answer)))

    group = Group(
        prompt=(Message(role="user", content="q"), Message(role="assistant", content="a")),
        responses=(rest("x", "1"), rest("y", "2")),
        judgements=(Comparison(better=0, worse=1),),
        origin="a:7",
        extra={"prompts_differ": True},
    )
    data = encode_groups([group], plain_tokenizer)
    assert data.counts["prompt_mismatches"] == 1
    assert data.dropped[0].reason == "the prompts of the pair differ"
    with pytest.raises(DataError, match=r"a:7: the prompts of the pair differ.*on_prompt_mismatch"):
        encode_groups([group], plain_tokenizer, on_prompt_mismatch="error")
    split = encode_group(group, plain_tokenizer, on_prompt_mismatch="split")
    assert plain_tokenizer.decode(list(split.prompt_ids)) == "\n\nHuman: q\n\nAssistant: a"
    response = split.responses[1]
    assert plain_tokenizer.decode(list(response.ids)) == "\n\nHuman: y\n\nAssistant: 2<eos>"
    assert response.num_trained == len(" 2") + 1
    whole = encode_groups([replace(group, prompt=())], plain_tokenizer, on_prompt_mismatch="split")
    assert whole.dropped[0].reason == "the prompts of the pair differ from the first turn on"


def test_unknown_settings_and_values(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'max_token' — did you mean 'max_tokens'"):
        encode_groups(GROUPS, plain_tokenizer, max_token=3)
    with pytest.raises(ConfigError, match="on_empty='skip' — expected one of drop, keep, error"):
        EncodeOptions(on_empty="skip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 2"):
        EncodeOptions(max_tokens=1)
