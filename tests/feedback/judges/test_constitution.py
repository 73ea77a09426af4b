"""Critique and revision by principles, and soft labels by principles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from judge_simulators import LogOddsChat, SayingChat, numbers_group, sigmoid, write_pair_prompt
from scipy.stats import chisquare

from accord.errors import FeedbackError
from accord.feedback.judges import (
    ConstitutionJudge,
    Principle,
    Reply,
    critique_and_revise,
    demonstrations,
    judge_groups,
    load_principles,
)
from accord.feedback.judges.chat import Conversation
from accord.records import Comparison, Critique, Group, Response

FORBIDDEN = ("alpha", "beta", "gamma")
RULES = tuple(
    Principle(name=word, critique=f"find {word}", revision=f"drop {word}", choice=f" less {word}?")
    for word in FORBIDDEN
)


@dataclass
class WordRemover:
    """Criticises by naming the forbidden word that is there, and revises by leaving it out."""

    name: str = "remover"

    def answer(self, conversations: Sequence[Conversation], *, attempt: int = 0) -> list[Reply]:
        return [Reply(text=self._answer(turns)) for turns in conversations]

    def _answer(self, turns: Conversation) -> str:
        answer = turns[0].content.split("<answer>\n")[1].split("\n</answer>")[0]
        word = turns[0].content.split("find ")[1].split()[0]
        if len(turns) == 1:
            return f"it says {word}" if word in answer else "nothing to find"
        assert turns[1].role == "assistant"
        assert f"drop {word}" in turns[2].content
        return " ".join(part for part in answer.split() if part != word) or "silence"

    def option_logps(
        self, conversations: Sequence[Conversation], options: Sequence[str]
    ) -> list[tuple[float, ...] | None]:
        raise AssertionError("asked for log-probabilities")


def violations(response: Response) -> int:
    return sum(word in FORBIDDEN for word in str(response.content).split())


def test_revisions_break_fewer_principles_step_by_step():
    groups = [
        Group(prompt=f"p{i}", responses=(Response(content="say alpha beta gamma now"), Response(content="other")))
        for i in range(30)
    ]
    revised = critique_and_revise(groups, WordRemover(), principles=RULES, num_revisions=4, seed=1)
    for group in revised:
        assert len(group.responses) == 5
        counts = [violations(response) for response in group.responses]
        assert counts[0] == 3
        assert counts == sorted(counts, reverse=True)
        critiques = [judgement for judgement in group.judgements if isinstance(judgement, Critique)]
        assert [critique.response for critique in critiques] == [0, 1, 2, 3]
        assert [critique.edited for critique in critiques] == [r.content for r in group.responses[1:]]
        assert all(r.source == "remover" for r in group.responses[1:])
    assert 0 < sum(violations(group.responses[-1]) for group in revised) < 30  # four draws of three principles
    assert critique_and_revise(groups, WordRemover(), principles=RULES, seed=1) == revised
    assert critique_and_revise(groups, WordRemover(), principles=RULES, seed=2) != revised


def test_principles_are_drawn_uniformly():
    chat = SayingChat(["fine"])
    groups = [Group(prompt=f"p{i}", responses=(Response(content="x"),)) for i in range(300)]
    critique_and_revise(groups, chat, principles=RULES, num_revisions=1)
    drawn = Counter(turns[0].content.split("find ")[1].split()[0] for _, turns in chat.asked if len(turns) == 1)
    assert sorted(drawn) == sorted(FORBIDDEN)
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_a_model_that_says_nothing_ends_its_chain():
    chat = SayingChat(["a critique", "better", "a critique", ""])
    (group,) = critique_and_revise([numbers_group(1.0)], chat, principles=RULES)
    assert [response.content for response in group.responses] == ["1.0", "better"]
    assert len(chat.asked) == 4
    (unrevised,) = critique_and_revise([numbers_group(1.0)], SayingChat([None]), principles=RULES)
    assert len(unrevised.responses) == 1
    assert demonstrations([group, unrevised]) == [
        Group(prompt="which?", responses=(Response(content="better", source="simulated"),))
    ]
    with pytest.raises(FeedbackError, match="num_revisions=0"):
        critique_and_revise([group], chat, num_revisions=0)


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_a_soft_label_is_the_mean_over_orders_of_the_options_probability(bias: float, tmp_path: Path):
    """½ [σ(d + b) + σ(d − b)] with d = 1; what is said beside A and B is normalised away."""
    judge = ConstitutionJudge(
        chat=LogOddsChat(bias=bias, elsewhere=0.9), principles=RULES, prompt=write_pair_prompt(tmp_path)
    )
    label = 0.5 * (sigmoid(1 + bias) + sigmoid(1 - bias))
    assert judge.soft_labels([numbers_group(3.0, 2.0)]) == [pytest.approx(label)]
    (judged,) = judge.judge([numbers_group(2.0, 3.0)])
    (comparison,) = judged.judgements
    assert isinstance(comparison, Comparison)
    assert (comparison.better, comparison.worse) == (1, 0)
    assert comparison.strength == pytest.approx(math.log(label / (1 - label)))
    assert sigmoid(comparison.strength or 0.0) == pytest.approx(label)


def test_identical_responses_have_the_label_one_half(tmp_path: Path):
    judge = ConstitutionJudge(chat=LogOddsChat(bias=2.5), principles=RULES, prompt=write_pair_prompt(tmp_path))
    assert judge.soft_labels([numbers_group(1.0, 1.0)]) == [pytest.approx(0.5)]


def test_labels_after_reasoning_are_clamped(tmp_path: Path):
    """σ(±5) lies outside [0.4, 0.6]: the label is 0.6, the strength ln 1.5; a small difference is left as it is."""
    chat = LogOddsChat()
    judge = ConstitutionJudge(chat=chat, principles=RULES, is_reasoned=True, prompt=write_pair_prompt(tmp_path))
    found = judge.soft_labels([numbers_group(5.0, 0.0), numbers_group(0.1, 0.0)])
    assert found == [pytest.approx(0.6), pytest.approx(sigmoid(0.1))]
    (judged,) = judge.judge([numbers_group(5.0, 0.0)])
    assert isinstance(judged.judgements[0], Comparison)
    assert judged.judgements[0].strength == pytest.approx(math.log(1.5))


def test_principles_are_an_ensemble_and_each_is_asked_in_both_orders(tmp_path: Path):
    chat = LogOddsChat()
    prompt = write_pair_prompt(tmp_path)
    ConstitutionJudge(chat=chat, principles=RULES, prompt=prompt).judge([numbers_group(1.0, 2.0, 3.0)])
    assert chat.asked == 3 * 3 * 2  # pairs × principles × orders
    ConstitutionJudge(chat=chat, principles=RULES, num_principles=1, prompt=prompt).judge([numbers_group(1.0, 2.0)])
    assert chat.asked == 18 + 2


def test_a_question_without_an_answer_makes_its_pair_unknown():
    judge = ConstitutionJudge(chat=SayingChat(["A"]), principles=RULES)
    (group,) = judge_groups([numbers_group(1.0, 2.0)], judge)
    assert group.judgements == ()
    assert judge.judge([numbers_group(1.0, 2.0)])[0].unknown != ()
    silent = ConstitutionJudge(chat=SayingChat([None]), principles=RULES, is_reasoned=True)
    assert silent.soft_labels([numbers_group(1.0, 2.0)]) == [None]


def test_settings_out_of_range_are_named():
    with pytest.raises(FeedbackError, match="clamp"):
        ConstitutionJudge(chat=SayingChat(["A"]), clamp=(0.6, 0.4))
    with pytest.raises(FeedbackError, match="num_principles=9 of 8"):
        ConstitutionJudge(chat=SayingChat(["A"]), principles=load_principles(), num_principles=9)
