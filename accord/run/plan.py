"""What a run will do and cost, before it starts: layout, rates, tokens, memory, and time from a timed pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object

from accord.config import TrainConfig
from accord.data.tokens import TokenGroup
from accord.errors import TrainingError
from accord.policy.policy import Policy

PROBE_TOKENS = 1024  # laid-out tokens of the timed pass


def make_plan(
    policy: Policy,
    groups: Sequence[TokenGroup],
    eval_groups: Sequence[TokenGroup],
    *,
    num_steps: int,
    lr: float,
    batch_at: Callable[[int], Sequence[TokenGroup]],
    to_reference: Sequence[TokenGroup],
    reference_bytes: int,
    longest: Sequence[TokenGroup] | None = None,
) -> dict[str, Any]:
    """Return the plan of a run as plain values.

    Of a run that samples, `longest` stands for all groups: tokens are then upper bounds, drawing them is not counted.

    Bytes count weights (`reference_bytes`: those of a second model), gradients and AdamW's two moments, not
    activations. `expected_seconds` scales one timed forward and backward pass by tokens; a pass without gradient counts
    a third.
    """
    parameters = list(policy.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    moving = sum(p.numel() * p.element_size() for p in trained)
    groups_like = groups if longest is None else [*longest] * len(groups)
    padded = sum(_padded(groups_like[start : start + 8]) for start in range(0, len(groups_like), 8))
    tokens = sum(group.num_tokens for step in range(num_steps) for group in batch_at(step))
    reference_tokens = sum(group.num_tokens for group in to_reference)
    seconds_per_token = _time_pass(policy, longest or groups)
    return {
        "groups": len(groups),
        "held_out_groups": len(eval_groups),
        "optimiser_steps": num_steps,
        "learning_rate": lr,
        "tokens_to_train": tokens,
        "tokens_to_reference": reference_tokens,
        "tokens_per_epoch": sum(group.num_tokens for group in groups_like),
        "is_sampled": longest is not None,
        "tokens_per_epoch_if_padded_by_8": padded,
        "layout": policy.layout,
        "why_plain": policy.why_plain,
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in trained),
        "bytes_weights": weights,
        "bytes_reference": reference_bytes,
        "bytes_gradients_and_moments": 3 * moving,
        "expected_seconds": round(seconds_per_token * (tokens + reference_tokens / 3), 1),
    }


def _padded(groups: Sequence[TokenGroup]) -> int:
    longest = max(len(g.prompt_ids) + max(len(r.ids) for r in g.responses) for g in groups)
    return longest * sum(len(group.responses) for group in groups)


def _time_pass(policy: Policy, groups: Sequence[TokenGroup]) -> float:
    chosen: list[TokenGroup] = []
    for group in groups:
        if chosen and sum(g.num_tokens for g in chosen) + group.num_tokens > PROBE_TOKENS:
            break
        chosen.append(group)
    if not chosen:
        return 0.0
    trained = [p for p in policy.parameters() if p.requires_grad]
    with torch.no_grad():
        policy.score(chosen[:1])  # what happens once, happens here
    started = time.perf_counter()
    torch.autograd.grad(policy.score(chosen).graded_PK.sum(), trained, allow_unused=True)
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / sum(group.num_tokens for group in chosen)


def describe_plan(plan: dict[str, Any]) -> str:
    """Return the plan as lines for a terminal."""
    gib = 2**30
    why_plain = plan["why_plain"]
    second = f"{plan['bytes_reference'] / gib:.2f} GiB reference, " if plan["bytes_reference"] else ""
    saved = plan["tokens_per_epoch_if_padded_by_8"] / max(1, plan["tokens_per_epoch"])
    return "\n".join(
        (
            "Plan",
            f"  groups                 {plan['groups']} to train on, {plan['held_out_groups']} held out",
            f"  steps                  {plan['optimiser_steps']}",
            f"  learning rate          {plan['learning_rate']:g}",
            f"  tokens                 {'at most ' if plan['is_sampled'] else ''}{plan['tokens_to_train']} to train, "
            f"{plan['tokens_to_reference']} to reference",
            f"  layout                 {plan['layout']}"
            + (f" ({why_plain})" if why_plain else f": {saved:.1f}× fewer tokens than padded pairs of 8"),
            f"  parameters             {plan['parameters']:,} ({plan['trained_parameters']:,} trained)",
            f"  memory                 {plan['bytes_weights'] / gib:.2f} GiB weights, {second}"
            f"{plan['bytes_gradients_and_moments'] / gib:.2f} GiB gradients and moments, besides activations",
            f"  expected time          {plan['expected_seconds']:.0f} s on this machine, "
            + ("sampling and evaluation not counted" if plan["is_sampled"] else "evaluation not counted"),
        )
    )


def schedule_factor(step: int, num_steps: int, settings: TrainConfig) -> float:
    """Return the share of the full learning rate at a step: linear warm-up, then constant, linear or cosine to 0."""
    num_warmup = round(settings.warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def settle_layout(policy: Policy, groups: Sequence[TokenGroup]) -> None:
    """Check the layout; where any process finds that it does not fit, all take the plain path."""
    policy.settle_layout([groups[0], max(groups, key=lambda group: group.num_tokens)])  # a window shows in the longest
    why_plain = next((reason for reason in gather_object([policy.why_plain]) if reason is not None), None)
    if why_plain is not None:
        policy.fall_back_to_plain(why_plain)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that of an allocation; the CPU's is a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "not enough memory" in text


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn running out of memory in a block into a TrainingError that says during what, and what would help."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory while {what} — set a smaller train.max_batch_tokens or data.max_tokens, "
            "model.precision=mixed, model.gradient_checkpointing=true or model.lora_rank"
        ) from error
