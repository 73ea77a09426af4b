"""The verb: settings in, an aligned policy and its run folder out. Puts the parts together; the work is theirs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accord.config import (
    BFLOAT16_IS_TOO_COARSE,
    AlignConfig,
    build_config,
    default_lr,
    flatten,
    idle_keys,
    settle_reward_model,
)
from accord.data.tokens import TokenGroup
from accord.errors import AccordError, ConfigError, DataError, PolicyError, StoreError
from accord.evaluation.report import write_report
from accord.feedback.findings import Reward
from accord.objectives import Need, ObjectiveSpec
from accord.policy.judgements import Populations
from accord.policy.load import hash_weights, load_policy
from accord.policy.policy import Policy
from accord.policy.reward import Kind, RewardModel, load_reward
from accord.records import Group
from accord.rollouts.setup import IN_MEMORY, keep_rollout
from accord.rollouts.source import RolloutSource
from accord.rollouts.supply import FromFile, supply_of
from accord.run.beside import load_beside
from accord.run.data import DataFacts, hash_data, load_run_data
from accord.run.held_out.evaluation import Evaluation
from accord.run.plan import describe_plan, make_plan, memory_for, settle_layout
from accord.run.reference import Origin, References, check_moves, is_asked_later, make_references, starts_at_base
from accord.run.scored import start_state
from accord.store import RunFolder, check_vacant
from accord.tracking import open_tracker
from accord.train import Loop

log = logging.getLogger(__name__)
T = TypeVar("T")

FREE_TO_CHANGE = (
    "out", "model.device", "reference.cache", "train.log_every", "train.checkpoint_every", "train.keep_last",
    "train.statistics", "train.write_rows", "tracking.", "evaluate.every", "evaluate.at_start", "evaluate.num_samples",
    "evaluate.sample_tokens", "evaluate.reward", "evaluate.gradient_pairs", "rollout.record", "rollout.mismatch_alarm",
    "rollout.mismatch_stop",
)  # fmt: skip
"""Settings a resumed run may change: they do not move the weights."""


COMPARED_WITH_BASE = (
    "the policy starts from trained adapters: it is compared with the base model under them, not with its own start; "
    "merge the adapters into the base to compare it with that"
)


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
    reward: Reward | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None,
    announce: Callable[[str], None] = lambda text: None,
    show_reference: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> AlignResult:
    """Train a policy on judged responses and evaluate it on held-out ones.

    Settings are dotted keys, `align(model=DIR, data=FILE, out=DIR, **{"objective.beta": 0.1})`, or a ready `config`.
    A loaded `policy` and `groups` in memory take the place of `model` and `data`, a `reward` in memory that of the
    settings `reward.…` (source=rollouts). `overwrite` replaces an earlier run in `out`; `dry_run` stops after the plan
    and the data report. Raises AccordError's children; a run folder is made only once data and model are known good.
    """
    if config is None:
        config = build_config(_with_places(settings, policy, groups, reward))
    else:
        config = _check_config(config, settings, reward)
    supply = supply_of(config)
    spec, accelerator = supply.spec, _make_accelerator(config)
    out = config.out or f"runs/{config.method or config.objective.name}-{Path(config.model.path).name}"
    if not (dry_run or resume or overwrite):
        _on_first(accelerator, lambda: check_vacant(out))  # before minutes of loading; taken for good below
    data = load_run_data(config, groups, eval_groups)
    supply.check(data)
    was_given = policy is not None
    policy = _load_policy(config, spec, accelerator) if policy is None else _check_given(policy, config, spec)
    config, policy = _settled(config, spec, policy), supply.prepare(policy)
    train, held_out, report = supply.encode(config, data, policy)
    hashes = {"data_hash": hash_data(data, train, held_out)}
    with memory_for("checking the layout and the reference"):
        settle_layout(policy, supply.shapes(train))
        origin = _make_origin(config, spec, policy, was_given=was_given, resume=resume)
        hashes["weights_hash"] = origin.weights_hash
        references = make_references(config, spec, policy, origin, supply.shapes(train))
    if not dry_run or config.source != "file":
        train, held_out = supply.complete(policy, train, held_out, reward, references.open(origin))
    is_at_base = starts_at_base(policy)
    loop = _make_loop(config, supply, policy, train, held_out, references, accelerator, is_at_base=is_at_base)
    loop.progress, loop.scoring.judge = progress, _load_judge(config, policy)
    supply.connect(loop.scoring)
    check_moves(config, loop.num_steps)
    origin.is_untouched = lambda: loop.state.step == 0
    with memory_for("timing a pass for the plan"):
        plan = make_plan(
            policy, train, held_out, num_steps=loop.num_steps, lr=loop.rate, reference_bytes=references.num_bytes,
            **supply.for_plan(references, train, held_out, loop.batch_at, loop.num_steps),
        )  # fmt: skip
    announce("\n".join(filter(None, (report.text, supply.describe(), describe_plan(plan)))))
    if references.fixed is not None and config.reference.is_own_start and not is_at_base:
        announce(COMPARED_WITH_BASE)
    if dry_run:
        return AlignResult(policy=policy, summary={}, plan=plan, data_report=report.text, run=None)
    run = _on_first(
        accelerator,
        lambda: _open_run(
            RunFolder.create(out, resume=resume, overwrite=overwrite), config, plan, report, hashes, data.bad_rows()
        ),
    )
    try:
        return _run(config, loop, run, references, report, plan, announce, show_reference)
    except BaseException:
        if run is not None:
            with suppress(StoreError):  # on a full disk, the first error is the one to show
                run.finish("stopped")
        raise
    finally:
        if loop.tracker is not None:
            loop.tracker.close()


def _check_config(config: AlignConfig, settings: Mapping[str, Any], reward: Reward | None) -> AlignConfig:
    """Return a ready config; raise ConfigError beside settings, and beside a reward that it has no place for."""
    if settings:
        raise ConfigError(f"got a config and also {', '.join(settings)} — give one or the other")
    if reward is not None and (config.source == "file" or config.reward.sections.keys() - {IN_MEMORY}):
        what = "source=file samples nothing" if config.source == "file" else "the config names another"
        raise ConfigError(f"got the reward {reward.name} in memory, but {what} — leave it out")
    return settle_reward_model(config)


def _make_accelerator(config: AlignConfig) -> Accelerator:
    on_cpu = config.model.device == "cpu" or not torch.accelerator.is_available()
    return Accelerator(cpu=on_cpu, mixed_precision="no")  # model.precision says which


def _make_origin(
    config: AlignConfig, spec: ObjectiveSpec, policy: Policy, *, was_given: bool, resume: bool
) -> Origin:  # fmt: skip
    """Return the policy's start, with a copy of it where it is asked again and cannot be loaded again."""
    keep = is_asked_later(config, spec, is_resumed=was_given and resume)
    asks_often = {Need.MISMATCHED_KL, Need.POSITION_KL} & spec.needs
    weights_hash = hash_weights(policy, base_only=policy.has_adapters)
    return Origin(policy, config, weights_hash, keep=keep and (was_given or bool(asks_often)))


