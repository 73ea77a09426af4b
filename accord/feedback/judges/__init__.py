"""LLM judges over any endpoint or local policy: pairwise, pointwise, by a constitution; and how far to trust them."""

from accord.feedback.judges.chat import Chat, EndpointChat, PolicyChat, Reply
from accord.feedback.judges.constitution import ConstitutionJudge, critique_and_revise, demonstrations
from accord.feedback.judges.judging import Judge, Judged, judge_groups, with_judgements
from accord.feedback.judges.pairwise import PairFinding, PairwiseJudge, swapped_log_odds, swapped_probability
from accord.feedback.judges.pointwise import PointwiseJudge
from accord.feedback.judges.prompts import Principle, Prompt, load_principles, load_prompt
from accord.feedback.judges.reliability import Reliability, both_orders, measure_reliability

__all__ = [
    "Chat",
    "ConstitutionJudge",
    "EndpointChat",
    "Judge",
    "Judged",
    "PairFinding",
    "PairwiseJudge",
    "PointwiseJudge",
    "PolicyChat",
    "Principle",
    "Prompt",
    "Reliability",
    "Reply",
    "both_orders",
    "critique_and_revise",
    "demonstrations",
    "judge_groups",
    "load_principles",
    "load_prompt",
    "measure_reliability",
    "swapped_log_odds",
    "swapped_probability",
    "with_judgements",
]
