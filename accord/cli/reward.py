"""`accord reward` and `accord score`: train a reward model, and score responses with one or with any other reward."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.cli.align import EPILOG, STOPPED, read_settings
from accord.cli.command import add_command
from accord.cli.outcome import describe_outcome

SETTINGS = "reward.NAME.SETTING=value, such as reward.gsm8k.weight=2 or reward.combine=product"
NUM_CALIBRATED = 512


def add_commands(commands: Any) -> None:
    """Add `reward` and `score`."""
    reward = add_command(commands, "reward", _reward, "train a reward model on a file of judged responses")
    reward.set_defaults(objective="bradley_terry")
    reward.add_argument("settings", nargs="*", metavar="RECIPE.yaml | key=value", help=EPILOG)
    reward.add_argument("--model", help="model folder or Hub id; its head is made anew where it has none")
    reward.add_argument("--data", help="file, folder, glob or Hub id of judged responses")
    reward.add_argument("--out", help="run folder; the reward model is in its model/")
    reward.add_argument("--skip-bad-rows", action="store_true", help="keep malformed rows aside")
    reward.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    reward.add_argument("--dry-run", action="store_true", help="print the plan and the data report, then stop")
    score = add_command(commands, "score", _score, "score the responses of a file with a reward")
    score.add_argument("settings", nargs="*", metavar="reward.NAME.SETTING=VALUE", help=SETTINGS)
    add_reward_argument(score, required=True)
    score.add_argument("--data", required=True, help="file of prompts with responses")
    score.add_argument("--out", help="write the groups with their ratings here (.jsonl or .parquet)")
    score.add_argument(
        "--calibrate", action="store_true",
        help="measure the reward model on these responses, and keep centre, scale and temperature beside it",
    )  # fmt: skip
    score.add_argument("--chat", default="auto", help="chat template (auto, own, transcript, a file)")


def add_reward_argument(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add `--reward`, which may be given several times."""
    parser.add_argument(
        "--reward", action="append", required=required, metavar="DIR | NAME", default=None,
        help="a reward model's folder, or the name of a verifier or other reward; several are added up",
    )  # fmt: skip


def reward_settings_of(names: Sequence[str], assignments: Sequence[str], chat: str) -> dict[str, Any]:
    """Return the settings of a reward from the command line's names and `reward.…=…`."""
    from accord.config import parse_assignment
    from accord.errors import ConfigError
    from accord.feedback.composition import reward_names

    settings: dict[str, Any] = {}
    folders = [name for name in names if name not in reward_names()]
    for name in names:
        if name in folders:
            key = "model" if len(folders) == 1 else f"model{folders.index(name) + 1}"
            settings[key] = {"kind": "model", "path": name, "chat_template": chat}
        else:
            settings[name] = {}
    for text in assignments:
        key, value = parse_assignment(text)
        first, *rest = key.split(".")
        if first != "reward" or not rest or len(rest) > 2:
            raise ConfigError(f"got {text} — expected {SETTINGS}")
        if len(rest) == 1:
            settings[rest[0]] = value
        else:
            settings.setdefault(rest[0], {})[rest[1]] = value
    return settings


def _reward(parsed: argparse.Namespace) -> int:
    from accord.config import build_config
    from accord.durable import dump_json
    from accord.errors import ConfigError
    from accord.terminal import ProgressBars, announce, is_first_process, quiet_libraries

    config = build_config(read_settings(parsed))
    if config.objective.spec.family != "reward_model":
        raise ConfigError(
            f"got objective={config.objective.name}, which trains a policy — expected a reward model's, such as "
            "bradley_terry, k_wise, orm, prm or pairwise_preference; `accord align` trains policies"
        )
    quiet_libraries()
    from accord.alignment import align

    with ProgressBars() as bars:
        result = align(
            config, resume=parsed.resume, dry_run=parsed.dry_run, progress=bars.training(), announce=announce
        )
    if result.was_stopped:
        announce(f"stopped by a signal after step {result.summary['steps']}; the same command with --resume goes on")
        return STOPPED
    calibration = None
    if result.run is not None and is_first_process():
        calibration = _calibrate_trained(config, result.policy, Path(result.run.path) / "model", announce)
    if parsed.json and is_first_process():
        print(dump_json({"plan": result.plan, "summary": result.summary, "calibration": calibration}, indent=2))
    elif result.run is not None:
        announce(describe_outcome(result.summary, str(result.run.path)))
    return 0