def _load_judge(config: AlignConfig, policy: Policy) -> RewardModel | None:
    """Return the reward model that scores held-out answers. Raises PolicyError for another vocabulary or kind."""
    if config.evaluate.reward is None:
        return None
    judge = load_reward(config.evaluate.reward, kind="response", device=policy.device)
    ours, theirs = (model.causal_lm.config.get_text_config().vocab_size for model in (policy, judge))
    if ours != theirs or judge.starts_at_zero:
        what = "whose head is untrained" if ours == theirs else f"with a vocabulary of {theirs}, not {ours}"
        raise PolicyError(
            f"got evaluate.reward={config.evaluate.reward} {what} — expected a trained reward model of the policy's "
            "vocabulary, such as `accord align objective=bradley_terry` makes"
        )
    return judge.requires_grad_(False)


def _make_loop(
    config: AlignConfig, supply: FromFile, policy: Policy, train: list[TokenGroup], held_out: list[TokenGroup],
    references: References, accelerator: Accelerator, *, is_at_base: bool,
) -> Loop:  # fmt: skip
    spec, settings = supply.spec, config.objective.settings
    populations = Populations.of(train, held_out)
    return Loop(
        policy=policy, groups=train, eval_groups=held_out, spec=spec, objective_settings=settings,
        reference=references.fixed, moving_reference=references.moving, settings=config.train,
        evaluation=config.evaluate, accelerator=accelerator,
        objective_state=start_state(spec, settings, populations), populations=populations,
        starts_at_reference=_starts_at_known_loss(config, spec, policy, is_at_base=is_at_base),
        source=supply.source, critic_lr=config.critic.lr, beside=load_beside(config, policy),
    )  # fmt: skip


