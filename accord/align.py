"""The verb: settings in, an aligned policy and its run folder out. Puts the parts together; the work is theirs."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accord.config import AlignConfig, build_config, flatten
from accord.data import EncodedData, data_report, encode_groups, load_groups
from accord.data.split import split_held_out
from accord.data.tokens import TokenGroup
from accord.errors import ConfigError, DataError, PolicyError, StoreError
from accord.evaluation.report import write_report
from accord.held_out import Evaluation
from accord.objectives import OBJECTIVES, Need, ObjectiveSpec
from accord.plan import make_plan
from accord.policy.judgements import labels, preferences, ratings
from accord.policy.load import hash_weights, load_policy
from accord.policy.policy import Policy
from accord.policy.reference import Reference, base_of, default_cache_folder, opened, reference_key
from accord.records import Group
from accord.store import RunFolder
from accord.tracking import open_tracker
from accord.train import Loop

log = logging.getLogger(__name__)

FREE_TO_CHANGE = ("out", "train.log_every", "train.checkpoint_every", "train.keep_last", "tracking.", "evaluate.")
"""Settings a resumed run may change: they do not move the weights."""


@dataclass(frozen=True, kw_only=True)
class AlignResult:
    """What `align` returns. After a dry run `policy` is untouched and `run` is None."""

    policy: Policy
    summary: dict[str, Any]
    plan: dict[str, Any]
    data_report: str
    run: RunFolder | None
    was_stopped: bool = False


def align(
    config: AlignConfig | None = None,
    *,
    policy: Policy | None = None,
    groups: Sequence[Group] | None = None,
    eval_groups: Sequence[Group] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None,
    announce: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> AlignResult:
    """Train a policy on judged responses and evaluate it on held-out ones.

    Settings are dotted keys, `align(model=DIR, data=FILE, out=DIR, **{"objective.beta": 0.1})`, or a ready `config`.
    A loaded `policy` and `groups` in memory take the place of `model` and `data`. `overwrite` replaces an earlier run
    in `out`; `dry_run` stops after the plan and the data report. Raises AccordError's children; a run folder is made
    only once data and model are known good.
    """
    if config is None:
        config = build_config(_with_places(settings, policy, groups))
    elif settings:
        raise ConfigError(f"got a config and also {', '.join(settings)} — give one or the other")
    spec = OBJECTIVES[config.objective.name]
    accelerator = Accelerator(cpu=config.model.device == "cpu", mixed_precision="no")  # model.precision says which
    data, data_hash, loaded_text = _load(config, groups, eval_groups)
    for part in (data.train, data.held_out):
        if part is not None:
            check_needs(config.objective.name, spec, part)
    was_given = policy is not None
    if policy is None:
        with torch.random.fork_rng():  # adapters start from random numbers
            torch.manual_seed(config.train.seed)
            policy = _load_policy(config, accelerator)
    train, held_out, report = _encode(config, data, policy, loaded_text)
    policy.settle_layout([train[0], max(train, key=lambda group: group.num_tokens)])  # a window shows in the longest
    start_hash = hash_weights(policy, base_only=policy.has_adapters)
    origin = _Origin(policy, config, start_hash, keep=was_given or Need.MISMATCHED_KL in spec.needs)
    reference = _make_reference(config, spec, policy, origin, train)
    loop = Loop(
        policy=policy, groups=train, eval_groups=held_out, spec=spec, objective_settings=config.objective.settings,
        reference=reference, settings=config.train, evaluation=config.evaluate, accelerator=accelerator,
        progress=progress, starts_at_reference=config.reference.path == "auto" and _adapters_are_new(policy),
    )  # fmt: skip
    origin.is_untouched = lambda: loop.state.step == 0
    to_reference = len(reference.missing([*train, *held_out])) if reference is not None and spec.reference else 0
    plan = make_plan(
        policy, train, held_out,
        num_steps=loop.num_steps, batch_size=config.train.batch_size, num_to_reference=to_reference,
    )  # fmt: skip
    announce(report.text)
    announce(describe_plan(plan, policy))
    if dry_run:
        return AlignResult(policy=policy, summary={}, plan=plan, data_report=report.text, run=None)
    run = _open_run(config, resume, overwrite, accelerator, plan, report.facts, data_hash, start_hash)
    try:
        return _run(config, loop, run, reference, report, plan, announce)
    except BaseException:
        if run is not None:
            with suppress(StoreError):  # on a full disk, the first error is the one to show
                run.finish("stopped")
        raise
    finally:
        if loop.tracker is not None:
            loop.tracker.close()


def _run(
    config: AlignConfig, loop: Loop, run: RunFolder | None, reference: Reference | None, report: _Report,
    plan: dict[str, Any], announce: Callable[[str], None],
) -> AlignResult:  # fmt: skip
    started = time.perf_counter()
    resumed_step = _restore(loop, run, announce)
    if run is not None:
        loop.run = run
        loop.tracker = open_tracker(
            run, wandb_project=config.tracking.wandb_project, config=config.to_dict(), resumed_step=resumed_step
        )
    if reference is not None and loop.spec.reference:
        rank, world = loop.accelerator.process_index, loop.accelerator.num_processes
        reference.fill(
            [*loop.groups, *loop.eval_groups],
            share=lambda groups: groups[rank::world],
            merge=lambda values: {k: v for part in gather_object([values]) for k, v in part.items()},
            write=loop.accelerator.is_main_process,
        )
        announce(f"reference {reference.key}: {reference.num_computed} groups scored, {reference.num_reused} reused")
    result = loop.train()
    summary: dict[str, Any] = {
        "objective": config.objective.name,
        "steps": result.state.step,
        "seconds": round(time.perf_counter() - started, 2),
        "tokens": result.state.num_tokens,
        "layout": loop.policy.layout,
        "why_plain": loop.policy.why_plain,
        "eval_before": result.first.metrics if result.first else None,
        "eval_after": result.last.metrics if result.last else None,
        "best_step": result.state.best_step,
        "samples": _join_samples(result.first.samples if result.first else [], result.last),
    }
    if run is not None:
        if resumed_step is not None:
            summary |= _told_before(run, result.last)
        run.write_summary(summary)
        if not result.was_stopped:
            with run.new_model() as folder:
                loop.policy.save(folder)
        run.finish("stopped" if result.was_stopped else "finished")
        if config.tracking.report:
            write_report(run)
    loop.accelerator.wait_for_everyone()
    return AlignResult(
        policy=loop.policy, summary=summary, plan=plan, data_report=report.text, run=run, was_stopped=result.was_stopped
    )  # fmt: skip


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    train: list[Group]
    held_out: list[Group] | None  # None = a share of `train`, taken after encoding


@dataclass(frozen=True)
class _Report:
    text: str
    facts: dict[str, Any]


def _with_places(settings: Mapping[str, Any], policy: Policy | None, groups: Sequence[Group] | None) -> dict[str, Any]:
    """Name what came as an object, so that the config on disk says where it was from."""
    named = dict(settings)
    if policy is not None and not {"model", "model.path"} & named.keys():
        named["model"] = policy.path or "(in memory)"
    if groups is not None and not {"data", "data.path"} & named.keys():
        named["data"] = "(in memory)"
    return named


def _load(
    config: AlignConfig, groups: Sequence[Group] | None, eval_groups: Sequence[Group] | None
) -> tuple[_Data, str, dict[str, Any]]:
    if groups is not None:
        return _Data(list(groups), None if eval_groups is None else list(eval_groups)), "", {}
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
    return _Data(loaded.groups, held_out), loaded.data_hash, facts


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


def _encode(
    config: AlignConfig, data: _Data, policy: Policy, loaded: dict[str, Any]
) -> tuple[list[TokenGroup], list[TokenGroup], _Report]:
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
    return train, held_out, _Report(report.to_text(), report.to_dict())


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


# -- policy and reference ----------------------------------------------------------------------------------------------


def _load_policy(config: AlignConfig, accelerator: Accelerator) -> Policy:
    model = config.model
    device = model.device if model.device is not None and accelerator.num_processes == 1 else accelerator.device
    return load_policy(
        model.path, precision=model.precision, device=device, lora_rank=model.lora_rank,
        lora_alpha=model.lora_alpha, lora_targets=model.lora_targets,
        gradient_checkpointing=model.gradient_checkpointing, compile=model.compile, revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )  # fmt: skip


class _Origin:
    """The policy as it was before its first step, for as long as anything asks for it."""

    def __init__(self, policy: Policy, config: AlignConfig, weights_hash: str, *, keep: bool) -> None:
        self.is_untouched: Callable[[], bool] = lambda: True
        self._policy, self._config, self.weights_hash = policy, config, weights_hash
        self._kept: Policy | None = None
        if keep and not policy.has_adapters:
            self._kept = Policy(
                copy.deepcopy(policy.model), policy.tokenizer, path=policy.path, autocast=policy.autocast
            )
            self._kept.why_plain = policy.why_plain
            self._kept.requires_grad_(False)

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        if self._policy.has_adapters:
            with base_of(self._policy) as base:
                yield base
        elif self.is_untouched():
            with opened(self._policy) as policy:
                yield policy
        else:
            yield self._kept or self._reload()

    def _reload(self) -> Policy:
        model = self._config.model
        policy = load_policy(
            model.path, precision=model.precision, device=self._policy.device, revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        if hash_weights(policy) != self.weights_hash:
            raise PolicyError(
                f"{model.path} no longer holds the weights this run started from, which its reference is made of — "
                "put them back, or give them as reference.path"
            )
        if self._policy.why_plain is not None:
            policy.fall_back_to_plain(self._policy.why_plain)
        return policy


def _adapters_are_new(policy: Policy) -> bool:
    """Whether the policy, if it has adapters, still equals the base under them: LoRA starts with B = 0."""
    return not any("lora_B" in name and bool(parameter.any()) for name, parameter in policy.named_parameters())


def _make_reference(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, origin: _Origin, groups: Sequence[TokenGroup]
) -> Reference | None:
    """Return the reference of a run: needed by the objective, or asked for by the KL of the evaluation."""
    settings = config.reference
    if not spec.reference and not config.evaluate.num_samples:
        return None
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    scorer, weights = origin, origin.weights_hash
    if settings.path != "auto":
        other = load_policy(
            settings.path, precision=config.model.precision, device=policy.device,
            trust_remote_code=config.model.trust_remote_code,
        )  # fmt: skip
        if other.causal_lm.config.get_text_config().vocab_size != vocabulary:
            raise PolicyError(
                f"got the reference {settings.path} with another vocabulary than the policy's {vocabulary}"
            )
        other.settle_layout([groups[0], max(groups, key=lambda group: group.num_tokens)])
        other.requires_grad_(False)
        scorer, weights = (lambda: opened(other)), hash_weights(other)
    folder = None
    if settings.cache is not None:
        folder = default_cache_folder() if settings.cache == "auto" else Path(settings.cache)
    return Reference(
        scorer,
        key=reference_key(weights, policy, vocabulary=vocabulary),
        cache_folder=folder,
        max_tokens=config.train.max_batch_tokens,
    )


# -- the run folder ----------------------------------------------------------------------------------------------------


def _open_run(
    config: AlignConfig, resume: bool, overwrite: bool, accelerator: Accelerator, plan: dict[str, Any],
    facts: dict[str, Any], data_hash: str, weights_hash: str,
) -> RunFolder | None:  # fmt: skip
    if not accelerator.is_main_process:
        return None
    out = config.out or f"runs/{config.objective.name}-{Path(config.model.path).name}"
    run = RunFolder.create(out, resume=resume, overwrite=overwrite)
    now, earlier = dict(flatten(config.to_dict())), dict(flatten(run.read_config()))
    changed = [key for key in now if now[key] != earlier.get(key, now[key]) and not key.startswith(FREE_TO_CHANGE)]
    before = run.read_json("manifest")
    if run.is_resumed and changed:
        raise ConfigError(
            f"got other settings than the run in {out} was started with ({', '.join(changed)}) — "
            "expected the same — resume with those, or start a new run in another folder"
        )
    for name, value in (("data_hash", data_hash), ("weights_hash", weights_hash)):
        if run.is_resumed and before.get(name, value) != value:
            raise DataError(
                f"the {name.split('_')[0]} of the run in {out} changed since it was started — {name} differs"
            )
    run.write_config(config.to_dict())
    run.update_manifest(data_hash=data_hash, weights_hash=weights_hash, seed=config.train.seed, status="running")
    run.write_json("plan", plan)
    run.write_json("data_report", facts)
    return run


def _restore(loop: Loop, run: RunFolder | None, announce: Callable[[str], None]) -> int | None:
    """Take up the newest whole checkpoint, in every process, and say which; a fresh run returns None."""
    checkpoint = run.latest_checkpoint() if run is not None and run.is_resumed else None
    folder = gather_object([str(checkpoint.path) if checkpoint else None])[0]
    if run is not None and run.is_resumed:
        run.rewind(checkpoint.step if checkpoint else -1)
        announce(str(checkpoint) if checkpoint else "no checkpoint yet: starting from the beginning")
    if folder is None:
        return None
    loop.restore(Path(folder))
    return loop.state.step


def _told_before(run: RunFolder, last: Evaluation | None) -> dict[str, Any]:
    """Return what a resumed run's summary takes from its evaluation before the first step, from the run's own files."""
    lines = [line for line in run.read_metrics() if line["step"] == 0]
    metrics = {key.removeprefix("eval/"): value for line in lines for key, value in line.items() if key != "step"}
    samples = [sample for sample in run.read_rows("samples").to_pylist() if sample["step"] == 0]
    return {"eval_before": metrics or None, "samples": _join_samples(samples, last)}


def _join_samples(first: Sequence[dict[str, Any]], last: Evaluation | None) -> list[dict[str, Any]]:
    before = {sample["index"]: sample for sample in first}
    return [
        {"prompt": sample["prompt"], "before": before[sample["index"]]["response"], "after": sample["response"]}
        for sample in (last.samples if last else [])
        if sample["index"] in before
    ]


def describe_plan(plan: dict[str, Any], policy: Policy) -> str:
    """Return the plan as lines for a terminal."""
    gib = 2**30
    saved = plan["tokens_per_epoch_if_padded_by_8"] / max(1, plan["tokens_per_epoch"])
    return "\n".join(
        (
            "Plan",
            f"  groups                 {plan['groups']} to train on, {plan['held_out_groups']} held out",
            f"  steps                  {plan['optimiser_steps']}",
            f"  tokens                 {plan['tokens_to_train']} to train, {plan['tokens_to_reference']} to reference",
            f"  layout                 {plan['layout']}"
            + (f" ({policy.why_plain})" if policy.why_plain else f": {saved:.1f}× fewer tokens than padded pairs of 8"),
            f"  parameters             {plan['parameters']:,} ({plan['trained_parameters']:,} trained)",
            f"  memory                 {plan['bytes_weights'] / gib:.2f} GiB weights, "
            f"{plan['bytes_gradients_and_moments'] / gib:.2f} GiB gradients and moments, besides activations",
            f"  expected time          {plan['expected_seconds']:.0f} s on this machine, evaluation not counted",
        )
    )
