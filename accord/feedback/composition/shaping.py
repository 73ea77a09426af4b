"""Length, repetition and abstention as rewards: what a response is given for its form beside what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accord.errors import ConfigError
from accord.feedback.composition.combine import each
from accord.feedback.findings import Finding
from accord.feedback.verifiers.texts import ABSTENTIONS, is_abstention
from accord.records import Group, Response

Unit = Literal["tokens", "words", "characters"]

# Formulas -------------------------------------------------------------------------------------------------------------


def overlong_penalty(length: float, *, max_length: float, buffer: float) -> float:
    """Return 0 up to L_max − L_c, then −(|y| − (L_max − L_c))/L_c down to −1 at L_max and beyond.

    L_max = `max_length`, L_c = `buffer`. Source: DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.
    """
    return -min(1.0, max(0.0, (length - (max_length - buffer)) / buffer))


def cosine_length_reward(
    length: float, *, is_right: bool, max_length: float, right: tuple[float, float], wrong: tuple[float, float]
) -> float:
    """Return v_L + ½ (v_0 − v_L)(1 + cos(π min(1, |y|/L))): from v_0 for an empty response to v_L at `max_length`.

    `right` and `wrong` are (v_0, v_L): right answers are worth more when short, wrong ones cost more.
    Source: Yeo et al. 2025, arXiv:2502.03373.
    """
    at_start, at_end = right if is_right else wrong
    return at_end + 0.5 * (at_start - at_end) * (1 + math.cos(math.pi * min(1.0, length / max_length)))


def kimi_length_rewards(lengths: Sequence[float], is_right: Sequence[bool]) -> list[float]:
    """Return λ_i = ½ − (len_i − min)/(max − min) for right answers of a group, min(0, λ_i) for wrong ones.

    0 for all where the lengths are equal. Source: Kimi k1.5, arXiv:2501.12599 (reconstruction).
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    slopes = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [slope if right else min(0.0, slope) for slope, right in zip(slopes, is_right, strict=True)]


def repetition_penalty(units: Sequence[Any], *, ngram: int) -> float:
    """Return −(1 − distinct n-grams / n-grams): 0 without a repetition or with fewer than n units.

    Source: Yeo et al. 2025, arXiv:2502.03373.
    """
    total = len(units) - ngram + 1
    if total < 1:
        return 0.0
    return len({tuple(units[start : start + ngram]) for start in range(total)}) / total - 1.0


# What a response is made of -------------------------------------------------------------------------------------------


def response_text(response: Response) -> str | None:
    """Return a response's words, turns joined by newlines; None where only token ids are known."""
    if isinstance(response.content, tuple):
        return "\n".join(message.content for message in response.content)
    return response.content


def response_units(response: Response, unit: Unit, tokenizer: Any = None) -> Sequence[Any] | None:
    """Return the tokens (those sampled, or the tokenizer's), words or characters of a response; None = not known."""
    if unit == "tokens" and response.token_ids is not None:
        return response.token_ids
    text = response_text(response)
    if text is None or (unit == "tokens" and tokenizer is None):
        return None
    if unit == "tokens":
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return text.split() if unit == "words" else text


def _not_known(unit: Unit) -> Finding:
    return Finding(score=None, reason=f"the response says nothing in {unit}: no text, or no token ids and no tokenizer")


