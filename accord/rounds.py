"""Rounds of alignment, each from where the last one led: iterative and accelerated preference optimisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from accord.alignment import align
from accord.config import build_config
from accord.durable import remove, replace_folder, storing
from accord.errors import AccordError, ConfigError, StoreError
from accord.policy.weights.averaging import load_extrapolated

RoundSettings = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""What a round sets beside what all rounds share; or a function of the folder of the model it starts from, which may
sample from it, have the answers judged, and say where they are."""


@dataclass(frozen=True, kw_only=True)
class RoundsResult:
    """How rounds ended, with the summary of each."""

    summaries: list[dict[str, Any]]
    model: Path | None  # the last trained policy θ̂; None where the first round was stopped
    extrapolated: Path | None  # the step beyond it; None where α is 0 or a round was stopped
    was_stopped: bool = False  # by a signal; the same call with `resume=True` goes on


def accelerated_rounds(
    rounds: Sequence[RoundSettings],
    *,
    model: str | Path,
    out: str | Path,
    alpha: float = 0.3,
    resume: bool = False,
    announce: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> RoundsResult:
    """Run `align` once per round and take a step beyond after each: accelerated preference optimisation.

    Round t trains θ̂ₜ from θₜ₋₁, which is also its reference; then θₜ = θ̂ₜ + α(θ̂ₜ − θ̂ₜ₋₁), from θ₀ = θ̂₀ = `model` (He et
    al. 2024, arXiv:2410.06293). α = 0 is iterative DPO; one round, of which `extrapolated` is taken, is ExPO.
    `settings` are those of `align` for every round; those of a round win, such as `{"data": FILE}` or
    `{"groups": [...], "objective.beta": 0.1}`. Written are the runs `out/round-1`, … and the models between them,
    `out/start-2`, …, the last of which nothing has started from yet.
    Raises ConfigError where a round would not be compared with its own start, or would train adapters.
    """
    if not rounds or not 0 <= alpha < float("inf"):
        raise ConfigError(f"got {len(rounds)} rounds and alpha={alpha} — expected one round at least, alpha 0 or more")
    start = before = Path(model)
    summaries: list[dict[str, Any]] = []
    for number, given in enumerate(rounds, start=1):
        these = {**settings, **(given(start) if callable(given) else given)}
        _check_round(these, start, number)
        announce(f"round {number} of {len(rounds)}, from {start}")
        folder = Path(out) / f"round-{number}"
        done = align(model=str(start), out=str(folder), resume=resume, announce=announce, **these)
        summaries.append(done.summary)
        if done.was_stopped:
            last = before if number > 1 else None
            return RoundsResult(summaries=summaries, model=last, extrapolated=None, was_stopped=True)
        trained = start = folder / "model"
        if alpha:
            start = Path(out) / f"start-{number + 1}"
            _on_first(lambda: _write_extrapolated(trained, before, start, alpha, these))  # noqa: B023 — called at once
        before = trained
    return RoundsResult(summaries=summaries, model=before, extrapolated=start if alpha else None)


_NOT_SETTINGS = {"groups", "eval_groups", "progress", "show_reference"}  # of `align`: not settings of a run
_OF_THE_ROUNDS = {"model", "model.path", "out", "policy", "config", "dry_run", "overwrite"}


def _check_round(settings: Mapping[str, Any], start: Path, number: int) -> None:
    """Refuse a round that is not one of this method."""
    if taken := sorted(_OF_THE_ROUNDS & settings.keys()):
        raise ConfigError(f"got {', '.join(taken)} for round {number} — the rounds themselves say which")
    own = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}
    config = build_config({"data": "(in memory)", **own, "model": str(start)})
    reference = config.reference
    if not reference.is_own_start or reference.update != "none":
        what = f"reference.update={reference.update}" if reference.is_own_start else reference.named
        raise ConfigError(
            f"got {what} for round {number} — the reference of a round is the model it starts from: leave it out"
        )
    if config.model.lora_rank or (start / "adapter_config.json").is_file():
        raise ConfigError(
            f"got adapters in round {number} — they would be compared with their base instead of with the round's "
            "start, and their factors cannot be extrapolated: merge them into a model first (docs/how_to/lora.md)"
        )


def _write_extrapolated(now: Path, before: Path, out: Path, alpha: float, settings: Mapping[str, Any]) -> None:
    """Write θ_now + α(θ_now − θ_before) as a model folder, whole or not at all.

    It is made again where a run is resumed: another α is then noticed by the round that started from it.
    """
    trust = bool(settings.get("model.trust_remote_code", False))
    policy = load_extrapolated(now, before, alpha, device="cpu", trust_remote_code=trust)
    part = out.with_name(f".{out.name}.part")
    with storing("an extrapolated model", out):
        remove(part)
        part.mkdir(parents=True)
        policy.save(part)
        replace_folder(part, out)


def _on_first(work: Callable[[], None]) -> None:
    """Do some work in the first process, while the others wait for it; where it fails, fail in all."""
    failed: AccordError | None = None
    if PartialState().is_main_process:
        try:
            work()
        except AccordError as error:
            failed = error
    told = gather_object([str(failed) if failed is not None else None])[0]
    if failed is not None:
        raise failed
    if told is not None:
        raise StoreError(told)
