"""What a run will cost, before it starts: tokens, passes, memory, and time from a timed pass on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from accord.data.tokens import TokenGroup
from accord.policy.policy import Policy

PROBE_TOKENS = 1024  # laid-out tokens of the timed pass


def make_plan(
    policy: Policy,
    groups: Sequence[TokenGroup],
    eval_groups: Sequence[TokenGroup],
    *,
    num_steps: int,
    lr: float,
    tokens_to_train: int,
    to_reference: Sequence[TokenGroup],
    reference_bytes: int,
) -> dict[str, Any]:
    """Return the plan of a run as plain values.

    Bytes count weights (`reference_bytes`: those of a second model), gradients and AdamW's two moments, not
    activations. `expected_seconds` scales one timed forward and backward pass by tokens; a pass without gradient counts
    a third.
    """
    parameters = list(policy.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    moving = sum(p.numel() * p.element_size() for p in trained)
    padded = sum(_padded(groups[start : start + 8]) for start in range(0, len(groups), 8))
    reference_tokens = sum(group.num_tokens for group in to_reference)
    seconds_per_token = _time_pass(policy, groups)
    return {
        "groups": len(groups),
        "held_out_groups": len(eval_groups),
        "optimiser_steps": num_steps,
        "learning_rate": lr,
        "tokens_to_train": tokens_to_train,
        "tokens_to_reference": reference_tokens,
        "tokens_per_epoch": sum(group.num_tokens for group in groups),
        "tokens_per_epoch_if_padded_by_8": padded,
        "layout": policy.layout,
        "why_plain": policy.why_plain,
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in trained),
        "bytes_weights": weights,
        "bytes_reference": reference_bytes,
        "bytes_gradients_and_moments": 3 * moving,
        "expected_seconds": round(seconds_per_token * (tokens_to_train + reference_tokens / 3), 1),
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
    torch.autograd.grad(policy.score(chosen).logps_PK.sum(), trained, allow_unused=True)
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
            f"  tokens                 {plan['tokens_to_train']} to train, {plan['tokens_to_reference']} to reference",
            f"  layout                 {plan['layout']}"
            + (f" ({why_plain})" if why_plain else f": {saved:.1f}× fewer tokens than padded pairs of 8"),
            f"  parameters             {plan['parameters']:,} ({plan['trained_parameters']:,} trained)",
            f"  memory                 {plan['bytes_weights'] / gib:.2f} GiB weights, {second}"
            f"{plan['bytes_gradients_and_moments'] / gib:.2f} GiB gradients and moments, besides activations",
            f"  expected time          {plan['expected_seconds']:.0f} s on this machine, evaluation not counted",
        )
    )
