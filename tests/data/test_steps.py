"""Steps of a response in tokens: every step tokenised by itself, its end known by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from accord.data import encode_group, load_groups, write_groups
from accord.errors import DataError
from accord.records import Group, Label, Message, Response


def stepped(steps: Sequence[str], /, *, separator: str = "\n", named: Sequence[int] | None = None, **extra) -> Group:
    """One solution in the shape of the stepwise format."""
    numbers = range(len(steps)) if named is None else named
    return Group(
        prompt="sum:", responses=(Response(content=separator.join(steps)),),
        judgements=tuple(Label(response=0, step=number, is_desirable=True) for number in numbers),
        extra={"step_separator": separator} | extra,
    )  # fmt: skip


def texts_of_steps(group: Group, tokenizer: PreTrainedTokenizerFast, **options) -> list[str]:
    """What each step decodes to, from the end of the one before it."""
    (response,) = encode_group(group, tokenizer, **options).responses
    starts = [0, *(end + 1 for end in response.step_ends)]
    return [
        tokenizer.decode(list(response.ids[start : end + 1]))
        for start, end in zip(starts, response.step_ends, strict=False)
    ]


def test_a_step_ends_with_its_separator_and_the_last_with_the_response(plain_tokenizer: PreTrainedTokenizerFast):
    assert texts_of_steps(stepped(["ab", "c", "de"]), plain_tokenizer) == ["ab\n", "c\n", "de<eos>"]
    assert texts_of_steps(stepped(["ab", "c"], separator=" ;; "), plain_tokenizer) == ["ab ;; ", "c<eos>"]
    assert texts_of_steps(stepped(["ab"]), plain_tokenizer) == ["ab<eos>"]
    assert texts_of_steps(stepped(["ab", "c"]), plain_tokenizer, append_eos="never") == ["ab\n", "c"]


def test_no_token_spans_two_steps(plain_tokenizer: PreTrainedTokenizerFast):
    """ "." and " " are one token here, and so are two line breaks."""
    given = stepped(["a.", "b"], separator=" ")
    assert len(plain_tokenizer("a. b")["input_ids"]) == 3  # "a", ". ", "b"
    assert texts_of_steps(given, plain_tokenizer) == ["a. ", "b<eos>"]
    broken = stepped(["a", "\nb"], steps=["a", "\nb"])
    assert len(plain_tokenizer("a\n\nb")["input_ids"]) == 3  # "a", "\n\n", "b"
    assert texts_of_steps(broken, plain_tokenizer) == ["a\n", "\nb<eos>"]


def test_given_steps_may_hold_the_separator(plain_tokenizer: PreTrainedTokenizerFast):
    steps = ["a\nb", "c"]
    assert texts_of_steps(stepped(steps, steps=steps), plain_tokenizer) == ["a\nb\n", "c<eos>"]


def test_the_template_closes_the_last_step(chat_tokenizer: PreTrainedTokenizerFast):
    group = stepped(["ab", "c"])
    turns = replace(
        group,
        prompt=(Message(role="user", content="sum:"),),
        responses=(Response(content=(Message(role="assistant", content="ab\nc"),)),),
    )
    assert texts_of_steps(turns, chat_tokenizer) == ["ab\n", "c<|im_end|>"]


def test_a_cut_response_keeps_the_steps_that_are_whole(plain_tokenizer: PreTrainedTokenizerFast):
    group = stepped(["ab", "c", "de"])
    room = len(plain_tokenizer("sum:")["input_ids"]) + 6
    found = encode_group(group, plain_tokenizer, max_tokens=room, on_too_long="truncate_response").responses[0]
    assert plain_tokenizer.decode(list(found.ids)) == "ab\nc\nd"
    assert found.step_ends == (2, 4)


def test_several_responses_are_cut_at_the_separator(plain_tokenizer: PreTrainedTokenizerFast):
    group = replace(
        stepped(["ab", "c"]),
        responses=(Response(content="ab\nc"), Response(content="x"), Response(content="y\nz")),
        judgements=(Label(response=0, step=1, is_desirable=True), Label(response=2, step=0, is_desirable=False)),
    )
    found = [response.step_ends for response in encode_group(group, plain_tokenizer).responses]
    assert found == [(2, 4), (), (1, 3)]


def test_without_labels_of_steps_nothing_is_cut(plain_tokenizer: PreTrainedTokenizerFast):
    encoded = encode_group(stepped(["a.", "b"], separator=" ", named=()), plain_tokenizer).responses[0]
    assert encoded.step_ends == ()
    assert list(encoded.ids[:-1]) == plain_tokenizer("a. b")["input_ids"]


def test_a_label_for_a_step_that_is_not_there_is_named(plain_tokenizer: PreTrainedTokenizerFast):
    group = replace(stepped(["ab", "c"], named=(0, 2)), origin="file:3")
    with pytest.raises(DataError, match=r"file:3: got a label for step 2 of response 0, which has 2 steps"):
        encode_group(group, plain_tokenizer)


def test_steps_of_several_turns_are_refused(chat_tokenizer: PreTrainedTokenizerFast):
    turns = tuple(Message(role=role, content="ab\nc") for role in ("assistant", "user", "assistant"))
    prompt = (Message(role="user", content="sum:"),)
    group = replace(stepped(["ab", "c"]), prompt=prompt, responses=(Response(content=turns),))
    with pytest.raises(DataError, match="several turns"):
        encode_group(group, chat_tokenizer)


def test_a_template_that_changes_the_text_is_refused(plain_tokenizer: PreTrainedTokenizerFast):
    group = replace(
        stepped(["ab", "c"]),
        prompt=(Message(role="user", content="sum:"),),
        responses=(Response(content=(Message(role="assistant", content="ab\nc"),)),),
    )
    loud = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes the text of a response whose steps were judged"):
        encode_group(group, plain_tokenizer, chat_template=loud)


def test_a_file_of_steps_comes_through(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"prompt": "q", "completions": ["1+1=2", "2+2=5"], "labels": [true, false]}\n')
    read = load_groups(path).groups
    assert texts_of_steps(read[0], plain_tokenizer) == ["1+1=2\n", "2+2=5<eos>"]
    write_groups(tmp_path / "own.jsonl", read)
    again = load_groups(tmp_path / "own.jsonl").groups
    assert texts_of_steps(again[0], plain_tokenizer) == ["1+1=2\n", "2+2=5<eos>"]
