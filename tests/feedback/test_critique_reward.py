"""A reward that reads a critique first: what its two models are trained on, and what it says."""

from __future__ import annotations

import pytest
from models import build_policy

from accord.errors import DataError
from accord.feedback.critique_reward import CritiqueReward, critique_demonstrations, with_critiques
from accord.feedback.findings import Finding
from accord.policy.sampling import SamplingSettings
from accord.records import Comparison, Critique, Group, Message, Response

JUDGEMENTS = (
    Comparison(better=2, worse=0), Critique(response=0, text="too long"), Critique(response=2, text="short and right"),
)  # fmt: skip
GROUP = Group(
    prompt="2 + 2? ", responses=tuple(Response(content=text) for text in ("it is 4 I think", "5", "4")),
    judgements=JUDGEMENTS, origin="f:1",
)  # fmt: skip


class Lengths:
    """Scores by the number of characters it is shown, and keeps what it was shown."""

    name = "lengths"

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, groups):
        self.shown += [response.content for group in groups for response in group.responses]
        return [[Finding(score=float(len(response.content))) for response in group.responses] for group in groups]


def test_the_critic_learns_to_write_what_was_written():
    first, second = critique_demonstrations([GROUP])
    assert first.prompt.startswith("2 + 2? it is 4 I think\n\n")
    assert [group.responses[0].content for group in (first, second)] == ["too long", "short and right"]


def test_the_scorer_learns_from_responses_with_their_critiques():
    (shown,) = with_critiques([GROUP])
    assert [r.content for r in shown.responses] == [
        "it is 4 I think\n\nCritique: too long",
        "4\n\nCritique: short and right",
    ]
    assert shown.judgements == (Comparison(better=1, worse=0),)  # renumbered: the second had none


def test_conversations_stay_conversations():
    turns = tuple(Response(content=(Message(role="assistant", content=r.content),)) for r in GROUP.responses)
    group = Group(prompt=(Message(role="user", content="2 + 2?"),), responses=turns, judgements=JUDGEMENTS)
    first, _ = critique_demonstrations([group])
    assert [turn.role for turn in first.prompt] == ["user", "assistant", "user"]
    assert first.responses[0].content == (Message(role="assistant", content="too long"),)
    assert with_critiques([group])[0].responses[1].content[0].content == "4\n\nCritique: short and right"


def test_the_reward_scores_a_response_after_its_critique():
    critic, scorer = build_policy(), Lengths()
    group = Group(prompt="w2 w3 ", responses=(Response(content="w5"), Response(content="w6 w7")))
    settings = SamplingSettings(max_tokens=100, temperature=2.0, seed=4)
    first, second = CritiqueReward(critic=critic, scorer=scorer, sampling=settings)([group])[0]
    for finding, shown, answer in zip((first, second), scorer.shown, ("w5", "w6 w7"), strict=True):
        assert finding.reason in shown
        assert shown.startswith(f"{answer}\n\nCritique: ")
        assert finding.score == len(shown)
    cut = CritiqueReward(critic=critic, scorer=scorer, sampling=SamplingSettings(max_tokens=1, seed=1))([group])[0]
    assert [finding.score for finding in cut] == [None, None]
    assert "cut off" in cut[0].reason


def test_without_critiques_there_is_nothing_to_learn():
    bare = Group(prompt="p", responses=(Response(content="a"),))
    for prepare in (critique_demonstrations, with_critiques):
        with pytest.raises(DataError, match="without a critique"):
            prepare([bare])
    ids = Group(prompt="p", responses=(Response(token_ids=(1,)),), judgements=(Critique(response=0, text="x"),))
    with pytest.raises(DataError, match="token ids without text"):
        critique_demonstrations([ids])
