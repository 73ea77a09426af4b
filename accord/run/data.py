"""The data of a run: judged responses read, checked against what the objective needs, encoded, a share held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from accord.config import AlignConfig, idle_keys
from accord.data import DataReport, EncodedData, LoadedGroups, data_report, encode_groups, encode_prompts, load_groups
from accord.data.split import split_held_out
from accord.data.tokens import TokenGroup
from accord.data.transforms.relabel import GOAL, ROW, relabel
from accord.data.transforms.select import rating_gap, select_share
from accord.data.transforms.strata import name_strata, stratum_of
from accord.errors import ConfigError, DataError, PolicyError
from accord.objectives import OBJECTIVES, Need, ObjectiveSpec
from accord.policy.judgements import labels, preferences, ratings, step_labels, votes, win_fractions
from accord.policy.load import load_policy
from accord.policy.policy import Policy
from accord.policy.tokens.critical import with_critical
from accord.policy.tokens.scored import with_edits
from accord.records import Group


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The groups of a run as read, and where they came from."""

    train: list[Group]
    held_out: list[Group] | None  # None = a share of `train`, taken after encoding
    files: list[LoadedGroups]  # what was read for `train` and, given data.eval_path, for `held_out`
    unconditioned: list[Group] | None = None  # what `train` was before goals went into its prompts
    changes: list[str] = field(default_factory=list)  # what was done to the groups as read, for the data report

    def facts(self, place: int) -> dict[str, Any]:
        """Return what the data report says of a file; nothing for groups in memory."""
        if place >= len(self.files):
            return {}
        loaded = self.files[place]
        return {"path": loaded.path, "format": loaded.format, "bad_rows": loaded.bad_rows}

    def bad_rows(self) -> list[dict[str, Any]]:
        """Return the rows that could not be read, as plain values."""
        return [asdict(row) for loaded in self.files for row in loaded.bad_rows]


@dataclass(frozen=True)
class DataFacts:
    """The data report, as lines for a person and as plain values for the run folder."""

    text: str
    facts: dict[str, Any]


def load_run_data(
    config: AlignConfig, groups: Sequence[Group] | None, eval_groups: Sequence[Group] | None
) -> RunData:  # fmt: skip
    """Read what the settings name, or take groups in memory.

    Raises ConfigError for settings of a file that groups in memory leave without effect.
    """
    settings = config.data
    if groups is not None:
        of_file = ["format", "split", "eval_path", "limit", "skip_bad_rows"]
        idle = idle_keys(settings, "data", of_file + (["eval_fraction"] if eval_groups is not None else []))
        if idle:
            raise ConfigError(f"got groups in memory and also {', '.join(idle)}, without effect on them — leave it out")
        held_out = None if eval_groups is None else list(eval_groups)
        return _changed(config, RunData(train=list(groups), held_out=held_out, files=[]))
    if eval_groups is not None:
        raise ConfigError("got eval_groups without groups — give both, or data.eval_path for a held-out file")
    read = partial(
        load_groups, format=settings.format, skip_bad_rows=settings.skip_bad_rows, limit=settings.limit
    )  # fmt: skip
    files = [read(settings.path, split=settings.split)]
    if settings.eval_path is not None:
        files.append(read(settings.eval_path))
    held_out = files[1].groups if len(files) > 1 else None
    return _changed(config, RunData(train=files[0].groups, held_out=held_out, files=files))


def _changed(config: AlignConfig, data: RunData) -> RunData:
    """Do to groups as read what the settings say, training and held-out ones alike."""
    if Need.STRATA in config.objective.spec.needs:
        train = name_strata(data.train, config.data.stratum)
        held_out = None if data.held_out is None else name_strata(data.held_out, config.data.stratum)
        data = replace(data, train=train, held_out=held_out)
    if config.data.relabel == "none":
        return data
    goal = GOAL if config.data.goal is None else config.data.goal
    train, num_left_out = relabel(data.train, goal)
    held_out = None if data.held_out is None else relabel(data.held_out, goal)[0]
    change = (
        f"{len(data.train)} rows → {len(train)} groups, one per rating ({num_left_out} without two ratings left out)"
    )
    return replace(
        data, train=train, held_out=held_out, unconditioned=data.train, changes=[*data.changes, f"relabelled: {change}"]
    )


def hash_data(data: RunData, train: Sequence[TokenGroup], held_out: Sequence[TokenGroup]) -> str:
    """Return a hash of what a run learns from and is measured on: of the files, or of groups in memory as encoded."""
    if len(data.files) == 1:
        return data.files[0].data_hash
    if data.files:
        return hashlib.sha256("\n".join(loaded.data_hash for loaded in data.files).encode()).hexdigest()
    digest = hashlib.sha256()
    for part in (train, held_out):
        for group in part:
            digest.update(repr((group.prompt_ids, [r.ids for r in group.responses], group.judgements)).encode())
            if group.source is not None and (stratum := stratum_of(group.source)) is not None:
                digest.update(f"stratum {stratum}".encode())
            if weights := [r.weights for r in group.responses if r.weights is not None]:
                digest.update(repr(weights).encode())
        digest.update(b"/")
    return digest.hexdigest()


