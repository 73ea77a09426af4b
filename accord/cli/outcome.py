"""What a finished run says at the end."""

from __future__ import annotations

from typing import Any


def describe_outcome(summary: dict[str, Any], folder: str) -> str:
    """Return steps, what was measured on held-out groups before and after, and where the results are."""
    lines = [
        f"{summary['steps']} steps, {summary['tokens']} tokens, {summary['seconds']} s, {summary['layout']} layout"
    ]
    after, before = summary["eval_after"] or {}, summary["eval_before"] or {}
    for key, name in (
        ("reward", "reward of held-out answers"),
        ("rewards/accuracies", "held-out reward accuracy"),
        ("ranking_accuracy", "held-out ranking accuracy"),
        ("labels/accuracies", "held-out accuracy on labels"),
        ("steps/accuracies", "held-out accuracy on steps"),
        ("pairs/accuracies", "held-out accuracy on pairs"),
        ("calibration/brier", "held-out Brier score"),
        ("calibration/ece", "held-out calibration error"),
        ("rewards/margins", "held-out margin"),
        ("kl", "KL from the reference, nats"),
        ("loss", "held-out loss"),
    ):
        if key in after:
            ends = f" [{after[f'{key}_low']:.3f}, {after[f'{key}_high']:.3f}]" if f"{key}_low" in after else ""
            start = f" (before: {before[key]:.3f})" if key in before else ""
            lines.append(f"  {name:<30} {after[key]:.3f}{ends}{start}")
    lines.append(f"model and report: {folder}/model, {folder}/report.html")
    return "\n".join(lines)
