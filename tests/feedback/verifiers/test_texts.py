"""What is read of a response: final part, boxes, words, sentences, abstentions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.feedback.verifiers.texts import boxed_contents, count_sentences, final_text, is_abstention, words_of


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("One.\nTwo.\n\nThree without an end", 3),
        ("Dr. Smith met Mr. Jones at 5 p.m. on Monday.", 1),
        ("It costs 3.50 dollars. See e.g. the list.", 2),
        ("J. S. Bach wrote it.", 1),
        ("So did I. Then we left.", 2),
        ('"Stop!" he said. "Why?" she asked.', 2),
        ("Well... maybe. Who knows", 2),
        ("Really?! Yes.", 2),
        ("これは文です。これも文です。", 2),
        ("यह एक वाक्य है। यह दूसरा है।", 2),
        ("* a point\n* another point", 1),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_words() -> None:
    assert words_of("Don't stop: it's 3.5!") == ["Don", "t", "stop", "it", "s", "3", "5"]


def test_the_final_part() -> None:
    assert final_text("plain") == "plain"
    assert final_text("<think>a</think>b") == "b"
    assert final_text("a</think>b</think>c") == "c"
    assert final_text("<think>never ended") == ""
    assert final_text("<reason>a</reason>b", tag="reason") == "b"


def test_boxes() -> None:
    assert boxed_contents(r"\boxed{a} \boxed{ {b} } \fbox{\{} \boxed 3$ \boxed{c") == ["a", "{b}", r"\{", "3", None]
    assert boxed_contents(r"\boxedfoo{3} {") == []


@given(
    st.recursive(
        st.sampled_from(["a", "b ", r"\{", r"\}", r"\\"]),
        lambda inner: inner.map("{{{}}}".format) | st.tuples(inner, inner).map("".join),
    )
)
def test_a_box_returns_its_balanced_content(text: str) -> None:
    assert boxed_contents(f"\\boxed{{{text}}} }} tail") == [text.strip()]
    assert boxed_contents(f"\\boxed{{{{{text}}} tail") == [None]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("I don't know.", True),
        ("Sorry — I  DON’T\nknow that.", True),
        ("42. I don't know.", True),
        ("I know. It is 42.", False),
        ("<think>I don't know yet</think>42", False),
        ("I don't knowingly guess", False),
        ("", False),
    ],
)
def test_abstentions(text: str, is_one: bool) -> None:
    assert is_abstention(text) is is_one


def test_abstentions_in_other_words() -> None:
    assert is_abstention("No sé.", ["no sé"])
    assert not is_abstention("I don't know", ["no sé"])
    assert not is_abstention("I don't know", ["", " "])
