"""The text world: its gold reward is what the formula says, its writer is mediocre, its texts survive a round trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.errors import DataError
from accord.lab.text_world import (
    FACTS,
    FILLERS,
    MARKERS,
    MAX_GOLD,
    TOPICS,
    AuxProblem,
    Request,
    all_requests,
    aux_problems,
    describe,
    evaluate_responses,
    gold_breakdown,
    gold_reward,
    is_right_answer,
    parse_request,
    parse_response,
    render_request,
    sft_groups,
    split_requests,
    user_prompt,
    vocabulary,
    write_response,
)
from accord.records import FinishReason

REQUEST = Request("bees", 2, "formally")
ITEMS = [
    *(f"{topic} {rest}." for topic, facts in FACTS.items() for rest in facts),
    *(word for words in MARKERS.values() for word in words),
    *FILLERS,
    "bees melt rock.",
    ".",
    "7",
]


def fact(topic: str, index: int) -> str:
    return f"{topic} {FACTS[topic][index]}."


def ideal_answer(request: Request) -> str:
    facts = [fact(request.topic, i) for i in range(request.k)]
    return " ".join([MARKERS[request.tone][0], facts[0], FILLERS[0], *facts[1:]])


def test_there_are_48_different_requests_in_8_topics_3_counts_and_2_tones() -> None:
    assert len(set(all_requests())) == len(all_requests()) == 8 * 3 * 2


def test_the_split_is_a_partition_and_both_sides_hold_everything() -> None:
    train, held_out = split_requests()
    assert set(train) | set(held_out) == set(all_requests())
    assert (len(train), len(held_out)) == (36, 12)
    for side in (train, held_out):
        assert {request.topic for request in side} == set(TOPICS)
        for k in (2, 3, 4):
            assert sum(request.k == k for request in side) == len(side) / 3
        assert sum(request.tone == "formally" for request in side) == len(side) / 2


@pytest.mark.parametrize("request_", all_requests(), ids=render_request)
def test_a_request_survives_rendering_and_parsing(request_: Request) -> None:
    assert parse_request(render_request(request_)) == request_
    assert parse_request(user_prompt(render_request(request_))) == request_


def test_the_words_of_a_request_and_its_description() -> None:
    assert render_request(Request("bees", 3, "formally")) == "three facts about bees, formally"
    text = describe(Request("tides", 4, "casually"))
    assert text == '4 different facts about tides, a casual marker ("yo" or "lol"), 6 items in all'


@pytest.mark.parametrize("prompt", ["five facts about bees, formally", "add 3 and 9", "", "two facts about bees"])
def test_a_prompt_that_is_no_request_is_refused(prompt: str) -> None:
    with pytest.raises(DataError, match="expected a request such as 'two facts about bees, formally'"):
        parse_request(prompt)


@pytest.mark.parametrize("fields", [("dogs", 2, "formally"), ("bees", 5, "formally"), ("bees", 2, "rudely")])
def test_a_request_outside_the_world_is_refused(fields: tuple[str, int, str]) -> None:
    with pytest.raises(DataError, match="expected a topic of"):
        Request(*fields)


def test_parsing_tells_facts_markers_fillers_and_inventions_apart() -> None:
    parsed = parse_response("Indeed bees make honey. also well cats hunt mice. bees melt rock. lol bees make")
    assert parsed.facts == (("bees", 1), ("cats", 4))
    assert parsed.markers == ("indeed", "lol")
    assert parsed.fillers == ("also", "well")
    assert parsed.invented == 2  # "bees melt rock." is untrue, "bees make" is unfinished
    assert parsed.num_items == 8
    assert parsed.tone_balance == 0


def test_an_endless_run_of_words_is_not_one_item() -> None:
    assert parse_response("bees " * 40).invented == 10  # the longest clause of this world has four words
    assert parse_response("...").invented == 3
    assert parse_response("").num_items == 0


@pytest.mark.parametrize(
    ("text", "has_eos", "expected"),
    [
        (f"indeed {fact('bees', 0)} also {fact('bees', 1)}", True, 2.5),  # L = k + 2 = 4
        (f"indeed {fact('bees', 0)} {fact('bees', 1)} {fact('bees', 2)}", True, 2.5),  # a third fact fills the length
        (f"indeed {fact('bees', 0)} also {fact('bees', 1)}", False, 1.5),
        (f"lol {fact('bees', 0)} also {fact('bees', 1)}", True, 1.5),
        (f"indeed yo {fact('bees', 0)} {fact('bees', 1)}", True, 2.0),  # the tones cancel
        (f"indeed {fact('bees', 0)} {fact('bees', 0)}", True, 1.0 - 0.75 / 4 + 0.5 - 1 / 36),
        (f"{fact('bees', 0)} {fact('cats', 0)} bees melt rock.", True, 1.0 - 1.5 * 2 / 4 - 1 / 36),
        (
            f"{fact('cats', 0)} " * 6,
            True,
            -1.5 - 0.75 - (2 / 6) ** 2,
        ),  # each is wrong, five are repeats; four count
        ("", True, -((4 / 6) ** 2)),
        ("bees melt rock. " * 30, True, -1.5 - 4.0),  # both caps
    ],
)
def test_gold_reward_by_hand(text: str, has_eos: bool, expected: float) -> None:
    assert gold_reward(REQUEST, text, has_eos) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("request_", all_requests(), ids=render_request)
def test_the_ideal_answer_reaches_the_maximum(request_: Request) -> None:
    assert gold_reward(request_, ideal_answer(request_), True) == pytest.approx(MAX_GOLD, abs=1e-12)


@given(st.sampled_from(all_requests()), st.lists(st.sampled_from(ITEMS), max_size=30), st.booleans())
def test_no_answer_beats_the_maximum_and_the_terms_add_up(request_: Request, items: list[str], ended: bool) -> None:
    breakdown = gold_breakdown(request_, " ".join(items), ended)
    terms = (breakdown.coverage, breakdown.wrong, breakdown.repeats, breakdown.tone, breakdown.length)
    assert breakdown.total == pytest.approx(sum(terms) + breakdown.missing_eos)
    assert -1.5 - 0.75 - 0.5 - 4.0 - 1.0 <= breakdown.total <= MAX_GOLD


@given(st.lists(st.sampled_from(ITEMS), max_size=12), st.randoms(use_true_random=False))
def test_gold_ignores_the_order_of_items(items: list[str], random) -> None:
    shuffled = [item for item in items if item not in (".", "7")]  # these two lean on their neighbours
    before = gold_reward(REQUEST, " ".join(shuffled), True)
    random.shuffle(shuffled)
    assert gold_reward(REQUEST, " ".join(shuffled), True) == pytest.approx(before, abs=1e-12)


def test_a_breakdown_reads_as_a_sum() -> None:
    text = gold_breakdown(REQUEST, f"lol {fact('bees', 0)} {fact('bees', 1)}", True).describe()
    assert text == "gold 1.47 = coverage +2.00, tone −0.50, length −0.03"


def test_columns_agree_with_single_scores_and_lengths_must_match() -> None:
    texts = [ideal_answer(REQUEST), "lol bees make honey.", ""]
    scores = evaluate_responses([REQUEST] * 3, texts, [True, True, False])
    assert scores.gold_N.tolist() == [gold_reward(REQUEST, text, i < 2) for i, text in enumerate(texts)]
    assert scores.num_items_N.tolist() == [4, 2, 0]
    assert scores.tone_N.tolist() == [0.5, -0.5, 0.0]
    assert scores.coverage_N.tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(DataError, match="got 2 requests, 3 texts"):
        evaluate_responses([REQUEST] * 2, texts, [True] * 3)


def test_the_writer_is_mediocre_and_better_with_quality() -> None:
    rng = np.random.default_rng(0)
    gold = {}
    for quality in (0.0, 0.5, 1.0):
        rows = [(request, write_response(request, quality, rng)) for request in all_requests() * 25]
        gold[quality] = np.mean([gold_reward(request, text, True) for request, text in rows])
        assert all(1 <= len(parse_response(text).facts) <= 6 for _, text in rows)
        assert sum(parse_response(text).invented for _, text in rows) == 0
    assert gold[0.0] < gold[0.5] < gold[1.0] < MAX_GOLD - 0.8
    with pytest.raises(DataError, match=r"got quality 1\.2"):
        write_response(REQUEST, 1.2, rng)


def test_auxiliary_problems_have_the_right_answers() -> None:
    for prompt, answer in aux_problems(np.random.default_rng(0), 200):
        verb, *words = prompt.split()
        digits = [int(word) for word in words if word != "and"]
        right = list(str(sum(digits))) if verb == "add" else [str(digit) for digit in reversed(digits)]
        assert answer.split() == right
    assert is_right_answer(AuxProblem("add 3 and 9", "1 2"), " 1 2")
    assert not is_right_answer(AuxProblem("add 3 and 9", "1 2"), "1 2 2")


def test_demonstrations_are_reproducible_half_auxiliary_and_within_the_vocabulary() -> None:
    groups = sft_groups(400, seed=5)
    assert groups == sft_groups(400, seed=5)
    assert groups != sft_groups(400, seed=6)
    prompts = [group.prompt[0].content for group in groups]
    assert sum(prompt.startswith(("add", "reverse")) for prompt in prompts) == 200
    assert {group.responses[0].finish_reason for group in groups} == {FinishReason.STOP}
    words = set(vocabulary())
    for group in groups:
        text = f"{group.prompt[0].content} {group.responses[0].content[0].content}"
        assert set(text.replace(".", " .").replace(",", " ,").split()) <= words
