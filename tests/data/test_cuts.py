"""Where an implicit prompt ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.readers.cuts import common_turns, cut_common_words, cut_transcript, transcript_turns
from accord.records import Message


@pytest.mark.parametrize(
    ("left", "right", "prompt"),
    [
        ("Q: Sky? A: It is blue.", "Q: Sky? A: It is black.", "Q: Sky? A: It is"),
        ("A: yes", "A: yes, sir", "A:"),  # "yes" and "yes," are different words
        ("A: yes", "A: yes no", "A:"),  # one text begins with the other: neither response may be empty
        ("A:\n\nfoo", "A:\n\nbar", "A:\n\n"),
        ("It is\nblue", "It is black", "It is"),
        ("same words", "same words", "same"),
        ("one", "two", ""),
        ("", "two", ""),
        ("a  b", "a  c", "a "),  # of two spaces the last goes with the word
    ],
)
def test_examples(left: str, right: str, prompt: str) -> None:
    cut = cut_common_words(left, right)
    assert left[:cut] == right[:cut] == prompt


words = st.lists(st.sampled_from(["It", "is", "blue", "black", "bl", "", "\n", "\t", "."]), max_size=8).map(" ".join)


@given(words, words)
def test_never_inside_a_word_and_nothing_is_lost(left: str, right: str) -> None:
    cut = cut_common_words(left, right)
    assert left[:cut] == right[:cut]
    for text in (left, right):
        if 0 < cut < len(text):
            assert text[cut - 1].isspace() or text[cut].isspace()
        if text.strip() and left.strip() and right.strip():
            assert cut < len(text)


@given(words, st.text(min_size=1, max_size=5).filter(str.strip), st.text(min_size=1, max_size=5).filter(str.strip))
def test_responses_to_a_prompt_with_a_space_keep_it(prompt: str, first: str, second: str) -> None:
    left, right = f"{prompt}. x{first}", f"{prompt}. y{second}"
    assert cut_common_words(left, right) == len(prompt) + 1


def test_turns_are_shared_up_to_the_first_difference_but_never_all() -> None:
    turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    other = [turns[0], Message(role="assistant", content="c")]
    assert common_turns(turns, other) == 1
    assert common_turns(turns, turns) == 1
    assert common_turns(turns, [*turns, *other]) == 1


def test_transcript_is_cut_at_the_last_assistant() -> None:
    text = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman:  two spaces\n\nAssistant: bye \n"
    prompt, answer = cut_transcript(text)
    assert answer == "bye \n"
    assert [(turn.role, turn.content) for turn in transcript_turns(prompt)] == [
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", " two spaces"),
    ]
