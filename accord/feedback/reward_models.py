"""Reward models as a source of feedback: all responses of a prompt in one pass, centred, ensembled, calibrated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from accord.data import encode_groups
from accord.data.batching import micro_batches
from accord.data.policies import own_columns
from accord.data.tokens import TokenGroup
from accord.errors import ConfigError, FeedbackError
from accord.feedback.findings import Finding, Reward
from accord.feedback.reward_calibration import Calibration, ensemble_scores, measure_calibration, read_calibration
from accord.records import Comparison, FinishReason, Group, Label, Ranking, Response

if TYPE_CHECKING:
    from accord.policy.reward import RewardModel

log = logging.getLogger(__name__)
Centre = Literal["none", "references", "prompt"]
Ensemble = Literal["mean", "worst", "uncertainty"]
StepScores = Literal["min", "product", "mean", "last"]
_MARK = "accord_place"


def reward_model_reward(
    model: str | Sequence[str] | RewardModel | Sequence[RewardModel],
    *,
    name: str = "model",
    centre: str | None = None,
    scale: bool | None = None,
    remove_length: bool = False,
    ensemble: str = "mean",
    penalty: float = 0.5,
    steps: str | None = None,
    chat_template: str = "auto",
    precision: str = "float32",
    max_batch_tokens: int = 8192,
    policy_tokenizer: Any = None,
    device: Any = None,
) -> Reward:
    """Return a reward model, or an ensemble of several, as a `Reward`.

    centre: "none"; "references" subtracts the mean score of reference samples, as the calibration beside the model has
    it; "prompt" subtracts the mean over the responses of the prompt. scale: divide by the standard deviation of
    reference samples. remove_length: subtract E[score | length] of reference samples (in place of their mean).
    ensemble: "mean", "worst" (the smallest) or "uncertainty" (mean − `penalty` × variance over the members); its
    members are centred per prompt and scaled unless told otherwise, for their scores have scales of their own.
    steps: how a process reward model's scores of steps become one number, as probabilities of being right: "min",
    "product", "mean" or "last"; None scores whole responses.
    Sampled token ids are read as they are where `policy_tokenizer` has the model's vocabulary, or where there is no
    text; else the text is encoded. Raises ConfigError for settings that do not fit together or need a calibration that
    is not there, PolicyError for what cannot be loaded.
    """
    given = [model] if isinstance(model, str) or not isinstance(model, Sequence) else list(model)
    for key, value, kinds in (
        ("centre", centre or "none", Centre), ("ensemble", ensemble, Ensemble), ("steps", steps or "min", StepScores),
        ("precision", precision, Literal["float32", "bfloat16", "mixed"]),
    ):  # fmt: skip
        if value not in get_args(kinds):
            raise ConfigError(f"got {key}={value!r} of a reward model — expected one of {', '.join(get_args(kinds))}")
    if not given or (len(given) == 1 and ensemble != "mean") or penalty < 0:
        raise ConfigError(
            f"got ensemble={ensemble} with penalty={penalty} of {len(given)} reward models — expected two or more "
            "models, and a penalty ≥ 0"
        )
    is_ensemble = len(given) > 1
    centring = cast(Centre, centre or ("prompt" if is_ensemble else "none"))
    members = [
        _Member(
            model=loaded, calibration=_calibration_of(loaded), centre=centring,
            scale=is_ensemble if scale is None else scale, remove_length=remove_length,
            steps=cast(StepScores | None, steps), chat_template=chat_template, max_batch_tokens=max_batch_tokens,
            policy_tokenizer=policy_tokenizer,
        )
        for loaded in (_loaded(one, precision, device) for one in given)
    ]  # fmt: skip
    if not is_ensemble:
        return ModelReward(name=name, member=members[0])
    return EnsembleReward(name=name, members=tuple(members), how=cast(Ensemble, ensemble), penalty=penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReward:
    """One reward model's scores; `parts` hold the raw score where it was centred or scaled."""

    name: str
    member: _Member

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Score every response."""
        raw, lengths = self.member.raw_scores(groups)
        found = []
        for row, sizes in zip(raw, lengths, strict=True):
            settled = self.member.settled(row, sizes)
            parts: list[dict[str, float | None]] = [
                {} if settled is row or np.isnan(score) else {"raw": float(score)} for score in row
            ]
            found.append([_finding(score, more) for score, more in zip(settled, parts, strict=True)])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleReward:
    """Several reward models' scores as one; `parts` hold each member's, centred and scaled, and their deviation."""

    name: str
    members: tuple[_Member, ...]
    how: Ensemble
    penalty: float

    def __call__(self, groups: Sequence[Group]) -> list[list[Finding]]:
        """Score every response by every member."""
        by_member = [(member, *member.raw_scores(groups)) for member in self.members]
        found = []
        for place in range(len(groups)):
            scores_MK = np.stack([m.settled(raw[place], lengths[place]) for m, raw, lengths in by_member])
            total_K = ensemble_scores(scores_MK, how=self.how, penalty=self.penalty)
            found.append(
                [
                    _finding(
                        total,
                        {f"member{i}": None if np.isnan(score) else float(score) for i, score in enumerate(members)}
                        | {"deviation": None if np.isnan(members).any() else float(members.std())},
                    )
                    for total, members in zip(total_K, scores_MK.T, strict=True)
                ]
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A reward model with how its scores are read."""

    model: RewardModel
    calibration: Calibration | None
    centre: Centre
    scale: bool
    remove_length: bool
    steps: StepScores | None
    chat_template: str
    max_batch_tokens: int
    policy_tokenizer: Any
    reads_ids: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        needs = [
            key
            for key, is_asked in (
                ("centre=references", self.centre == "references"), ("scale", self.scale),
                ("remove_length", self.remove_length),
            )
            if is_asked
        ]  # fmt: skip
        if needs and self.calibration is None:
            raise ConfigError(
                f"got {', '.join(needs)} and {self.model.path or 'a reward model'}, whose scores were not measured on "
                "samples — measure them first: accord score --reward DIR --data SAMPLES --calibrate"
            )
        if self.steps is not None and self.model.kind == "pair":
            raise ConfigError(f"got steps={self.steps} of a model that scores pairs — expected a process reward model")
        same = self.policy_tokenizer is not None and _same_vocabulary(self.policy_tokenizer, self.model.tokenizer)
        object.__setattr__(self, "reads_ids", same)

    def raw_scores(self, groups: Sequence[Group]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the model's own scores of each group's responses, NaN where there is none, and lengths in tokens."""
        raw = [np.full(len(group.responses), np.nan) for group in groups]
        lengths = [np.zeros(len(group.responses)) for group in groups]
        encoded = self.encode(groups)
        for token_group, row in zip(encoded, self._scored(encoded), strict=True):
            for response, score, source in zip(token_group.responses, row, _places(token_group), strict=True):
                raw[token_group.index][source] = score
                lengths[token_group.index][source] = len(response.ids)
        return raw, lengths

    def settled(self, raw_K: np.ndarray, length_K: np.ndarray) -> np.ndarray:
        """Return scores centred and scaled as asked; the same array where nothing was."""
        score_K, known = raw_K, self.calibration
        if known is not None and self.remove_length:
            score_K = score_K - np.array([known.expected_at(length) for length in length_K])
        elif known is not None and self.centre == "references":
            score_K = score_K - known.mean
        if known is not None and self.scale:
            score_K = score_K / known.std
        if self.centre == "prompt" and not np.isnan(score_K).all():
            score_K = score_K - np.nanmean(score_K)
        return score_K

    def encode(self, groups: Sequence[Group]) -> list[TokenGroup]:
        """Return token groups whose `index` is the group's place and whose responses remember theirs."""
        marked = [self._marked(group) for group in groups]
        window = getattr(self.model.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        room = window // 2 if self.model.kind == "pair" and isinstance(window, int) else window
        data = encode_groups(
            marked, self.model.tokenizer, max_tokens=room if isinstance(room, int) and room > 1 else None,
            on_empty="keep", on_identical="keep", chat_template=self.chat_template,
        )  # fmt: skip
        if data.counts["groups_truncated"]:
            log.warning(
                "%d of %d groups are longer than the %s tokens of %s: their scores are of what was left",
                data.counts["groups_truncated"], len(groups), room, self.model.path or "the reward model",
            )  # fmt: skip
        return [self._without_false_ends(group) for group in data.groups]

    def _marked(self, group: Group) -> Group:
        responses = tuple(
            replace(self._as_read(response), source=f"{_MARK}{place}") for place, response in enumerate(group.responses)
        )
        labels = ()
        if self.steps is not None:  # a label of a step is what has the text cut at its steps
            labels = tuple(Label(response=place, step=0, is_desirable=True) for place in range(len(responses)))
        extra = {key: value for key, value in own_columns(group).items() if key != "prompts_differ"}
        return replace(group, responses=responses, judgements=labels, extra=extra)

    def _as_read(self, response: Response) -> Response:
        if response.token_ids is None or response.content is None or self.reads_ids:
            return replace(response, token_weights=None)
        return replace(response, token_ids=None, token_weights=None, behaviour_logps=None)

    def _without_false_ends(self, group: TokenGroup) -> TokenGroup:
        """Take back the end of sequence that text of a response cut off by the length limit was given."""
        source, eos_id = group.source, self.model.tokenizer.eos_token_id
        assert source is not None
        responses = [
            replace(tokens, ids=tokens.ids[:-1], is_trained=tokens.is_trained and tokens.is_trained[:-1], has_eos=False)
            if given.finish_reason is FinishReason.LENGTH and given.token_ids is None and tokens.ids[-1:] == (eos_id,)
            else tokens
            for given, tokens in zip(source.responses, group.responses, strict=True)
        ]
        return replace(group, responses=tuple(responses))

    def _scored(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """Return the scores of each group's responses, in order; no gradient."""
        import torch

        found: list[list[float]] = [[] for _ in groups]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                sized = [self.model.sized(group) for group in groups]
                for part in micro_batches(sized, self.max_batch_tokens, layout=self.model.layout):
                    scores = self.model.score([groups[place] for place in part])
                    for row, place in enumerate(part):
                        found[place] = self._row(scores, row, groups[place])
        finally:
            self.model.train(was_training)
        return found

    def _row(self, scores: Any, row: int, group: TokenGroup) -> list[float]:
        width = len(group.responses)
        if self.model.kind == "pair":
            return _lead_over_others(scores.pair_score_PKK[row, :width, :width].double().cpu().numpy())
        if self.steps is None:
            return scores.score_PK[row, :width].tolist()
        return [
            _of_steps(scores.step_score_PKS[row, column, : len(response.step_ends)].tolist(), self.steps)
            for column, response in enumerate(group.responses)
        ]


def _lead_over_others(logit_KK: np.ndarray) -> list[float]:
    """Return the mean over a group's other responses of P(i ≻ j) − ½, both orders averaged; NaN for a single one."""
    first_KK = 1 / (1 + np.exp(-logit_KK))
    lead_KK = 0.5 * (first_KK - first_KK.T)
    return (lead_KK.sum(axis=1) / (len(lead_KK) - 1)).tolist() if len(lead_KK) > 1 else [float("nan")]


def _of_steps(logits: Sequence[float], how: StepScores) -> float:
    if not logits:
        return float("nan")
    probabilities = 1 / (1 + np.exp(-np.array(logits)))
    match how:
        case "min":
            return float(probabilities.min())
        case "product":
            return float(probabilities.prod())
        case "mean":
            return float(probabilities.mean())
    return float(probabilities[-1])


def _finding(score: float, parts: dict[str, float | None]) -> Finding:
    if np.isfinite(score):
        return Finding(score=float(score), parts=parts)
    return Finding(score=None, reason="the reward model has no score: nothing to read, or nothing to compare with")


def _places(group: TokenGroup) -> list[int]:
    """Return which of the group's responses these are: encoding may leave some out."""
    assert group.source is not None
    return [int((response.source or "").removeprefix(_MARK)) for response in group.source.responses]


def _same_vocabulary(one: Any, other: Any) -> bool:
    return one is other or one.get_vocab() == other.get_vocab()


def _loaded(model: str | RewardModel, precision: str, device: Any) -> RewardModel:
    from accord.policy.reward import RewardModel, load_reward

    if isinstance(model, RewardModel):
        loaded = model
    else:
        loaded = load_reward(model, precision=cast(Any, precision), device=device).requires_grad_(False)
    if loaded.starts_at_zero:
        raise ConfigError(
            f"got {loaded.path or 'a model'} as a reward model, whose head is untrained: every score is 0 — expected "
            "one that was trained, such as `accord reward` makes"
        )
    return loaded


def _calibration_of(model: RewardModel) -> Calibration | None:
    return read_calibration(model.path) if model.path else None


def calibrate_reward(
    model: RewardModel, groups: Sequence[Group], *, chat_template: str = "auto", max_batch_tokens: int = 8192
) -> Calibration:
    """Measure a reward model on samples: mean, deviation, E[score | length]; with comparisons, the temperature too.

    The samples say what "a usual answer" scores: take them from the policy that is to be trained. Comparisons, and
    rankings as all their pairs, give σ(margin) something to be compared with; ties are left out.
    Raises FeedbackError as `measure_calibration` does, and for a model that scores pairs.
    """
    if model.kind == "pair":
        raise FeedbackError("got a model that scores pairs to calibrate — expected one that scores responses")
    member = _Member(
        model=model, calibration=None, centre="none", scale=False, remove_length=False, steps=None,
        chat_template=chat_template, max_batch_tokens=max_batch_tokens, policy_tokenizer=None,
    )  # fmt: skip
    raw, lengths = member.raw_scores(groups)
    margins = [
        float(row[better] - row[worse])
        for group, row in zip(groups, raw, strict=True)
        for better, worse in compared_pairs(group)
        if np.isfinite(row[[better, worse]]).all()
    ]
    scores = np.concatenate(raw) if raw else np.zeros(0)
    known = np.isfinite(scores)
    return measure_calibration(scores[known].tolist(), np.concatenate(lengths)[known].tolist(), margins=margins)


def compared_pairs(group: Group) -> list[tuple[int, int]]:
    """Return (better, worse) of every comparison that is no tie."""
    pairs = []
    for judgement in group.judgements:
        if isinstance(judgement, Comparison) and not judgement.is_tie:
            pairs.append((judgement.better, judgement.worse))
        elif isinstance(judgement, Ranking):
            tiers = judgement.order
            pairs += [(i, j) for a, tier in enumerate(tiers) for i in tier for lower in tiers[a + 1 :] for j in lower]
    return pairs