_GIVES: dict[Need, Callable[[Group], bool]] = {
    Need.PREFERENCES: lambda group: bool(preferences(group.judgements)),
    Need.GOLD: lambda group: _has_gold(group),
    Need.STRENGTHS: lambda group: any(preferences(group.judgements).values()),
    Need.LABELS: lambda group: bool(labels(group.judgements, preferences(group.judgements))),
    Need.RATINGS: lambda group: bool(ratings(group.judgements)),
    Need.WIN_FRACTIONS: lambda group: bool(win_fractions(group.judgements)),
    Need.BEHAVIOUR: lambda group: all(response.behaviour_logps is not None for response in group.responses),
    Need.VOTES: lambda group: bool(votes(group.judgements)),
    Need.STEP_LABELS: lambda group: bool(step_labels(group.judgements)),
    Need.STRATA: lambda group: stratum_of(group) is not None,
    Need.TOKEN_WEIGHTS: lambda group: any(response.token_weights is not None for response in group.responses),
}


def _has_gold(group: Group) -> bool:
    """Whether one response was judged better than each of the others, and those were compared, too."""
    pairs = preferences(group.judgements)
    everyone = range(len(group.responses))
    gold = [i for i in everyone if all((i, j) in pairs for j in everyone if j != i)]
    return bool(gold) and any(gold[0] not in pair for pair in pairs)


def check_needs(name: str, spec: ObjectiveSpec, data: RunData) -> None:
    """Raise DataError when no group holds the judgements an objective needs; name what is there and what would fit."""
    for groups in (data.train, data.held_out):
        if groups is not None:
            _check_part(name, spec, groups)


def _check_part(name: str, spec: ObjectiveSpec, groups: Sequence[Group]) -> None:
    held = {need for need, gives in _GIVES.items() if any(gives(group) for group in groups)}
    lacking = sorted(need.value for need in spec.needs & _GIVES.keys() if need not in held)
    if not lacking:
        return
    kinds = sorted({type(judgement).__name__.lower() for group in groups for judgement in group.judgements})
    fitting = [
        other
        for other, row in OBJECTIVES.items()
        if (row.needs & _GIVES.keys()) <= held and not row.needs & {Need.ADVANTAGES, Need.OPPONENTS}
    ]
    shown = ", ".join(fitting[:8]) + (f", … ({len(fitting)} in all: `accord methods`)" if len(fitting) > 8 else "")
    raise DataError(
        f"objective {name} needs {', '.join(lacking)}; none of the {len(groups)} groups gives them "
        f"(judgements found: {', '.join(kinds) or 'none'}{_why_nothing_compares(groups)}) — {_mistyped(groups)}"
        f"objectives that fit this data: {shown}"
    )


def _why_nothing_compares(groups: Sequence[Group]) -> str:
    if not any(group.judgements for group in groups):
        return ""
    if all(len(group.responses) == 1 for group in groups):
        return "; every group has one response, and nothing to compare it with"
    compared = any(preferences(group.judgements) for group in groups)
    return "" if compared else "; all of them equal within their group"


def _mistyped(groups: Sequence[Group]) -> str:
    """Say which column that was not read looks like one that would have been."""
    known = ("chosen", "rejected", "completion", "label", "responses", "scores", "ranks", "messages")
    for column in dict.fromkeys(key for group in groups for key in group.extra):
        near = get_close_matches(column, known, n=1, cutoff=0.8)
        if near:
            return f"column {column!r} is not read: did you mean {near[0]!r}? Otherwise, "
    return ""


def encode_run_data(
    config: AlignConfig, data: RunData, policy: Policy
) -> tuple[list[TokenGroup], list[TokenGroup], DataFacts]:
    """Return the groups to train on, those held out, and the data report.

    Raises DataError when nothing is left to train on, ConfigError when evaluation is asked for and nothing held out.
    """
    encoded = _encode_part(config, data.train, policy)
    report = data_report(data.train, encoded, policy.tokenizer, **data.facts(0))
    train = list(encoded.groups)
    text, facts = report.to_text(), report.to_dict()
    if data.held_out is not None:
        encoded = _encode_part(config, data.held_out, policy)
        held_out = list(encoded.groups)
        about = data_report(data.held_out, encoded, policy.tokenizer, **data.facts(1))
        shared = count_shared(train, held_out)
        facts |= {"held_out": about.to_dict(), "held_out_shared_with_training": shared}
        text += f"\n{_describe_held_out(about, len(held_out), shared)}"
    else:
        train, held_out = split_held_out(
            train,
            config.data.eval_fraction,
            seed=config.train.seed,
            prompts=_unconditioned_prompts(config, data, train, policy),
        )
    if not held_out and config.evaluate.every is not None:
        raise ConfigError(
            f"evaluate.every={config.evaluate.every} is set, but no group is held out of {len(data.train)} — "
            "give data.eval_path or a larger data.eval_fraction"
        )
    if not train:
        raise DataError(
            f"no group is left to train on of {len(data.train)} read — look at the data report:\n{report.to_text()}"
        )
    changes = list(data.changes)
    if config.data.select != "all":
        chosen = _select(config, train)
        changes.append(f"selected: {len(chosen)} of {len(train)} groups to train on ({config.data.select})")
        train = chosen
    text = "\n".join([text, *changes])
    train, held_out = ([policy.sized(group) for group in part] for part in (train, held_out))
    return train, held_out, DataFacts(text, facts | {"changes": changes})


