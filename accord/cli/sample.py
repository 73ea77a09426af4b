"""`accord sample`: answer prompts."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from accord.cli.command import add_command


def add_commands(commands: Any) -> None:
    """Add `sample`."""
    sample = add_command(commands, "sample", _sample, "answer prompts with a model")
    sample.add_argument("--model", required=True)
    sample.add_argument("--prompts", help="file of prompts; without it, each line of standard input is one")
    sample.add_argument("--num-responses", type=int, default=1, metavar="K")
    sample.add_argument("--max-tokens", type=int, default=128)
    sample.add_argument("--temperature", type=float, default=1.0, help="0 = greedy")
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--chat", default="auto", help="chat template for the prompts (auto, own, transcript, a file)")
    sample.add_argument("--out", help="write groups here (.jsonl or .parquet) instead of printing")


def _sample(parsed: argparse.Namespace) -> int:
    from accord.data import group_to_row, load_groups, write_groups
    from accord.terminal import quiet_libraries

    quiet_libraries()
    from accord.policy.load import load_policy

    if parsed.prompts:
        prompts = load_groups(parsed.prompts).groups
    else:
        prompts = [line.strip() for line in sys.stdin if line.strip()]
    answered = load_policy(parsed.model).sample(
        prompts, num_responses=parsed.num_responses, max_tokens=parsed.max_tokens, temperature=parsed.temperature,
        top_p=parsed.top_p, top_k=parsed.top_k, seed=parsed.seed, chat_template=parsed.chat,
    )  # fmt: skip
    if parsed.out:
        write_groups(parsed.out, answered)
    elif parsed.json:
        print(json.dumps([group_to_row(group) for group in answered], indent=2))
    else:
        for group in answered:
            print(f"> {group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content}")
            for response in group.responses:
                print(f"  {response.content}")
    return 0
