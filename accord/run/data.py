"""The data of a run: judged responses read, checked against what the objective needs, encoded, a share held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accord.config import AlignConfig
from accord.data import EncodedData, data_report, encode_groups, load_groups
from accord.data.split import split_held_out
from accord.data.tokens import TokenGroup
from accord.errors import ConfigError, DataError
from accord.objectives import OBJECTIVES, Need, ObjectiveSpec
from accord.policy.judgements import labels, preferences, ratings
from accord.policy.policy import Policy
from accord.records import Group


@dataclass(frozen=True)
class RunData:
    """The groups of a run as read."""

    train: list[Group]
    held_out: list[Group] | None  # None = a share of `train`, taken after encoding


@dataclass(frozen=True)
class DataFacts:
    """The data report, as lines for a person and as plain values for the run folder."""

    text: str
    facts: dict[str, Any]


def load_run_data(
    config: AlignConfig, groups: Sequence[Group] | None, eval_groups: Sequence[Group] | None
) -> tuple[RunData, str, dict[str, Any]]:
    """Read what the settings name, or take groups in memory; return them, the data's hash, and facts for the report."""
    if groups is not None:
        return RunData(list(groups), None if eval_groups is None else list(eval_groups)), "", {}
    settings = config.data
    loaded = load_groups(
        settings.path, format=settings.format, split=settings.split, skip_bad_rows=settings.skip_bad_rows,
        limit=settings.limit,
    )  # fmt: skip
    held_out = None
    if settings.eval_path is not None:
        held_out = load_groups(
            settings.eval_path, format=settings.format, skip_bad_rows=settings.skip_bad_rows
        ).groups  # fmt: skip
    facts = {"path": loaded.path, "format": loaded.format, "bad_rows": loaded.bad_rows}
    return RunData(loaded.groups, held_out), loaded.data_hash, facts


_GIVES: dict[Need, Callable[[Group], bool]] = {
    Need.PREFERENCES: lambda group: bool(preferences(group.judgements)),
    Need.STRENGTHS: lambda group: any(preferences(group.judgements).values()),
    Need.LABELS: lambda group: bool(labels(group.judgements, preferences(group.judgements))),
    Need.RATINGS: lambda group: bool(ratings(group.judgements)),
}


def check_needs(name: str, spec: ObjectiveSpec, groups: Sequence[Group]) -> None:
    """Raise DataError when no group holds the judgements an objective needs; name what is there and what would fit."""
    held = {need for need, gives in _GIVES.items() if any(gives(group) for group in groups)}
    lacking = sorted(need.value for need in spec.needs & _GIVES.keys() if need not in held)
    if not lacking:
        return
    kinds = sorted({type(judgement).__name__.lower() for group in groups for judgement in group.judgements})
    fitting = [other for other, row in OBJECTIVES.items() if (row.needs & _GIVES.keys()) <= held]
    raise DataError(
        f"objective {name} needs {', '.join(lacking)}; none of the {len(groups)} groups gives them "
        f"(judgements found: {', '.join(kinds) or 'none'}) — objectives that fit this data: {', '.join(fitting)}"
    )


def encode_run_data(
    config: AlignConfig, data: RunData, policy: Policy, loaded: dict[str, Any]
) -> tuple[list[TokenGroup], list[TokenGroup], DataFacts]:
    """Return the groups to train on, those held out, and the data report.

    Raises DataError when nothing is left to train on, ConfigError when evaluation is asked for and nothing held out.
    """
    encoded = _encode_part(config, data.train, policy)
    report = data_report(data.train, encoded, policy.tokenizer, **loaded)
    train = list(encoded.groups)
    if data.held_out is not None:
        held_out = list(_encode_part(config, data.held_out, policy).groups)
    else:
        train, held_out = split_held_out(train, config.data.eval_fraction, seed=config.train.seed)
    if not held_out and config.evaluate.every is not None:
        raise ConfigError(
            f"evaluate.every={config.evaluate.every} is set, but no group is held out of {len(data.train)} — "
            "give data.eval_path or a larger data.eval_fraction"
        )
    if not train:
        raise DataError(
            f"no group is left to train on of {len(data.train)} read — look at the data report:\n{report.to_text()}"
        )
    return train, held_out, DataFacts(report.to_text(), report.to_dict())


def _encode_part(config: AlignConfig, groups: Sequence[Group], policy: Policy) -> EncodedData:
    data, template = config.data, config.template
    limit = getattr(policy.causal_lm.config, "max_position_embeddings", None)
    max_tokens = min((n for n in (data.max_tokens, limit) if n), default=None)
    return encode_groups(
        groups, policy.tokenizer,
        max_tokens=max_tokens, on_too_long=data.on_too_long, on_empty=data.on_empty, on_identical=data.on_identical,
        on_prompt_mismatch=data.on_prompt_mismatch, on_template_error=template.on_error,
        append_eos=template.append_eos, add_bos=template.add_bos, chat_template=template.chat,
        train_turns=template.train_turns,
    )  # fmt: skip
