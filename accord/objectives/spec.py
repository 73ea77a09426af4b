"""What the rest of Accord may ask about an objective: the row type of `OBJECTIVES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Literal

from torch import Tensor

from accord.groups import ObjectiveResult

Family = Literal["likelihood", "pairwise", "pointwise", "listwise", "token", "policy_gradient", "reward_model"]
Level = Literal["sequence", "token"]
Proof = Literal["optimum", "fixed point", "identity", "bound", "direction"]
"""What `accord verify` shows of a row: training reaches the closed form that theory names; the gradient vanishes where
it should; it equals another row in a limit; its value stays on one side of another; or its first step points where
it should. The first that exists, in this order."""


class Need(Enum):
    """Something beyond log-probabilities and lengths that an objective reads; the value is its name in tables."""

    # judgements: a file gives them or does not
    PREFERENCES = "preferences"  # preferred_PKK
    GOLD = "gold"  # preferred_PKK: one response above all others of the group, and a pair among the others
    STRENGTHS = "strengths"  # strength_PKK
    LABELS = "labels"  # desirable_PK and is_labelled_PK
    RATINGS = "ratings"  # reward_PK and is_rated_PK
    WIN_FRACTIONS = "win_fractions"  # win_frac_PKK and is_compared_PKK
    VOTES = "votes"  # votes: who judged each pair
    STRATA = "strata"  # stratum_P: the population a group's judge or prompt belongs to
    STEP_LABELS = "step_labels"  # steps: labels of the steps of a response
    TOKEN_WEIGHTS = "token_weights"  # tokens.weight_PKT
    # made by scoring
    TOKENS = "tokens"  # tokens: log-probabilities per token
    EDITS = "edits"  # tokens.is_kept_PKT: which tokens two versions of a response share
    LOG_SUM_SQ = "log_sum_sq"  # tokens.log_sum_sq_PKT
    POSITION_KL = "position_kl"  # tokens.position_kl_PKT: a pass of the reference beside each of the policy
    CRITICAL = "critical"  # tokens.critical_PKT: two more models
    Q_VALUES = "q_values"  # tokens.value_PKT, q_PKT2, q_logps_PKT2 and target_q_PKT: heads beside the policy's own
    BEHAVIOUR = "behaviour"  # behaviour_logps_PK: of the sampler that wrote the responses
    PROMPT_EMBEDDINGS = "prompt_embeddings"  # prompt_embedding_PE
    MISMATCHED_KL = "mismatched_kl"  # mismatched_kl: one extra forward pass per batch
    BATCH = "batch"  # batch and place_P: the whole optimisation batch, without gradient
    DRAWS = "draws"  # draw_seed_P: fresh randomness at each visit
    # made by sampling from the policy: `source=rollouts`
    ADVANTAGES = "advantages"  # tokens.advantage_PKT and tokens.old_logps_PKT
    SAMPLER_LOGPS = "sampler_logps"  # tokens.sampler_logps_PKT
    VALUES = "values"  # tokens.value_PKT, old_value_PKT and return_PKT: a critic
    ENTROPY = "entropy"  # tokens.entropy_PKT
    OPPONENTS = "opponents"  # is_own_PK: which responses the policy wrote, and which the one it is compared with
    # made by a reward model instead of log-probabilities
    SCORES = "scores"  # score_PK
    PAIR_SCORES = "pair_scores"  # pair_score_PKK
    STEP_SCORES = "step_scores"  # steps: scores of the steps of a response


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """Numbers an objective carries from one optimiser step to the next; the loop keeps and checkpoints them.

    `start(num_judges=…, num_strata=…, **settings)` makes them; `advance(state, sums, **settings)` returns the next ones
    from the `state_sums` of the results of one optimisation batch, added up over micro-batches and processes. Both are
    pure; tensors are float64 on the CPU. The function sees them as `groups.state`.
    """

    start: Callable[..., dict[str, Tensor]]
    advance: Callable[..., dict[str, Tensor]]
    entries: Mapping[str, Literal["judge", "stratum"]] = field(default_factory=dict)  # what a tensor has one entry per


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """One row of `OBJECTIVES`: a pure function and what a caller must know to run it.

    The settings, their bounds and defaults are read off the signature of `fn`, the summary off its docstring; a
    variant of an existing function is `functools.partial(fn, setting=value)`, whose fixed settings are not offered.
    """

    fn: Callable[..., ObjectiveResult]
    family: Family
    needs: frozenset[Need]  # refused without these
    reads: frozenset[Need] = field(default=frozenset())  # used when present, not required
    needs_when: Mapping[str, Need] = field(default_factory=dict)  # `setting` or `setting=choice`: when so, this, too
    reference: bool  # reads reference_logps_PK
    reference_when: str = ""  # the setting that must not be 0 or empty for it to do so; "" = no setting decides
    level: Level = "sequence"
    is_difference_only: bool = False  # at the defaults: unchanged when all log-ratios of a prompt shift by a constant
    initial_loss: Callable[..., float | None] | None = None  # of the settings: the loss at policy = reference
    learns_from_reference: bool = True  # at the defaults: from policy = reference on, the better response gains
    has_stop_gradient: bool = False  # sg[·] in the formula: some numbers that depend on the policy are held constant
    shared_settings: frozenset[str] = frozenset()  # that several rows offer and one function obeys
    combinations: tuple[Mapping[str, Any], ...] = ()  # to be checked together: alone they do little or nothing
    state: StateSpec | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # `setting=choice` that is not offered → why not
    check: Callable[..., None] | None = None  # of the settings: raises ValueError where bounds cannot say what is wrong
    proof: Proof
    implicit_reward: str  # formula of implicit_reward_PK
    paper: str

    @property
    def summary(self) -> str:
        """Return the first sentence of the function's docstring."""
        documented = self.fn.func if isinstance(self.fn, partial) else self.fn
        return (inspect.getdoc(documented) or "").partition("\n")[0]

    def settings(self) -> dict[str, inspect.Parameter]:
        """Return the keyword-only settings in order, annotations (with their bounds) resolved to objects."""
        fixed = self.fn.keywords if isinstance(self.fn, partial) else {}
        parameters = inspect.signature(self.fn, eval_str=True).parameters
        return {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in fixed
        }

    def at(self, settings: Mapping[str, Any]) -> ObjectiveSpec:
        """Return the row as these settings make it: with the needs, and the reference, that they add."""
        more = {need for key, need in self.needs_when.items() if _is_so(key, settings)}
        reference = self.reference or bool(self.reference_when and _is_so(self.reference_when, settings))
        return replace(self, needs=self.needs | more, reference=reference) if more or reference else self

    def defaults(self) -> dict[str, Any]:
        """Return the default of every setting."""
        return {name: parameter.default for name, parameter in self.settings().items()}


def _is_so(key: str, settings: Mapping[str, Any]) -> bool:
    name, _, choice = key.partition("=")
    return settings.get(name) == choice if choice else bool(settings.get(name))
