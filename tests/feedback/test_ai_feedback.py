"""Models at the queue: rewards and judges answer what people are asked, sign, and skip what they do not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from accord.errors import FeedbackError
from accord.feedback.ai_feedback import judge_queue
from accord.feedback.findings import Finding
from accord.feedback.judges.judging import Judged
from accord.feedback.people import (
    COLLECTED,
    AnnotatorKind,
    EventKind,
    ExportSettings,
    Project,
    ProjectSettings,
    QuestionKind,
    create_project,
)
from accord.records import Comparison, Critique, Group, Judgement, Label, Ranking, Rating, Response

SCORES = {"best": 3.0, "good": 1.5, "poor": -0.5, "same": -0.5}


@dataclass
class Dictionary:
    """A reward that knows some texts; a real one in every respect but where its scores come from."""

    name: str = "dictionary"
    scores: Mapping[str, float] = field(default_factory=lambda: SCORES)
    seen: list[Group] = field(default_factory=list)

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Look every response up."""
        self.seen += groups
        return [[self._find(str(response.content)) for response in group.responses] for group in groups]

    def _find(self, text: str) -> Finding:
        if text not in self.scores:
            return Finding(score=None, reason=f"never saw {text!r}")
        return Finding(score=self.scores[text], parts={"helpful": self.scores[text] + 1.0})


@dataclass
class Saying:
    """A judge that says the same of every group."""

    judgements: tuple[Judgement, ...]
    name: str = "llm:model/pairwise.v1#abc"

    def judge(self, groups: Sequence[Group]) -> list[Judged]:
        """Say it."""
        return [Judged(judgements=self.judgements) for _ in groups]


def ask(tmp_path: Path, kind: QuestionKind, *texts: str, **settings: Any) -> Project:
    project = create_project(tmp_path / "a.db", "study", ProjectSettings(kinds=(kind,), **settings))
    responses = tuple(Response(content=text) for text in texts)
    project.add_items([Group(prompt="p", responses=responses, extra={"answer": "42"})])
    return project


def judgements(project: Project) -> list[Judgement]:
    return [judgement for group in project.export() for judgement in group.judgements]


def test_a_reward_compares_by_the_difference_of_its_scores(tmp_path: Path):
    with ask(tmp_path, QuestionKind.PAIRWISE8, "poor", "best", "good") as project:
        reward = Dictionary()
        done = judge_queue(project, reward, prompt="weights", version="step 100")
        assert (done.num_answers, done.num_skips) == (3, 0)
        found = {(j.better, j.worse): j.strength for j in judgements(project) if isinstance(j, Comparison)}
        # best − poor = 3.5 → ⌈3.5⌉ = 4; best − good = 1.5 → 2; good − poor = 2 → 2
        assert found == {(1, 0): 4.0, (1, 2): 2.0, (2, 0): 2.0}
        assert reward.seen[0].extra == {"answer": "42"}  # what a verifier needs is there
        model = project.annotator(done.annotator_id)
        assert (model.kind, model.prompt, model.version) == (AnnotatorKind.MODEL, "weights", "step 100")
        about = project.export()[0].extra[COLLECTED]
        assert about["judges"]["dictionary@step 100"]["prompt"] == "weights"
        again = judge_queue(project, reward, prompt="weights", version="step 100")
        assert (again.annotator_id, again.num_answers) == (done.annotator_id, 0)


def test_the_order_shown_does_not_change_who_is_better(tmp_path: Path):
    project = create_project(tmp_path / "a.db", "study")
    with project:
        pair = (Response(content="poor"), Response(content="best"))
        project.add_items([Group(prompt=f"p{number}", responses=pair) for number in range(20)])
        judge_queue(project, Dictionary(), batch_size=7)
        found = [j for j in judgements(project) if isinstance(j, Comparison)]
        assert {j.better for j in found} == {1}
        assert {j.shown_order for j in found} == {(0, 1), (1, 0)}


@pytest.mark.parametrize(("kind", "num_answers"), [("pairwise8", 0), ("pairwise_ties", 1)])
def test_equals_are_tied_where_a_tie_exists_and_skipped_elsewhere(tmp_path: Path, kind: str, num_answers: int):
    with ask(tmp_path, QuestionKind(kind), "poor", "same") as project:
        done = judge_queue(project, Dictionary())
        assert (done.num_answers, done.num_skips) == (num_answers, 1 - num_answers)
        assert all(isinstance(j, Comparison) and j.is_tie for j in judgements(project))


