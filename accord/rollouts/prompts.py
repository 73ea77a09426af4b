"""Prompts of a run that samples: read, encoded, those too long set aside, a share held out."""

from __future__ import annotations

from accord.config import AlignConfig
from accord.data import encode_prompts
from accord.data.split import split_held_out
from accord.data.tokens import TokenGroup
from accord.errors import DataError
from accord.policy.policy import Policy
from accord.records import Group
from accord.run.data import DataFacts, RunData, rendering


def encode_run_prompts(
    config: AlignConfig, data: RunData, policy: Policy
) -> tuple[list[TokenGroup], list[TokenGroup], DataFacts]:
    """Return the prompts to sample on, those held out, and the data report; responses in the file are left out.

    Raises DataError when no prompt leaves room for a response in the model's window or in data.max_tokens, and for a
    replay of responses that nobody sampled.
    """
    if config.source == "replay":
        _check_recorded(data.train)
    train, num_long = _encode(config, data.train, policy)
    if not train:
        raise DataError(
            f"none of {len(data.train)} prompts leaves room for a response of rollout.max_tokens="
            f"{config.rollout.max_tokens} — set it smaller, or a larger data.max_tokens where the model allows it"
        )
    if data.held_out is not None:
        held_out, _ = _encode(config, data.held_out, policy)
    elif config.source == "replay":
        held_out = []  # what was recorded is there to be trained on, in its order
    else:
        train, held_out = split_held_out(train, config.data.eval_fraction, seed=config.train.seed)
    lengths = sorted(len(group.prompt_ids) for group in train)
    facts = {
        **data.facts(0), "prompts": len(train), "held_out_prompts": len(held_out), "too_long": num_long,
        "prompt_tokens_median": lengths[len(lengths) // 2], "prompt_tokens_longest": lengths[-1],
        "repeated": len(train) - len({group.prompt_ids for group in train}),
    }  # fmt: skip
    text = "\n".join(
        (
            "Prompts",
            f"  to sample on           {len(train)} ({facts['repeated']} repeated), {len(held_out)} held out",
            f"  left out               {num_long} too long for a response of {config.rollout.max_tokens} tokens",
            f"  tokens                 {facts['prompt_tokens_median']} (median), {lengths[-1]} (longest)",
        )
    )
    return train, held_out, DataFacts(text, facts)


def _encode(config: AlignConfig, groups: list[Group], policy: Policy) -> tuple[list[TokenGroup], int]:
    limit = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    room = min((n for n in (config.data.max_tokens, limit) if isinstance(n, int)), default=None)
    options = {key: value for key, value in rendering(config).items() if key in ("add_bos", "chat_template")}
    encoded = [
        TokenGroup(prompt_ids=ids, responses=(), index=index, source=group)
        for index, (group, ids) in enumerate(
            zip(groups, encode_prompts(groups, policy.tokenizer, **options), strict=True)
        )
    ]
    fitting = [g for g in encoded if room is None or len(g.prompt_ids) + longest_response(config, g) <= room]
    return fitting, len(encoded) - len(fitting)


def longest_response(config: AlignConfig, group: TokenGroup) -> int:
    """Return how many tokens a response may have; in a replay, how many the longest recorded one has."""
    if config.source != "replay" or group.source is None:
        return config.rollout.max_tokens
    return max(len(response.token_ids or ()) for response in group.source.responses)


def _check_recorded(groups: list[Group]) -> None:
    for group in groups:
        if any(response.token_ids is None for response in group.responses):
            raise DataError(
                f"{group.origin or 'a group'}: a response has no token ids — source=replay takes recorded rollouts, "
                "such as the folder rollouts/ of a run; to train on other judged responses, set source=file"
            )