# Rewards --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReward:
    """−|y|, in tokens, words or characters; its weight is the α of the penalty R − α |y|."""

    unit: Unit = "tokens"
    tokenizer: Any = None
    name: str = "length"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return minus the length of each response."""

        def score(group: Group, index: int) -> Finding:
            units = response_units(group.responses[index], self.unit, self.tokenizer)
            return _not_known(self.unit) if units is None else Finding(score=-float(len(units)))

        return each(groups, score)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongReward:
    """`overlong_penalty`: a ramp from 0 to −1 over the last `buffer` units before `max_length`."""

    max_length: int
    buffer: int
    unit: Unit = "tokens"
    tokenizer: Any = None
    name: str = "overlong"

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_length:
            raise ConfigError(
                f"got overlong max_length={self.max_length}, buffer={self.buffer} — expected 0 < buffer ≤ max_length"
            )

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return the penalty of each response."""

        def score(group: Group, index: int) -> Finding:
            units = response_units(group.responses[index], self.unit, self.tokenizer)
            if units is None:
                return _not_known(self.unit)
            return Finding(score=overlong_penalty(len(units), max_length=self.max_length, buffer=self.buffer))

        return each(groups, score)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionReward:
    """`repetition_penalty` of the n-grams of each response."""

    ngram: int = 4
    unit: Unit = "words"
    tokenizer: Any = None
    name: str = "repetition"

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Return the penalty of each response."""

        def score(group: Group, index: int) -> Finding:
            units = response_units(group.responses[index], self.unit, self.tokenizer)
            return (
                _not_known(self.unit) if units is None else Finding(score=repetition_penalty(units, ngram=self.ngram))
            )

        return each(groups, score)


# Shapings of another part ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineLength:
    """`cosine_length_reward` by another part's right (score ≥ `right_from`) or wrong; stands in that part's place."""

    max_length: int
    right: tuple[float, float] = (1.0, 0.5)
    wrong: tuple[float, float] = (-1.0, -0.5)
    right_from: float = 1.0
    unit: Unit = "tokens"
    tokenizer: Any = None
    name: str = "cosine_length"

    def __call__(self, groups: Sequence[Group], given: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
        """Return the shaped reward of each response; unknown where right or wrong is unknown."""
        return [
            [self._score(response, finding) for response, finding in zip(group.responses, row, strict=True)]
            for group, row in zip(groups, given, strict=True)
        ]

    def _score(self, response: Response, finding: Finding) -> Finding:
        units = response_units(response, self.unit, self.tokenizer)
        if finding.score is None or units is None:
            return Finding(score=None, reason=finding.reason) if finding.score is None else _not_known(self.unit)
        is_right = finding.score >= self.right_from
        return Finding(
            score=cosine_length_reward(
                len(units), is_right=is_right, max_length=self.max_length, right=self.right, wrong=self.wrong
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiLength:
    """`kimi_length_rewards` by another part's right (score ≥ `right_from`) and wrong, within each group."""

    right_from: float = 1.0
    unit: Unit = "tokens"
    tokenizer: Any = None
    name: str = "kimi_length"

    def __call__(self, groups: Sequence[Group], given: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
        """Return the length reward of each response; unknown ones enter neither the shortest nor the longest."""
        return [self._of_group(group, row) for group, row in zip(groups, given, strict=True)]

    def _of_group(self, group: Group, row: Sequence[Finding]) -> list[Finding]:
        units = [response_units(response, self.unit, self.tokenizer) for response in group.responses]
        known = [
            (place, len(unit), finding.score >= self.right_from)
            for place, (unit, finding) in enumerate(zip(units, row, strict=True))
            if unit is not None and finding.score is not None
        ]
        findings = [
            _not_known(self.unit) if unit is None else Finding(score=None, reason=finding.reason)
            for unit, finding in zip(units, row, strict=True)
        ]
        if known:
            rewards = kimi_length_rewards([length for _, length, _ in known], [right for _, _, right in known])
            for (place, _, _), reward in zip(known, rewards, strict=True):
                findings[place] = Finding(score=reward)
        return findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstention:
    """r_c for a right answer, r_a for saying one does not know, r_w for a wrong one, r_c > r_a > r_w.

    Best answered where p(right) > (r_a − r_w)/(r_c − r_w). A response in which one of `phrases` is found abstains,
    whatever else it says: an answer that hedges would otherwise be paid for luck and forgiven for error.
    Source: TruthRL, arXiv:2509.25760.
    """

    right: float = 1.0
    abstain: float = 0.0
    wrong: float = -1.0
    right_from: float = 1.0
    phrases: tuple[str, ...] = ABSTENTIONS
    name: str = "abstention"

    def __post_init__(self) -> None:
        if not self.right > self.abstain > self.wrong:
            raise ConfigError(
                f"got right={self.right}, abstain={self.abstain}, wrong={self.wrong} — expected right > abstain > "
                "wrong: else abstaining always or never pays"
            )

    @property
    def answers_from(self) -> float:
        """The probability of being right from which an answer is worth more than abstaining."""
        return (self.abstain - self.wrong) / (self.right - self.wrong)

    def __call__(self, groups: Sequence[Group], given: Sequence[Sequence[Finding]]) -> list[list[Finding]]:
        """Return the ternary reward of each response."""
        return [
            [self._score(response, finding) for response, finding in zip(group.responses, row, strict=True)]
            for group, row in zip(groups, given, strict=True)
        ]

    def _score(self, response: Response, finding: Finding) -> Finding:
        if response_text(response) is None:
            return Finding(score=None, reason="the response has no text to look for an abstention in")
        if is_abstention(response, self.phrases):
            return Finding(score=self.abstain, reason="abstains")
        if finding.score is None:
            return Finding(score=None, reason=finding.reason)
        is_right = finding.score >= self.right_from
        return Finding(score=self.right if is_right else self.wrong, reason="right" if is_right else "wrong")