def _run(
    config: AlignConfig, loop: Loop, run: RunFolder | None, references: References, report: DataFacts,
    plan: dict[str, Any], announce: Callable[[str], None], show_reference: Callable[[int, int], None],
) -> AlignResult:  # fmt: skip
    started = time.perf_counter()
    if run is not None:
        announce = _also_to_log(announce, run)
    resumed_step = _restore(loop, run, announce)
    if run is not None:
        loop.run = run
        if isinstance(loop.source, RolloutSource) and config.rollout.record:
            loop.source.keep = partial(keep_rollout, run)
        loop.tracker = open_tracker(
            run, wandb_project=config.tracking.wandb_project, config=config.to_dict(), resumed_step=resumed_step
        )
    if (reference := references.fixed) is not None and loop.spec.reference and config.source == "file":
        rank, world = loop.accelerator.process_index, loop.accelerator.num_processes
        with memory_for("scoring the reference"):
            reference.fill(
                references.to_fill(loop.groups, loop.eval_groups),
                share=lambda groups: groups[rank::world],
                merge=lambda values: {k: v for part in gather_object([values]) for k, v in part.items()},
                write=loop.accelerator.is_main_process,
                progress=show_reference,
            )
        announce(f"reference {reference.key}: {reference.num_computed} groups scored, {reference.num_reused} reused")
    if references.moving is not None:
        announce(references.describe())
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
        "weights_of_step": result.weights_step,
        "samples": _join_samples(result.first.samples if result.first else [], result.last),
    }
    if result.weights_step != result.state.step:
        announce(
            f"stopped early after step {result.state.step}; the model has the weights of step {result.weights_step}, "
            "where the held-out loss was lowest"
        )
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


def _with_places(
    settings: Mapping[str, Any], policy: Policy | None, groups: Sequence[Group] | None, reward: Reward | None
) -> dict[str, Any]:
    """Name what came as an object, so that the config on disk says where it was from."""
    named = dict(settings)
    if policy is not None and not {"model", "model.path"} & named.keys():
        named["model"] = policy.path or "(in memory)"
    if groups is not None and not {"data", "data.path"} & named.keys():
        named["data"] = "(in memory)"
    if reward is not None:
        given = [key for key in named if key == "reward" or key.startswith("reward.")]
        if given:
            raise ConfigError(f"got a reward in memory and also {', '.join(given)} — give one or the other")
        named[f"reward.{IN_MEMORY}"] = {"name": reward.name}
    return named


def _load_policy(config: AlignConfig, spec: ObjectiveSpec, accelerator: Accelerator) -> Policy:
    model = config.model
    device = model.device if model.device is not None and accelerator.num_processes == 1 else accelerator.device
    with torch.random.fork_rng():  # adapters start from random numbers
        torch.manual_seed(config.train.seed)
        return _loader(spec)(
            model.path, precision=model.precision, device=device, lora_rank=model.lora_rank,
            lora_alpha=model.lora_alpha, lora_targets=model.lora_targets,
            gradient_checkpointing=model.gradient_checkpointing, compile=model.compile, revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )  # fmt: skip


def _starts_at_known_loss(config: AlignConfig, spec: ObjectiveSpec, policy: Policy, *, is_at_base: bool) -> bool:
    """Whether the first loss is known: policy = reference, or a reward model with a head of zeros."""
    if isinstance(policy, RewardModel):
        return policy.starts_at_zero
    return spec.reference and config.reference.is_own_start and is_at_base


def _loader(spec: ObjectiveSpec) -> Callable[..., Policy]:
    return partial(load_reward, kind=_kind(spec)) if spec.family == "reward_model" else load_policy


def _kind(spec: ObjectiveSpec) -> Kind:
    return "pair" if Need.PAIR_SCORES in spec.needs else "response"


