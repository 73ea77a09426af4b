"""`accord sample`: answer prompts, and choose among the answers."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from accord.cli.command import add_command
from accord.cli.reward import SETTINGS, add_reward_argument, reward_settings_of


def add_commands(commands: Any) -> None:
    """Add `sample`."""
    sample = add_command(commands, "sample", _sample, "answer prompts with a model")
    sample.add_argument("settings", nargs="*", metavar="reward.NAME.SETTING=VALUE", help=SETTINGS)
    sample.add_argument("--model", required=True)
    sample.add_argument("--prompts", help="file of prompts; without it, each line of standard input is one")
    sample.add_argument("--num-responses", type=int, default=1, metavar="K")
    sample.add_argument("--max-tokens", type=int, default=128)
    sample.add_argument("--temperature", type=float, default=1.0, help="0 = greedy")
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--min-p", type=float, default=0.0, help="cut below this share of the likeliest's chance")
    sample.add_argument("--repetition-penalty", type=float, default=1.0, help="1 = none")
    sample.add_argument("--min-tokens", type=int, default=0)
    sample.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; may be repeated")
    sample.add_argument("--max-rows", type=int, default=256, help="responses drawn together")
    sample.add_argument("--max-batch-tokens", type=int, default=131_072, help="places in the cache")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--chat", default="auto", help="chat template for the prompts (auto, own, transcript, a file)")
    sample.add_argument("--out", help="write groups here (.jsonl or .parquet) instead of printing")
    add_reward_argument(sample)
    sample.add_argument("--best-of", type=int, metavar="N", help="draw N, keep the K best by the reward")
    sample.add_argument(
        "--rejection", type=float, metavar="SCORE", help="of K drawn, keep those that score at least this"
    )
    sample.add_argument("--rso", type=float, metavar="BETA", help="of K drawn, keep each with chance e^((r-max)/BETA)")
    sample.add_argument("--guided", type=int, metavar="TOKENS", help="choose block by block, of --best-of blocks (4)")
    sample.add_argument("--reference", help="a second model, for --realign and --beam")
    sample.add_argument("--realign", type=float, metavar="L", help="draw from reference^(1-L) model^L, token by token")
    sample.add_argument(
        "--value-guided", type=float, metavar="BETA", help="draw by the values that objective=ilql saved; 0 = without"
    )
    sample.add_argument("--beam", type=int, metavar="WIDTH", help="search by log model/reference instead of drawing")


def _sample(parsed: argparse.Namespace) -> int:
    from accord.data import group_to_row, load_groups, write_groups
    from accord.records import Group, Response
    from accord.terminal import announce, quiet_libraries

    quiet_libraries()
    if parsed.prompts:
        prompts = load_groups(parsed.prompts).groups
    else:
        lines = [line.strip() for line in sys.stdin if line.strip()]
        prompts = [Group(prompt=line, responses=(Response(token_ids=()),)) for line in lines]
    answered, notes = _answer(parsed, prompts)
    for note in notes:
        announce(note)
    if parsed.out:
        write_groups(parsed.out, answered)
    elif parsed.json:
        print(json.dumps([group_to_row(group) for group in answered], indent=2))
    else:
        for group in answered:
            print(f"> {group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content}")
            scores = _scores(group)
            for place, response in enumerate(group.responses):
                print(f"  {f'[{scores[place]:.4f}] ' if place in scores else ''}{response.content}")
    return 0


def _answer(parsed: argparse.Namespace, prompts: list[Any]) -> tuple[list[Any], list[str]]:
    from accord.decoding.answering import Way, answer
    from accord.errors import ConfigError
    from accord.feedback.composition import build_reward
    from accord.policy.load import load_policy
    from accord.policy.sampling import SamplingSettings
    from accord.policy.value_heads import load_value_learner

    way = Way(
        best_of=parsed.best_of, threshold=parsed.rejection, rso_beta=parsed.rso, guided=parsed.guided,
        strength=parsed.realign, beam=parsed.beam, value_guided=parsed.value_guided,
    )  # fmt: skip
    if way.needs_reward and not parsed.reward:
        raise ConfigError("got a way of choosing without --reward — give a reward model's folder or a reward's name")
    if way.needs_reference != bool(parsed.reference):
        raise ConfigError(
            "got only one of --reference and --realign or --beam — expected both: two models are compared"
        )
    if parsed.settings and not parsed.reward:
        raise ConfigError(f"got {parsed.settings[0]} without --reward — expected both")
    settings = SamplingSettings(
        num_responses=parsed.num_responses, max_tokens=parsed.max_tokens, temperature=parsed.temperature,
        top_p=parsed.top_p, top_k=parsed.top_k, min_p=parsed.min_p, repetition_penalty=parsed.repetition_penalty,
        min_tokens=parsed.min_tokens, stop=tuple(parsed.stop), seed=parsed.seed, max_rows=parsed.max_rows,
        max_batch_tokens=parsed.max_batch_tokens,
    )  # fmt: skip
    policy = load_policy(parsed.model) if parsed.value_guided is None else load_value_learner(parsed.model)
    reward = None
    if parsed.reward:
        described = reward_settings_of(parsed.reward, parsed.settings, parsed.chat)
        reward = build_reward(described, policy_tokenizer=policy.tokenizer, device=policy.device)
    return answer(
        policy, prompts, settings, way, reward=reward, chat_template=parsed.chat,
        judge=" + ".join(parsed.reward) if parsed.reward else None,
        reference=load_policy(parsed.reference) if parsed.reference else None,
    )  # fmt: skip


def _scores(group: Any) -> dict[int, float]:
    from accord.records import Rating

    return {j.response: j.value for j in group.judgements if isinstance(j, Rating) and j.attribute == "reward"}
