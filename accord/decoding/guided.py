"""A reward that steers while decoding: of several next blocks the best goes on. Blockwise best-of-K.

Source: Controlled Decoding, Mudgal et al. 2023, arXiv:2310.17022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.data import encode_prompts
from accord.data.policies import own_columns
from accord.decoding.cached import room_for
from accord.errors import ConfigError
from accord.feedback.findings import Reward
from accord.policy.policy import Policy
from accord.policy.sampling import SamplingSettings, sample_responses, stop_ids
from accord.records import FinishReason, Group, Response


def guided_answers(
    policy: Policy,
    groups: Sequence[Group],
    reward: Reward,
    settings: SamplingSettings,
    *,
    num_candidates: int = 4,
    block_tokens: int = 32,
    chat_template: str = "auto",
) -> list[Group]:
    """Return groups with the same prompts and one response each, chosen block by block.

    `num_candidates` blocks of `block_tokens` tokens are drawn after what stands so far; the one whose whole text the
    reward scores highest stays, until it ends or has `settings.max_tokens`. One block of all tokens is best-of-N. The
    reward sees unfinished text: a reward model does, a verifier of final answers learns nothing from it. Where no
    candidate has a known score, the first drawn goes on. `settings.num_responses` is not looked at.
    """
    if num_candidates < 1 or block_tokens < 1:
        raise ConfigError(f"got {num_candidates} candidates of {block_tokens} tokens — expected each at least 1")
    if settings.stop or settings.min_tokens:
        raise ConfigError("got stop or min_tokens for answers chosen block by block — expected neither")
    prompts = encode_prompts(groups, policy.tokenizer, chat_template=chat_template)
    ends = stop_ids(policy, chat_template)
    chosen: list[Response] = [Response(token_ids=(), content="") for _ in groups]
    rooms = [room_for(policy, prompt, settings.max_tokens) for prompt in prompts]
    open_places = list(range(len(groups)))
    for block, start in enumerate(range(0, settings.max_tokens, block_tokens)):
        if not open_places:
            break
        tokens = min(block_tokens, settings.max_tokens - start)
        drawn = sample_responses(
            policy, [(*prompts[place], *(chosen[place].token_ids or ())) for place in open_places],
            replace(settings, num_responses=num_candidates, max_tokens=tokens, seed=settings.seed + block),
            streams=open_places, chat_template=chat_template,
        )  # fmt: skip
        candidates = [
            replace(
                groups[place], judgements=(), extra=own_columns(groups[place]),
                responses=tuple(_joined(policy, chosen[place], block_of, ends) for block_of in blocks),
            )
            for place, blocks in zip(open_places, drawn, strict=True)
        ]  # fmt: skip
        for place, group, row in zip(open_places, candidates, reward(candidates), strict=True):
            known = [(-finding.score, number) for number, finding in enumerate(row) if finding.score is not None]
            chosen[place] = group.responses[min(known)[1] if known else 0]
        open_places = [
            place
            for place in open_places
            if chosen[place].finish_reason is not FinishReason.STOP
            and len(chosen[place].token_ids or ()) < rooms[place]
        ]
    return [
        replace(group, responses=(response,), judgements=(), extra=own_columns(group))
        for group, response in zip(groups, chosen, strict=True)
    ]


def _joined(policy: Policy, before: Response, block: Response, ends: frozenset[int]) -> Response:
    ids = (*(before.token_ids or ()), *(block.token_ids or ()))
    has_stopped = bool(ids) and ids[-1] in ends
    text = policy.tokenizer.decode(list(ids[:-1] if has_stopped else ids), skip_special_tokens=True)
    logps = (*(before.behaviour_logps or ()), *(block.behaviour_logps or ()))
    return replace(block, content=str(text), token_ids=ids, behaviour_logps=logps)