def _select(config: AlignConfig, train: Sequence[TokenGroup]) -> list[TokenGroup]:
    method, fraction = config.data.select, config.data.select_fraction
    assert method != "all"
    assert fraction is not None
    features = [0.0 if method == "random" or group.source is None else rating_gap(group.source) for group in train]
    return select_share(train, features, method=method, fraction=fraction, seed=config.train.seed)


def _unconditioned_prompts(
    config: AlignConfig, data: RunData, groups: Sequence[TokenGroup], policy: Policy
) -> list[tuple[int, ...]] | None:
    """Return what the prompts were before a goal was put into them: what was made of one row is held out together."""
    if data.unconditioned is None:
        return None
    rows = [group.source.extra[ROW] for group in groups if group.source is not None]
    places = sorted(set(rows))
    prompts = encode_prompts([data.unconditioned[place] for place in places], policy.tokenizer, **rendering(config))
    of_row = dict(zip(places, prompts, strict=True))
    return [of_row[row] for row in rows]


def with_token_facts(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, *parts: list[TokenGroup]
) -> list[list[TokenGroup]]:
    """Return groups with what the objective reads of their tokens that no step changes: edits, critical tokens.

    Raises PolicyError where a further model cannot be loaded or has another vocabulary than the policy.
    """
    found = list(parts)
    if Need.EDITS in spec.needs:
        found = [with_edits(part) for part in found]
    if Need.CRITICAL in spec.needs:
        critical = config.critical
        positive = _load_further(config, policy, "critical.positive", critical.positive, parts[0])
        negative = _load_further(config, policy, "critical.negative", critical.negative, parts[0])
        contrast, max_tokens = config.critical.contrast, config.train.max_batch_tokens
        found = [with_critical(part, positive, negative, contrast=contrast, max_tokens=max_tokens) for part in found]
    return found


def _load_further(
    config: AlignConfig, policy: Policy, key: str, path: str | None, groups: Sequence[TokenGroup]
) -> Policy:
    assert path is not None, "the settings of a run that needs it name it"
    model = load_policy(
        path, precision=config.model.precision, device=policy.device, trust_remote_code=config.model.trust_remote_code
    )
    ours, theirs = (p.causal_lm.config.get_text_config().vocab_size for p in (policy, model))
    if ours != theirs:
        raise PolicyError(f"got {key}={path} with a vocabulary of {theirs} — expected the policy's, {ours}")
    model.settle_layout([groups[0], max(groups, key=lambda group: group.num_tokens)])
    model.requires_grad_(False)
    return model


def count_shared(train: Sequence[TokenGroup], held_out: Sequence[TokenGroup]) -> int:
    """Return how many held-out groups have a prompt that is also trained on; without a prompt, the same responses."""

    def name(group: TokenGroup) -> Hashable:
        has_prompt = len(group.prompt_ids) > 1  # a lone start token is none
        return group.prompt_ids if has_prompt else tuple(tuple(response.ids) for response in group.responses)

    trained = {name(group) for group in train}
    return sum(name(group) in trained for group in held_out)


def _describe_held_out(report: DataReport, num_groups: int, num_shared: int) -> str:
    lines = [
        f"Held-out data{': ' + report.path if report.path else ''}",
        f"  rows                   {report.rows} ({num_groups} groups to evaluate on, {report.bad_rows} bad rows)",
    ]
    if num_shared:
        lines.append(
            f"  warning: {num_shared} of {num_groups} held-out groups have a prompt that is trained on, too — what is "
            "measured on them flatters the policy; take them out of one of the two"
        )
    return "\n".join(lines)


def _encode_part(config: AlignConfig, groups: Sequence[Group], policy: Policy) -> EncodedData:
    data, template = config.data, config.template
    limit = getattr(policy.causal_lm.config, "max_position_embeddings", None)
    max_tokens = min((n for n in (data.max_tokens, limit) if n), default=None)
    return encode_groups(
        groups, policy.tokenizer,
        max_tokens=max_tokens, on_too_long=data.on_too_long, on_empty=data.on_empty, on_identical=data.on_identical,
        on_prompt_mismatch=data.on_prompt_mismatch, on_template_error=template.on_error,
        **rendering(config),
    )  # fmt: skip


def rendering(config: AlignConfig) -> dict[str, Any]:
    """Return how turns become tokens, as options of the encoder."""
    template = config.template
    return {
        "append_eos": template.append_eos,
        "add_bos": template.add_bos,
        "chat_template": template.chat,
        "train_turns": template.train_turns,
    }
