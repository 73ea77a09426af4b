"""`accord judge`: have a language model judge responses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.cli.command import add_command

if TYPE_CHECKING:
    from accord.endpoint import Endpoint
    from accord.feedback.judges import Chat, Judge


def add_commands(commands: Any) -> None:
    """Add `judge`."""
    judge = add_command(commands, "judge", _judge, "have a language model judge responses")
    judge.add_argument("--data", required=True, help="file of groups, or of any format Accord reads")
    judge.add_argument("--out", required=True, help="write the groups with their judgements here (.jsonl or .parquet)")
    judge.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible endpoint, usually ending in /v1")
    judge.add_argument("--model-name", metavar="NAME", help="the endpoint's model")
    judge.add_argument("--model", metavar="DIR", help="a local model instead of an endpoint")
    judge.add_argument("--kind", choices=("pairwise", "pointwise"), default="pairwise")
    judge.add_argument("--mode", choices=("verdict", "logprobs"), default="verdict", help="of pairwise judging")
    judge.add_argument("--prompt", help="name of a prompt (pairwise.v1, critique_then_score.v1, …) or a .jinja file")
    judge.add_argument("--rubric", default="", help="what alone to judge by")
    judge.add_argument("--reference-key", metavar="COLUMN", help="column that holds a correct answer to show the judge")
    judge.add_argument("--one-order", action="store_true", help="show each pair once instead of in both orders")
    judge.add_argument("--max-tokens", type=int, default=1024)
    judge.add_argument("--temperature", type=float, default=0.0)
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--api-key-variable", metavar="NAME", help="environment variable that holds the endpoint's key")
    judge.add_argument("--cache", metavar="DIR", help="answers of the endpoint are kept here (default: OUT.cache)")
    judge.add_argument("--max-concurrent", type=int, default=8)
    judge.add_argument("--prompt-price", type=float, help="per million tokens")
    judge.add_argument("--completion-price", type=float, help="per million tokens")


def _judge(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from accord.data import load_groups, write_groups
    from accord.durable import dump_json
    from accord.feedback.judges import with_judgements

    endpoint = _endpoint(parsed)
    try:
        groups = load_groups(parsed.data).groups
        judge = _choose(parsed, _chat(parsed, endpoint))
        judged = judge.judge(groups)
        usage = endpoint.usage if endpoint is not None else None
    finally:
        if endpoint is not None:
            endpoint.close()
    write_groups(parsed.out, with_judgements(groups, judged))
    reasons = [reason for found in judged for reason in found.unknown]
    result = {
        "judge": judge.name,
        "groups": len(groups),
        "judgements": sum(len(found.judgements) for found in judged),
        "unknown": len(reasons),
        "first_reason": reasons[0] if reasons else None,
        "usage": asdict(usage) if usage is not None else None,
        "out": parsed.out,
    }
    print(dump_json(result, indent=2) if parsed.json else _summary(result))
    return 0


def _endpoint(parsed: argparse.Namespace) -> Endpoint | None:
    from accord.endpoint import Endpoint, EndpointSettings
    from accord.errors import ConfigError

    if (parsed.endpoint is None) == (parsed.model is None):
        raise ConfigError("got both or neither of --endpoint and --model — expected one: whom should be asked?")
    if parsed.endpoint is None:
        return None
    if parsed.model_name is None:
        raise ConfigError("got --endpoint without --model-name — expected the name of a model the endpoint has")
    cache = Path(parsed.cache) if parsed.cache else Path(f"{parsed.out}.cache")
    return Endpoint(
        EndpointSettings(
            url=parsed.endpoint, model=parsed.model_name, api_key_variable=parsed.api_key_variable, cache_folder=cache,
            max_concurrent=parsed.max_concurrent, prompt_price=parsed.prompt_price,
            completion_price=parsed.completion_price,
        )
    )  # fmt: skip


def _chat(parsed: argparse.Namespace, endpoint: Endpoint | None) -> Chat:
    from accord.feedback.judges import EndpointChat, PolicyChat

    asked = {"temperature": parsed.temperature, "max_tokens": parsed.max_tokens, "seed": parsed.seed}
    if endpoint is not None:
        return EndpointChat(endpoint=endpoint, **asked)
    from accord.terminal import quiet_libraries

    quiet_libraries()
    from accord.policy.load import load_policy

    return PolicyChat(policy=load_policy(parsed.model), **asked)


def _choose(parsed: argparse.Namespace, chat: Chat) -> Judge:
    from accord.errors import ConfigError
    from accord.feedback.judges import PairwiseJudge, PointwiseJudge

    if parsed.kind == "pairwise":
        return PairwiseJudge(
            chat=chat, mode=parsed.mode, prompt=parsed.prompt, rubric=parsed.rubric, seed=parsed.seed,
            reference_key=parsed.reference_key, swap=not parsed.one_order,
        )  # fmt: skip
    if parsed.mode != "verdict" or parsed.one_order:
        raise ConfigError("got --mode or --one-order for --kind pointwise — they belong to pairwise: leave them out")
    return PointwiseJudge(
        chat=chat, prompt=parsed.prompt or "pointwise.v1", rubric=parsed.rubric, reference_key=parsed.reference_key
    )


def _summary(result: dict[str, Any]) -> str:
    found = f"{result['judgements']} judgements of {result['groups']} groups, {result['unknown']} unknown"
    lines = [f"{result['judge']}: {found}"]
    if result["first_reason"]:
        lines.append(f"  first unknown: {result['first_reason']}")
    if usage := result["usage"]:
        cost = (
            "unknown (give --prompt-price and --completion-price)" if usage["cost"] is None else f"{usage['cost']:.4f}"
        )
        lines.append(
            f"  {usage['num_requests']} requests and {usage['num_cached']} answers from the cache; "
            f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens; cost {cost}"
        )
    return "\n".join([*lines, f"  written to {result['out']}"])
