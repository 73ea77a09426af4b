"""Claims about one model: that scoring, sampling, the template and the tokenizer agree with each other on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.claims import Claim
from accord.data import encode_groups, encode_prompts
from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import DataError
from accord.policy.check import check_layout, probe_groups
from accord.policy.policy import Policy
from accord.policy.sampling import NoSampler, SamplingSettings, sample_responses, stop_ids, trained_ends
from accord.records import Comparison, Group, Message, Response


def model_claims(policy: Policy) -> list[Claim]:
    """Check a model: layouts agree, log-probabilities are its own, sampler = scorer, template and EOS are trained.

    A model that must run on the plain path passes, with the reason as the note.
    """
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    groups = probe_groups(vocabulary, num_responses=(1, 2, 5), length=_probe_length(policy))
    claims = [*_layout_claims(policy, groups), _own_logits_claim(policy, groups), *_template_claims(policy)]
    return [*claims, _sampler_claim(policy, groups[0].prompt_ids)]


def _probe_length(policy: Policy) -> int:
    """Long enough to show a sliding window where there is a short one."""
    config = policy.causal_lm.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    limit = (getattr(config, "max_position_embeddings", None) or 2048) // 2
    return max(4, min(limit, window + 8 if 0 < window <= 512 else 32))


def _layout_claims(policy: Policy, groups: Sequence[TokenGroup]) -> Iterator[Claim]:
    found = check_layout(policy, groups, gradients=True) if policy.why_plain is None else None
    if found is not None and found.reason is not None:
        policy.fall_back_to_plain(found.reason)
    if found is None or found.reason is not None:
        yield Claim.equal(
            "layout: scored on the plain path", expected=0, reached=0, tolerance=0, note=policy.why_plain or ""
        )  # fmt: skip
        return
    yield Claim.equal(
        f"layout: tree = plain, log-probability per token ({found.measure} gap, nats)",
        expected=0, reached=found.gap_logps, tolerance=found.tolerance_logps,
    )  # fmt: skip
    yield Claim.equal(
        "layout: tree = plain, gradient (relative gap)",
        expected=0, reached=found.gap_gradient or 0.0, tolerance=found.tolerance_gradient,
    )  # fmt: skip


@torch.no_grad()
def _own_logits_claim(policy: Policy, groups: Sequence[TokenGroup]) -> Claim:
    """Compare scores with the model's own logits, one sequence at a time, no layout of ours between."""
    scored = policy.score(groups)
    ours = scored.logps_PK.cpu().double()[scored.is_valid_PK.cpu()]
    with policy.attention("plain"):
        own = [_own_logp(policy, group, response) for group in groups for response in group.responses]
    gap = float(((ours - torch.stack(own)).abs() / scored.num_tokens_PK[scored.is_valid_PK].cpu()).max())
    low = next(policy.parameters()).dtype not in (torch.float32, torch.float64) or policy.autocast is not None
    return Claim.equal(
        "score = the model's own logits, per token (largest gap, nats)",
        expected=0, reached=gap, tolerance=5e-2 if low else 5e-4,
    )  # fmt: skip


def _own_logp(policy: Policy, group: TokenGroup, response: TokenResponse) -> Tensor:
    ids = torch.tensor([[*group.prompt_ids, *response.ids]], device=policy.device)
    logits = policy.causal_lm(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1]
    logps = F.log_softmax(logits.cpu().double(), dim=-1)  # not every device has float64
    return logps.gather(-1, ids[0, len(group.prompt_ids) :, None].cpu()).sum()


_CONVERSATION = Group(
    prompt=(Message(role="user", content="Name two colours."),),
    responses=(
        Response(content=(Message(role="assistant", content="Red and blue."),)),
        Response(content=(Message(role="assistant", content="I cannot."),)),
    ),
    judgements=(Comparison(better=0, worse=1),),
    origin="the certificate's own conversation",
)


def _template_claims(policy: Policy) -> Iterator[Claim]:
    """A conversation through the template: the end is trained, and prompts are sampled from as they are trained on."""
    name = "template: the end of each response is trained (share)"
    try:
        encoded = encode_groups([_CONVERSATION], policy.tokenizer, on_identical="keep")
    except DataError as error:
        yield Claim.equal(name, expected=1, reached=0, tolerance=0, note=str(error))
        return
    (group,) = encoded.groups
    ends = [
        response.has_eos and (response.is_trained is None or response.is_trained[-1]) for response in group.responses
    ]
    yield Claim.equal(
        name,
        expected=1, reached=sum(ends) / len(ends), tolerance=0, note=f"template: {encoded.template or 'none needed'}",
    )  # fmt: skip
    yield Claim.equal(
        "template: trained ends that the sampler does not stop at",
        expected=0, reached=len(trained_ends([group]) - stop_ids(policy)), tolerance=0,
    )  # fmt: skip
    (prompt,) = encode_prompts([_CONVERSATION], policy.tokenizer)
    differing = sum(a != b for a, b in zip(prompt, group.prompt_ids, strict=False)) + abs(
        len(prompt) - len(group.prompt_ids)
    )
    yield Claim.equal("template: prompt ids when sampling = when training", expected=0, reached=differing, tolerance=0)


def _sampler_claim(policy: Policy, prompt: tuple[int, ...]) -> Claim:
    """At temperature 1 the sampler's log-probabilities are the scorer's."""
    name = "sampler = scorer, log-probability per token (largest gap, nats)"
    try:
        (drawn,) = sample_responses(policy, [prompt], SamplingSettings(num_responses=4, max_tokens=16))
    except NoSampler as error:
        return Claim.equal(name, expected=0, reached=0, tolerance=0, note=f"not sampled from here: {error}")
    responses = tuple(TokenResponse(ids=response.token_ids or ()) for response in drawn)
    with torch.no_grad():
        scored = policy.score([TokenGroup(prompt_ids=prompt, responses=responses)]).token_logps_N.cpu().double()
    behaviour = torch.tensor([logp for response in drawn for logp in response.behaviour_logps or ()]).double()
    low = next(policy.parameters()).dtype not in (torch.float32, torch.float64) or policy.autocast is not None
    return Claim.equal(
        name,
        expected=0, reached=float((scored - behaviour).abs().max()), tolerance=0.2 if low else 5e-4,
    )  # fmt: skip
