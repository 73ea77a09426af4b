"""Form: each verifier with what passes, what fails and what cannot be known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.errors import ConfigError
from accord.feedback import verifiers
from accord.feedback.verifiers import verifier_reward
from accord.feedback.verifiers.formats import detected_language
from accord.records import Response

ENGLISH = "The weather is lovely today, and we are going to walk along the river with our friends."
GERMAN = "Das Wetter ist heute sehr schön, und wir gehen mit unseren Freunden am Fluss spazieren."


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>two and two</think>4", 1.0),
        ("\n<think>\ntwo\n</think>\n\n4\n", 1.0),
        ("4", 0.0),
        ("", 0.0),
        ("so <think>a</think>4", 0.0),
        ("<think>a</think>", 0.0),
        ("<think> </think>4", 0.0),
        ("<think>a", 0.0),
        ("<think>a<think>b</think>4", 0.0),
        ("<think>a</think>b</think>4", 0.0),
        ("</think>4<think>", 0.0),
    ],
)
def test_think_tags(text: str, score: float) -> None:
    assert verifiers.think_format(text).score == score
    assert verifiers.think_format(text.replace("think>", "plan>"), tag="plan").score == score
    opened = text.lstrip().removeprefix("<think>")
    if text.lstrip() != opened:
        assert verifiers.think_format(opened, is_opened_by_prompt=True).score == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"so \boxed{4}", 1.0),
        (r"<think>\boxed{3}</think>\boxed{4}", 1.0),
        ("so 4", 0.0),
        (r"\boxed{3} \boxed{4}", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{4", 0.0),
        ("", 0.0),
    ],
)
def test_boxes(text: str, score: float) -> None:
    assert verifiers.boxed_format(text).score == score


def test_patterns() -> None:
    assert verifiers.regex("call 555-1234 now", pattern=r"\d{3}-\d{4}").score == 1.0
    assert verifiers.regex("call 555-1234 now", pattern=r"\d{3}-\d{4}", is_full=True).score == 0.0
    assert verifiers.regex("555-1234\n", pattern=r"\d{3}-\d{4}", is_full=True).score == 1.0
    assert verifiers.regex("<think>555-1234</think>no", pattern=r"\d{3}-\d{4}").score == 0.0
    slow = verifiers.regex("a" * 5000 + "!", pattern=r"(?:a|aa|a?)+b$|(a*)*c\1", timeout_seconds=0.05)
    assert slow.score is None
    assert "0.05 s" in slow.reason


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ada"}', 1.0),
        ('```json\n{"name": "Ada", "age": 36}\n```', 1.0),
        ('<think>{}</think>\n{"name": "Ada"}', 1.0),
        ('{"name": 3}', 0.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ("{}", 0.0),
        ('Here: {"name": "Ada"}', 0.0),
        ('{"name": "Ada"', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ("", 0.0),
        ("[" * 100_000, None),
    ],
)
def test_json_schemas(text: str, score: float | None) -> None:
    assert verifiers.json_schema(text, expected_schema=SCHEMA).score == score


def test_lengths() -> None:
    assert verifiers.length("one two three", minimum=3, maximum=3).score == 1.0
    assert verifiers.length("one two three", minimum=4).score == 0.0
    assert verifiers.length("one two three", maximum=2).score == 0.0
    assert verifiers.length("12345", unit="characters", maximum=5).score == 1.0
    assert verifiers.length("", minimum=1).score == 0.0
    sampled = Response(token_ids=(1, 2, 3))
    assert verifiers.length(sampled, unit="tokens", maximum=3).score == 1.0
    assert verifiers.length(sampled, unit="tokens", maximum=2).score == 0.0
    assert verifiers.length(sampled, maximum=2).score is None
    assert verifiers.length("a text", unit="tokens").score is None


def test_repetition_by_hand() -> None:
    # the 3-grams of "a b a b a": aba, bab, aba: 2 of 3 unique
    assert verifiers.repetition("a b A b a").score == pytest.approx(-1 / 3)
    assert verifiers.repetition("a b c d").score == 0.0
    assert verifiers.repetition("a a").score == 0.0
    assert verifiers.repetition("").score == 0.0
    assert verifiers.repetition("a " * 100, n=1).score == pytest.approx(1 / 100 - 1)


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 4))
def test_repetition_is_between_minus_one_and_zero_and_grows_with_copies(words: list[str], n: int) -> None:
    once, twice = (verifiers.repetition(" ".join(words * times), n=n).score for times in (1, 2))
    assert once is not None
    assert twice is not None
    assert -1 < twice <= 0
    if len(words) > n:
        assert twice <= once


def test_languages() -> None:
    assert verifiers.language(ENGLISH).score == 1.0
    assert verifiers.language(GERMAN).score == 0.0
    assert verifiers.language(GERMAN, language="de").score == 1.0
    assert verifiers.language(f"<think>{GERMAN}</think>{ENGLISH}").score == 1.0
    assert verifiers.language("今天天气很好，我们去河边散步，和朋友们一起吃饭。", language="zh").score == 1.0
    assert verifiers.language("", language="en").score == 0.0
    assert verifiers.language("12 + 30 = 42").score == 0.0
    mixed = verifiers.language(f"{ENGLISH}\n{GERMAN}", unit="line").score
    assert mixed == pytest.approx(17 / (17 + 15))  # words of each line


def test_a_language_is_always_found_alike() -> None:
    short = "no problem amigo"
    assert len({detected_language(short) for _ in range(20)}) == 1
    assert detected_language("12345 !?") is None


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("regex", {}, "pattern"),
        ("regex", {"pattern": "("}, "regular expression"),
        ("regex", {"pattern": "a", "timeout_seconds": 0}, "greater than 0"),
        ("json_schema", {"expected_schema": {"type": "objekt"}}, "JSON schema"),
        ("json_schema", {"expected_schema": {"$ref": "https://example.org/schema"}}, "nothing is fetched"),
        ("length", {"minimum": 3, "maximum": 2}, "minimum ≤ maximum"),
        ("length", {"unit": "pages"}, "'tokens', 'words' or 'characters'"),
        ("length", {"min": 3}, "got min"),
        ("language", {"language": "xx"}, "expected one of"),
        ("repetition", {"n": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.{name}.*{said}"):
        verifier_reward(name, **settings)