def _calibrate_trained(config: Any, policy: Any, folder: Path, announce: Any) -> dict[str, Any] | None:
    """Measure a freshly trained model on what was held out, and keep the result beside it."""
    from dataclasses import asdict

    from accord.errors import FeedbackError
    from accord.feedback.reward_calibration import write_calibration
    from accord.feedback.reward_models import calibrate_reward
    from accord.run.data import encode_run_data, load_run_data

    if policy.kind == "pair" or config.objective.name == "prm":
        return None
    _, held_out, _ = encode_run_data(config, load_run_data(config, None, None), policy)
    groups = [group.source for group in held_out[:NUM_CALIBRATED] if group.source is not None]
    try:
        found = calibrate_reward(policy, groups, chat_template=config.template.chat)
    except FeedbackError as error:
        announce(f"the scores are not calibrated: {error}")
        return None
    write_calibration(folder, found)
    announce(_calibration_text(found, folder))
    return asdict(found)


def _score(parsed: argparse.Namespace) -> int:
    from accord.data import load_groups, write_groups
    from accord.durable import dump_json
    from accord.errors import DataError
    from accord.terminal import announce, quiet_libraries

    groups = [group for group in load_groups(parsed.data).groups if not group.extra.get("is_prompt_only")]
    if not groups:
        raise DataError(f"{parsed.data}: got no response to score — expected prompts with responses")
    settings = reward_settings_of(parsed.reward, parsed.settings, parsed.chat)
    quiet_libraries()
    from accord.feedback.composition import build_reward
    from accord.feedback.rating import with_ratings

    if parsed.calibrate:
        found = _calibrate(parsed, groups)
        if parsed.json:
            print(dump_json(found, indent=2))
        return 0
    findings = build_reward(settings)(groups)
    if parsed.out:
        write_groups(parsed.out, with_ratings(groups, findings, judge=" + ".join(parsed.reward)))
    summary = _summary(groups, findings)
    if parsed.json:
        rows = [
            [{"score": one.score, "reason": one.reason, "parts": dict(one.parts)} for one in row] for row in findings
        ]
        print(dump_json({"summary": summary, "findings": rows}, indent=2))
        return 0
    if not parsed.out:
        for group, row in zip(groups, findings, strict=True):
            shown = "  ".join("unknown" if one.score is None else f"{one.score:.4f}" for one in row)
            print(f"{group.origin or 'a group'}  {shown}")
    announce("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                       for key, value in summary.items() if value is not None))  # fmt: skip
    return 0


def _calibrate(parsed: argparse.Namespace, groups: list[Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from accord.errors import ConfigError
    from accord.feedback.reward_calibration import write_calibration
    from accord.feedback.reward_models import calibrate_reward
    from accord.policy.reward import load_reward
    from accord.terminal import announce

    (path, *more) = parsed.reward
    if more or not Path(path).is_dir() or parsed.settings:
        raise ConfigError(f"got --calibrate with {', '.join(parsed.reward)} — expected one reward model's folder")
    found = calibrate_reward(load_reward(path), groups, chat_template=parsed.chat)
    write_calibration(path, found)
    announce(_calibration_text(found, Path(path)))
    return asdict(found)


def _calibration_text(found: Any, folder: Path) -> str:
    text = f"scores of {found.num_samples} samples: mean {found.mean:.3f}, standard deviation {found.std:.3f}"
    if found.temperature is not None:
        text += (
            f"; {found.num_comparisons} comparisons: calibration error {found.ece:.3f}, with temperature "
            f"{found.temperature:.3g} {found.ece_refitted:.3f}"
        )
    return f"{text} (kept in {folder})"


def _summary(groups: Sequence[Any], findings: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return how many were scored, mean and deviation, and how often compared responses are ordered as judged."""
    from accord.feedback.reward_models import compared_pairs

    known = [one.score for row in findings for one in row if one.score is not None]
    mean = sum(known) / len(known) if known else None
    gaps = [
        row[better].score - row[worse].score
        for group, row in zip(groups, findings, strict=True)
        for better, worse in compared_pairs(group)
        if row[better].is_known and row[worse].is_known
    ]
    right = sum(0.5 if gap == 0 else float(gap > 0) for gap in gaps)
    return {
        "responses": sum(map(len, findings)),
        "unknown": sum(map(len, findings)) - len(known),
        "mean": mean,
        "std": None if mean is None else (sum((score - mean) ** 2 for score in known) / len(known)) ** 0.5,
        "comparisons": len(gaps),
        "accuracy": right / len(gaps) if gaps else None,
    }
