"""Decoding by learnt values: the imitator's words, weighed by what each is worth. Implicit language Q-learning.

π_β(token) ∝ π(token) e^{β (Q̄(s, token) − V(s))}. β = 0 is the policy that imitates the data; β, chosen while decoding,
says how far it may leave it. Source: Snell et al. 2022, arXiv:2206.11871.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from accord.data import encode_prompts
from accord.decoding.cached import CachedRows
from accord.decoding.drawn import answered, draw_each
from accord.errors import ConfigError
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, stop_ids
from accord.policy.value_heads import ValueLearner
from accord.records import Group, Response


class ValueGuidedRows(CachedRows):
    """Continuations of a prompt whose next tokens are weighed by their values, with β = `strength`."""

    def __init__(self, policy: ValueLearner, prompt: Sequence[int], strength: float) -> None:
        self._learner, self._strength = policy, strength
        super().__init__(policy, prompt)

    def _next_logps(self, **inputs: Any) -> Tensor:
        model = self._learner.causal_lm
        hidden_BH = model.base_model(**inputs).last_hidden_state[:, -1]
        words = model.get_output_embeddings()
        assert words is not None, "a learner of values has a linear vocabulary head"
        return self._learner.guided(hidden_BH, words(hidden_BH), self._strength)


def sample_value_guided(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    strength: float,
    streams: Sequence[int] | None = None,
    ends: frozenset[int] | None = None,
) -> list[tuple[Response, ...]]:
    """Draw K responses to each prompt of token ids from π_β with β = `strength`.

    Temperature, top-k and top-p apply to π_β; `behaviour_logps` are those of what was drawn from. The random numbers
    are the local sampler's, so that β = 0 draws what it draws. Raises ConfigError for a policy without values or
    settings that are not looked at, and PolicyError as `CachedRows` does.
    """
    if not isinstance(policy, ValueLearner):
        raise ConfigError("got a policy without values — load it with load_value_learner: objective=ilql saves them")
    if not math.isfinite(strength) or strength < 0:
        raise ConfigError(f"got strength={strength} — expected β ≥ 0: 0 = the policy itself")
    return draw_each(
        (policy,), prompts, settings, streams=streams, ends=ends,
        rows_at=lambda prompt: ValueGuidedRows(policy, prompt, strength),
    )  # fmt: skip


def answer_value_guided(
    policy: Policy, groups: Sequence[Group], settings: SamplingSettings, *, strength: float, chat_template: str = "auto"
) -> list[Group]:
    """Return groups with the same prompts and K responses each, drawn from π_β with β = `strength`."""
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    ends = stop_ids(policy, chat_template)
    drawn = sample_value_guided(policy, prompts, settings, strength=strength, ends=ends)
    return answered(groups, drawn)
