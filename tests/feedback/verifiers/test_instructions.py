"""IFEval's 25 kinds of instructions: what follows each and what does not, the real prompts, strict and loose."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from accord.errors import DataError
from accord.feedback import verifiers
from accord.feedback.verifiers.instructions import INSTRUCTIONS, read_instructions

ENGLISH = "The weather is lovely today and we are going to walk along the river with our friends."
HINDI = "आज मौसम बहुत अच्छा है और हम अपने दोस्तों के साथ नदी के किनारे टहलने जा रहे हैं"
GERMAN = "Das Wetter ist heute sehr schön und wir gehen mit unseren Freunden am Fluss spazieren."

# kind, its arguments, texts that follow it, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["mom", "C++"]},
        ["Mom writes c++", "moments of C++"],
        ["Mom writes C", "dad and C++"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": "at least"},
        ["War and war.", "wars, warden"],
        ["war", "peace"],
    ),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"}, ["war", "peace"], ["War, war"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "no way"]},
        ["rocket", "no. way"],
        ["a Rock.", "rock", "No way!"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        ["Qq", "quick queue"],
        ["quick", "x"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": "less than"},
        ["none"],
        ["# one"],
    ),
    ("language:response_language", {"language": "hi"}, [HINDI], [ENGLISH, "123 !"]),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, HINDI]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two. Three."],
        ["One. Two.", "Mr. A. B. Smith et al. agree."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two."],
        ["One. Two. Three"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***\na\n***\nb\n***"],
        ["a\n\nb", "a", "a\n***\n***\nb", "a *** b *** c"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two three", "it's fine"],
        ["one two", "one-two"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["Hello.\n\nWeekend, at last", 'Hello.\n\n\n\n"Weekend" it is', "a\n \n**weekend** b"],
        ["Weekend\n\nHello", "Hello\nWeekend", "a\n\nweekend\n\nc", "a\n\nweekends", "weekend"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [address]", "[a][b][c]"],
        ["[name]", "[] []", "(name) (address)", "[name"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye\nP.P.S more", "p. p. s. more", "P.P.S. more"],
        ["P.S. more", "PPS"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "p. s. more", "**P.S.** more"],
        ["PS more", "P.S more", "lips. s. x"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "text\n- a\n  - b", "* a\n- b\nend"],
        ["* a", "* a\n* b\n* c", "**a**\n**b**", "1. a\n2. b", "---\n---"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe."],
        ["yes", "My answer is yes", "My answer is no way."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a b* and *c*", "**a** and *b*", "**a** **b**"],
        ["*a*", "**a**", "* a\n* b", "** ** *x*", "2 * 3"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION 1 a SECTION2 b SECTION 3"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION one SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', ' {"a": 1}\n'],
        ['{"a": 1', "Here: {}", "{'a': 1}", "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<poem of joy>>\nRoses", "a <<b>> c"],
        ["<poem>", "<<>>", "<< >>", "<<a\nb>>", "poem"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******\na\n******\nb\n******"],
        ["a", "a\n******\na", "a ****** b ****** c", "a\n***\nb", "a ****** ****** b", "a ******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["Write a poem. Roses", "  write a POEM.\n"],
        ["Sure! Write a poem.", "Write a poem"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Peace!"},
        ["So: Peace!", 'So "peace!"\n', "peace!"],
        ["Peace! Bye", "Peace"],
    ),
    ("startend:quotation", {}, ['"all of it"', ' "a" and "b"\n'], ["all", '"', '"open', "'single'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and I", "WELL-KNOWN DON'T"],
        ["NASA and me", "Well Known", "12 34"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["ONE word"],
        ["TWO WORDS"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, ENGLISH.lower(), GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, ENGLISH.upper(), GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["one and two; three"], ["one, two", ","]),
]


def test_each_kind_has_passes_and_failures() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {kind for kind, _, follows, fails in CASES if follows and fails} == set(INSTRUCTIONS)


@pytest.mark.parametrize(("kind", "kwargs", "follows", "fails"), CASES, ids=[case[0] for case in CASES])
def test_a_kind(kind: str, kwargs: dict[str, Any], follows: list[str], fails: list[str]) -> None:
    for text in follows:
        assert verifiers.ifeval(text, [kind], [kwargs]).score == 1.0, text
    for text in [*fails, "", " \n"]:
        found = verifiers.ifeval(text, [kind], [kwargs])
        assert found.score == 0.0, text
        assert found.parts == {kind: 0.0}
        assert kind in found.reason


def test_all_or_the_share() -> None:
    ids = ["punctuation:no_comma", "startend:quotation", "punctuation:no_comma"]
    found = verifiers.ifeval("one two", ids, [{}, {}, {}], aggregation="mean")
    assert found.score == pytest.approx(2 / 3)
    assert found.parts == {"punctuation:no_comma": 1.0, "startend:quotation": 0.0, "punctuation:no_comma#2": 1.0}
    assert verifiers.ifeval("one two", ids, [{}, {}, {}]).score == 0.0
    assert verifiers.ifeval('"one two"', ids, [{}, {}, {}]).score == 1.0


def test_loose_drops_first_and_last_lines_and_asterisks() -> None:
    ids, kwargs = ["startend:quotation"], [{}]
    for text in (
        'Sure:\n"a quote"',
        '"a quote"\nHope it helps',
        'Sure:\n"a quote"\nHope it helps',
        '*"a quote"*',
        'Sure:\n**"a quote"**\nHope it helps',
    ):
        assert verifiers.ifeval(text, ids, kwargs).score == 0.0
        assert verifiers.ifeval(text, ids, kwargs, is_loose=True).score == 1.0
    assert verifiers.ifeval('Sure:\nhere:\n"a quote"', ids, kwargs, is_loose=True).score == 0.0
    # what would be left of one line is nothing, and nothing has no comma
    assert verifiers.ifeval("a, b", ["punctuation:no_comma"], [{}], is_loose=True).score == 0.0
    assert verifiers.ifeval("", ["punctuation:no_comma"], [{}], is_loose=True).score == 0.0


def test_each_instruction_may_hold_in_another_of_the_eight_texts() -> None:
    text = 'My answer is yes.\n"a quote"'
    ids = ["detectable_format:constrained_response", "startend:quotation"]
    assert verifiers.ifeval(text, ids, [{}, {}], is_loose=True).score == 1.0


def test_thoughts_are_not_judged() -> None:
    assert verifiers.ifeval("<think>a, b</think>a b", ["punctuation:no_comma"], [{}]).score == 1.0
    assert verifiers.ifeval("<think>a b", ["punctuation:no_comma"], [{}]).score == 0.0


@pytest.mark.parametrize(
    ("ids", "kwargs", "said"),
    [
        (["punctuation:no_coma"], [{}], "punctuation:no_coma"),
        ([], [], "0 instruction ids"),
        (["punctuation:no_comma"], [{}, {}], "1 instruction ids and 2 kwargs"),
        (["punctuation:no_comma"], [{"num_words": 3}], "num_words"),
        (["length_constraints:number_words"], [{"num_words": 3}], "relation"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "around"}], "around"),
        (["length_constraints:number_words"], [{"num_words": -3, "relation": "at least"}], "-3"),
        (["keywords:existence"], [{"keywords": []}], "keywords"),
        (["keywords:existence"], [3], "mapping"),
        ("punctuation:no_comma", [{}], "JSON"),
        (3, [{}], "list"),
    ],
)
def test_wrong_columns_are_refused(ids: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        verifiers.ifeval("text", ids, kwargs)


def test_columns_of_tables() -> None:
    """Cells may hold JSON, and tables give every argument of any kind, most of them None."""
    kwargs = [{"num_words": 2, "relation": "at least", "keyword": None}]
    ids = ["length_constraints:number_words"]
    assert verifiers.ifeval("one two", ids, kwargs).score == 1.0
    assert verifiers.ifeval("one two", json.dumps(ids), json.dumps(kwargs)).score == 1.0
    assert verifiers.ifeval("one two", ["punctuation:no_comma"], [None]).score == 1.0  # pyright: ignore[reportArgumentType] -- what a table holds


def test_every_real_prompt_is_read_and_can_be_judged(shared_data: Path) -> None:
    lines = (shared_data / "ifeval" / "input_data.jsonl").read_text("utf-8").splitlines()
    kinds: Counter[str] = Counter()
    for row in map(json.loads, lines):
        checks = read_instructions(row["instruction_id_list"], row["kwargs"])
        kinds.update(name for name, _ in checks)
        assert verifiers.ifeval("", row["instruction_id_list"], row["kwargs"], aggregation="mean").score == 0.0
        found = verifiers.ifeval(row["prompt"], row["instruction_id_list"], row["kwargs"], is_loose=True)
        assert len(found.parts) == len(checks)
    assert len(lines) == 541
    assert set(kinds) == set(INSTRUCTIONS)
    assert sum(kinds.values()) == 834