def _check_given(policy: Policy, config: AlignConfig, spec: ObjectiveSpec) -> Policy:
    """Return the policy; raise ConfigError beside settings for loading one, and for too coarse a precision.

    Raises PolicyError for a language model where the objective trains a reward model, and the reverse.
    """
    given = f"a reward model that scores each {policy.kind}" if isinstance(policy, RewardModel) else "a language model"
    wanted = f"a reward model that scores each {_kind(spec)}" if spec.family == "reward_model" else "a language model"
    if given != wanted:
        raise PolicyError(f"got {given} to train with {config.objective.name} — expected {wanted}")
    keys = [key for key in type(config.model).model_fields if key not in ("path", "device")]
    if idle := idle_keys(config.model, "model", keys):
        raise ConfigError(
            f"got a policy in memory and also {', '.join(idle)}, without effect on it — give them to load_policy"
        )
    coarse = {p.dtype for p in policy.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if coarse:
        raise ConfigError(f"got a policy whose trained weights are {coarse.pop()} — {BFLOAT16_IS_TOO_COARSE}")
    return policy


def _check_size_counted(config: AlignConfig, policy: Policy) -> None:
    """Raise ConfigError where the size of adapters is to count and there are none."""
    if config.train.l1 and not policy.has_adapters:
        raise ConfigError(
            f"got train.l1={config.train.l1:g} without adapters, whose size it counts — set model.lora_rank, "
            "or leave it out"
        )


def _settled(config: AlignConfig, spec: ObjectiveSpec, policy: Policy) -> AlignConfig:
    """Return the settings with what the model decides: a learning rate where they leave it open.

    Raises ConfigError for settings of adapters that it does not have.
    """
    _check_size_counted(config, policy)
    if config.train.lr is not None:
        return config
    lr = default_lr(
        learns_from_demonstrations=not spec.needs, has_adapters=policy.has_adapters,
        trains_reward_model=spec.family == "reward_model",
    )  # fmt: skip
    return config.model_copy(update={"train": config.train.model_copy(update={"lr": lr})})


def _on_first(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Do some work in the first process; where it fails, fail in all, so that none waits for the others."""
    result, failed = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except AccordError as error:
            failed = error
    told = gather_object([None if failed is None else (type(failed), str(failed))])[0]
    if failed is not None:
        raise failed
    if told is not None:
        kind, text = told
        raise kind(text)
    return result


# -- the run folder ----------------------------------------------------------------------------------------------------


def _open_run(
    run: RunFolder, config: AlignConfig, plan: dict[str, Any], report: DataFacts, hashes: dict[str, str],
    bad_rows: list[dict[str, Any]],
) -> RunFolder:  # fmt: skip
    """Write down what a run depends on; refuse to resume one whose settings, data or weights are not the same."""
    now, earlier = dict(flatten(config.to_dict())), dict(flatten(run.read_config()))
    changed = [key for key in now if now[key] != earlier.get(key, now[key]) and not key.startswith(FREE_TO_CHANGE)]
    before = run.read_json("manifest")
    if run.is_resumed and changed:
        raise ConfigError(
            f"got other settings than the run in {run.path} was started with ({', '.join(changed)}) — "
            "expected the same — resume with those, or start a new run in another folder"
        )
    for name, value in hashes.items():
        if run.is_resumed and before.get(name, value) != value:
            raise DataError(
                f"the {name.split('_')[0]} of the run in {run.path} changed since it was started — {name} differs"
            )
    run.write_config(config.to_dict())
    run.update_manifest(**hashes, seed=config.train.seed, status="running")
    run.write_json("plan", plan)
    run.write_json("data_report", report.facts)
    if bad_rows:
        run.write_bad_rows(bad_rows)
    run.append_log(f"{report.text}\n{describe_plan(plan)}")
    return run


def _restore(loop: Loop, run: RunFolder | None, announce: Callable[[str], None]) -> int | None:
    """Take up the newest whole checkpoint, in every process, and say which; a fresh run returns None."""
    checkpoint = run.latest_checkpoint() if run is not None and run.is_resumed else None
    folder = gather_object([str(checkpoint.path) if checkpoint else None])[0]
    if folder is not None:
        loop.restore(Path(folder))
    if run is not None and run.is_resumed:
        step = checkpoint.step if checkpoint else -1
        run.rewind(step, keep_evaluation=loop.state.evaluated_step == step)
        announce(str(checkpoint) if checkpoint else "no checkpoint yet: starting from the beginning")
    return loop.state.step if folder is not None else None


def _also_to_log(announce: Callable[[str], None], run: RunFolder) -> Callable[[str], None]:
    def tell(text: str) -> None:
        announce(text)
        run.append_log(text)

    return tell


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