def test_what_is_unknown_is_skipped_with_the_reason(tmp_path: Path):
    with ask(tmp_path, QuestionKind.PAIRWISE8, "best", "something else") as project:
        done = judge_queue(project, Dictionary())
        assert (done.num_answers, done.num_skips) == (0, 1)
        (event,) = project.events()
        assert (event.kind, event.payload["reason"]) == (EventKind.SKIP, "never saw 'something else'")
        assert judgements(project) == []


def test_a_reward_answers_thumbs_rankings_and_ratings(tmp_path: Path):
    kinds = (QuestionKind.THUMBS, QuestionKind.RANKING, QuestionKind.RATING, QuestionKind.CRITIQUE)
    settings = ProjectSettings(kinds=kinds, attributes=("helpful",))
    with create_project(tmp_path / "a.db", "study", settings) as project:
        group = Group(prompt="p", responses=tuple(Response(content=text) for text in ("poor", "best", "same")))
        for kind in kinds:
            project.add_items([group], kind=kind)
        done = judge_queue(project, Dictionary(), threshold=1.0)
        labels = {j.response: j.is_desirable for j in judgements(project) if isinstance(j, Label)}
        assert labels == {0: False, 1: True, 2: False}
        (ranking,) = [j for j in judgements(project) if isinstance(j, Ranking)]
        assert [set(tier) for tier in ranking.order] == [{1}, {0, 2}]
        # helpful = score + 1: 4 is on the scale 1 … 5, 0.5 is not and is skipped; critiques it has none
        assert [(j.response, j.value) for j in judgements(project) if isinstance(j, Rating)] == [(1, 4.0)]
        assert (done.num_answers, done.num_skips) == (3 + 1 + 1, 2 + 3)


@pytest.mark.parametrize(
    ("said", "level"),
    [
        (Comparison(better=0, worse=1), -2),  # a verdict without a strength is plainly "better"
        (Comparison(better=1, worse=0, strength=0.1), 1),
        (Comparison(better=1, worse=0, strength=2.5), 3),
        (Comparison(better=0, worse=1, strength=1e9), -4),
    ],
)
def test_a_judges_comparison_becomes_a_level(tmp_path: Path, said: Comparison, level: int):
    with ask(tmp_path, QuestionKind.PAIRWISE8, "a", "b") as project:
        judge_queue(project, Saying((said,)))
        assert [event.payload["level"] for event in project.events()] == [level]
        assert judgements(project)[0].judge == "llm:model/pairwise.v1#abc"


def test_a_judge_may_criticise_and_edit(tmp_path: Path):
    said = Critique(response=0, text="too long", edited="short")
    for kind in (QuestionKind.CRITIQUE, QuestionKind.EDIT):
        (tmp_path / kind).mkdir()
        with ask(tmp_path / kind, kind, "long") as project:
            judge_queue(project, Saying((said,)))
            (found,) = judgements(project)
            assert isinstance(found, Critique)
            assert (found.text, found.edited) == ("too long", "short")


def test_a_judge_that_breaks_down_loses_nothing_and_goes_on(tmp_path: Path):
    class Failing(Dictionary):
        def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
            if len(self.seen) >= 4:
                raise FeedbackError("the server is gone")
            return super().__call__(groups)

    with create_project(tmp_path / "a.db", "study") as project:
        pair = (Response(content="poor"), Response(content="best"))
        project.add_items([Group(prompt=f"p{number}", responses=pair) for number in range(10)])
        with pytest.raises(FeedbackError, match="gone"):
            judge_queue(project, Failing(), batch_size=2)
        assert len(project.events()) == 4
        done = judge_queue(project, Dictionary(), batch_size=2)
        assert done.num_answers == 6
        assert project.progress().num_finished == 10


def test_people_and_models_share_the_items(tmp_path: Path):
    with ask(tmp_path, QuestionKind.PAIRWISE8, "poor", "best", judgements_per_item=2) as project:
        assert judge_queue(project, Dictionary(), limit=1).num_answers == 1
        ann = project.add_annotator("Ann")
        found = project.next_assignments(ann.id, 1)[0]
        project.submit(ann.id, found.id, {"level": 1}, "k")
        assert judge_queue(project, Dictionary(name="another")).num_answers == 0  # both judgements are there
        assert {j.judge for j in judgements(project)} == {"dictionary", "annotator-2"}
        assert project.export(settings=ExportSettings(include_unfinished=True)) == project.export()
