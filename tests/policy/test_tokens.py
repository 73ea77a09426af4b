"""Responses token by token: their record, position KL, edits, critical tokens, and the reference's own numbers."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build_model, build_policy, own_token_logps, ragged_groups

from accord.data.tokens import TokenGroup, TokenResponse
from accord.groups import ScoredTokens
from accord.policy.load import silence_dropout
from accord.policy.moving_reference import MovingReference, UpdateRule
from accord.policy.policy import Policy
from accord.policy.reference import Reference, opened
from accord.policy.tokens.critical import contrastive_estimate, with_critical
from accord.policy.tokens.edits import kept_tokens
from accord.policy.tokens.position_kl import Readout, position_kl
from accord.policy.tokens.scored import to_scored_tokens, with_edits
from accord.records import Comparison, Ranking

GROUPS = (1, 3, 2)


def with_turns(groups: list[TokenGroup]) -> list[TokenGroup]:
    """The same groups, every third token of a longer response not trained."""
    return [
        replace(
            group,
            responses=tuple(
                replace(r, is_trained=tuple(t % 3 != 1 for t in range(len(r.ids)))) if len(r.ids) > 3 else r
                for r in group.responses
            ),
        )
        for group in groups
    ]


def reference_at(policy: Policy, folder: Path | None, *, max_tokens: int = 10_000) -> Reference:
    return Reference(lambda: opened(policy), key="key", cache_folder=folder, max_tokens=max_tokens, level="token")


# The record ----------------------------------------------------------------------------------------------------------


def test_tokens_lie_where_they_belong_and_sum_to_their_response() -> None:
    policy, groups = build_policy(), with_turns(ragged_groups(GROUPS))
    scores = policy.score(groups, statistics=["log_sum_sq"])
    tokens = to_scored_tokens(groups, scores, scores.token_logps_N.detach())
    torch.testing.assert_close(tokens.policy_logps_PKT.sum(dim=2), scores.logps_PK)
    assert torch.equal(tokens.is_trained_PKT.sum(dim=2), scores.num_tokens_PK)
    flat = iter(range(len(scores.token_logps_N)))
    for p, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            for t in range(len(response.ids)):
                n, is_trained = next(flat), response.is_trained is None or response.is_trained[t]
                assert bool(tokens.is_trained_PKT[p, k, t]) == is_trained
                for found, given in (
                    (tokens.policy_logps_PKT, scores.token_logps_N),
                    (tokens.reference_logps_PKT, scores.token_logps_N),
                    (tokens.log_sum_sq_PKT, scores.statistics["log_sum_sq"]),
                ):
                    assert found is not None
                    assert found[p, k, t].item() == (given[n].item() if is_trained else 0.0)
            assert not tokens.is_trained_PKT[p, k, len(response.ids) :].any()
    (gradient,) = torch.autograd.grad(tokens.policy_logps_PKT.sum(), scores.token_logps_N)
    assert torch.equal(gradient > 0, scores.is_trained_N)


def test_log_sum_sq_is_that_of_the_model_s_own_distribution() -> None:
    policy, (group,) = build_policy(), ragged_groups((1,))
    response = group.responses[0]
    scores = policy.score([group], statistics=["log_sum_sq"])
    whole = torch.tensor([group.prompt_ids + response.ids])
    logps_LV = policy.causal_lm(whole, use_cache=False).logits[0].log_softmax(-1)
    own = (logps_LV.exp() ** 2).sum(-1).log()[len(group.prompt_ids) - 1 : -1]
    torch.testing.assert_close(scores.statistics["log_sum_sq"], own.detach())


def test_what_came_with_the_data_is_one_where_nothing_came() -> None:
    policy = build_policy()
    responses = (TokenResponse(ids=(2, 3), weights=(0.5, 0.0)), TokenResponse(ids=(4, 5, 6)))
    group = TokenGroup(prompt_ids=(7,), responses=responses)
    tokens = to_scored_tokens([group], policy.score([group]))
    assert tokens.weight_PKT is not None
    assert tokens.weight_PKT.tolist() == [[[0.5, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    assert (tokens.is_kept_PKT, tokens.critical_PKT, tokens.log_sum_sq_PKT) == (None, None, None)


def test_empty_responses_have_no_tokens() -> None:
    policy = build_policy()
    group = TokenGroup(prompt_ids=(7, 8), responses=(TokenResponse(ids=()), TokenResponse(ids=(4, 5))))
    tokens: ScoredTokens = to_scored_tokens([group], policy.score([group]))
    assert tokens.is_trained_PKT.tolist() == [[[False, False], [True, True]]]


# Position KL ---------------------------------------------------------------------------------------------------------


def own_kl(policy: Policy, other: Policy, groups: list[TokenGroup]) -> torch.Tensor:
    """KL(π_ref ‖ π) by the models' own passes, one unpadded sequence at a time, and the textbook sum."""
    found = []
    for group in groups:
        for response in group.responses:
            whole = torch.tensor([group.prompt_ids + response.ids])
            places = slice(len(group.prompt_ids) - 1, whole.shape[1] - 1)
            p, q = (
                model.causal_lm(whole, use_cache=False).logits[0, places].log_softmax(-1) for model in (policy, other)
            )
            found.append((q.exp() * (q - p)).sum(-1))
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "phi", "granite", "gemma2"])
@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_position_kl_and_its_gradient_are_the_textbook_s(name: str, layout: str) -> None:
    """Heads with and without a bias, tied, scaled and soft-capped; float64."""
    policy, other, groups = build_policy(name), build_policy(name, seed=1), ragged_groups(GROUPS)
    if layout == "plain":
        policy.fall_back_to_plain("asked for")
    kl_N = policy(groups, reference=other.readout_of(groups)).position_kl_N
    expected_N = own_kl(policy, other, groups)
    rounding = {"rtol": 1e-5, "atol": 1e-6}  # transformers keeps rotary angles and norms in float32
    torch.testing.assert_close(kl_N, expected_N, **rounding)
    assert (kl_N > 0).all()
    trained = [p for p in policy.parameters() if p.requires_grad]
    weights_N = torch.linspace(-1, 2, len(kl_N), dtype=kl_N.dtype)
    found, expected = (
        torch.autograd.grad((weights_N * value).sum(), trained, allow_unused=True) for value in (kl_N, expected_N)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, **rounding)


@pytest.mark.parametrize("num_chunk_tokens", [1, 3, None])
@pytest.mark.parametrize("is_linear", [True, False])
def test_position_kl_passes_gradcheck_in_any_chunks(num_chunk_tokens: int | None, is_linear: bool) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (7, 3), (7,)))
    reference = Readout(logits_NV=torch.randn(5, 7, dtype=torch.float64))

    def kl(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if is_linear:
            return position_kl(
                Readout(hidden_NH=hidden, weight_VH=weight, bias_V=bias), reference, num_chunk_tokens=num_chunk_tokens
            )
        return position_kl(Readout(logits_NV=hidden @ weight.T + bias), reference, num_chunk_tokens=num_chunk_tokens)

    assert torch.autograd.gradcheck(kl, tuple(x.requires_grad_() for x in (hidden, weight, bias)))


def test_position_kl_of_one_model_with_itself_is_zero_and_flat() -> None:
    policy, groups = build_policy(), ragged_groups(GROUPS)
    kl_N = policy(groups, reference=policy.readout_of(groups)).position_kl_N
    assert kl_N.abs().max().item() < 1e-12
    head = policy.causal_lm.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(kl_N.sum(), head)
    assert gradient.abs().max().item() < 1e-12


def test_tokens_that_both_models_forbid_are_left_out() -> None:
    ours, theirs = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.5, 0.0, -torch.inf]])
    kl = position_kl(Readout(logits_NV=ours), Readout(logits_NV=theirs))
    p, q = ours[0, :2].log_softmax(0), theirs[0, :2].log_softmax(0)
    assert kl.item() == pytest.approx((q.exp() * (q - p)).sum().item())


def test_a_reference_that_moves_is_read_where_it_was_put() -> None:
    """The readout outlives the block in which the policy's parameters pointed at the reference's values."""
    policy, groups = build_policy(), ragged_groups(GROUPS)
    start = build_model("llama", seed=3)
    moving = MovingReference(
        policy, UpdateRule(every=1, share=1.0), max_tokens=10_000, start=dict(start.named_parameters()), level="token"
    )
    other = Policy(start, policy.tokenizer)
    kl_N = policy(groups, reference=moving.readout(groups)).position_kl_N
    torch.testing.assert_close(kl_N, own_kl(policy, other, groups))
    expected_N = own_token_logps(start, groups)
    torch.testing.assert_close(moving.token_logps(groups, kl_N), expected_N.detach())
    moving.follow(1)
    assert policy(groups, reference=moving.readout(groups)).position_kl_N.abs().max().item() < 1e-12
    torch.testing.assert_close(moving.token_logps(groups, kl_N), own_token_logps(policy.causal_lm, groups).detach())


# The reference's numbers per token -----------------------------------------------------------------------------------


def test_the_reference_keeps_numbers_per_token_on_disk(tmp_path: Path) -> None:
    policy, groups = build_policy(), with_turns(ragged_groups(GROUPS))
    like_N, like_PK = torch.zeros(1, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    first = reference_at(policy, tmp_path, max_tokens=30)  # several passes
    first.fill(groups, write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["key.tokens.npz"]
    with torch.no_grad():
        direct = policy.score(groups)
    torch.testing.assert_close(first.token_logps(groups, like_N), direct.token_logps_N, rtol=0, atol=1e-9)
    torch.testing.assert_close(first.logps(groups, like_PK), direct.logps_PK, rtol=0, atol=1e-9)
    second = reference_at(build_policy(seed=9), tmp_path)  # other weights: an answer from them would show
    assert second.missing(groups) == []
    assert torch.equal(second.token_logps(groups, like_N), first.token_logps(groups, like_N))
    assert torch.equal(second.logps(groups[::-1], like_PK), first.logps(groups[::-1], like_PK))


def test_passing_groups_are_not_kept() -> None:
    policy, groups = build_policy(), ragged_groups(GROUPS)
    reference = reference_at(policy, None)
    reference.token_logps(groups, torch.zeros(1), keep=False)
    assert reference.missing(groups) == groups


def test_the_file_of_sums_is_as_it_was(tmp_path: Path) -> None:
    """Caches of earlier releases are read, and written again in the same form."""
    policy, groups = build_policy(), ragged_groups((2,))
    sums = Reference(lambda: opened(policy), key="key", cache_folder=tmp_path, max_tokens=10_000)
    sums.fill(groups, write=True)
    with np.load(tmp_path / "key.npz") as stored:
        assert sorted(stored) == ["digests", "logps"]
        assert stored["logps"].shape == (2,)
        assert stored["logps"].dtype == np.float64
        assert stored["digests"].shape == (2, 16)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_of_tokens_is_computed_again(tmp_path: Path, share: float) -> None:
    policy, groups = build_policy(), ragged_groups((2, 3))
    reference_at(policy, tmp_path).fill(groups, write=True)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert reference_at(policy, tmp_path).missing(groups) == groups


# Edits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "kept_one", "kept_other"),
    [
        ("abc", "abc", "111", "111"),
        ("abc", "", "000", ""),
        ("abc", "axc", "101", "101"),  # substituted
        ("abc", "ac", "101", "11"),  # deleted
        ("ac", "abc", "11", "101"),  # inserted
        ("abcd", "xbcd", "0111", "0111"),  # at the beginning
        ("abab", "ab", "1100", "11"),  # of two equally good ones the earlier
        ("the cat sat", "the dog sat", "11110001111", "11110001111"),
    ],
)
def test_alignments(one: str, other: str, kept_one: str, kept_other: str) -> None:
    found = kept_tokens([ord(c) for c in one], [ord(c) for c in other])
    assert ["".join("01"[flag] for flag in side) for side in found] == [kept_one, kept_other]


def best_score(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The score of the best alignment, by trying every set of paired places: +1 equal, −1 unequal, −1 per gap."""
    best = -len(one) - len(other)
    for size in range(1, min(len(one), len(other)) + 1):
        for places in itertools.combinations(range(len(one)), size):
            for partners in itertools.combinations(range(len(other)), size):
                equal = sum(one[i] == other[j] for i, j in zip(places, partners, strict=True))
                best = max(best, equal - (size - equal) - (len(one) - size) - (len(other) - size))
    return best


def test_alignments_are_the_best_there_are() -> None:
    """What is kept is a common subsequence; the stretches between cost the longer of their two sides."""
    rng = random.Random(0)
    for _ in range(150):
        one, other = (tuple(rng.randrange(3) for _ in range(rng.randrange(6))) for _ in range(2))
        kept_one, kept_other = kept_tokens(one, other)
        assert [t for t, k in zip(one, kept_one, strict=True) if k] == [
            t for t, k in zip(other, kept_other, strict=True) if k
        ]
        i, j = ([-1, *(place for place, flag in enumerate(kept) if flag), len(kept)] for kept in (kept_one, kept_other))
        gaps = sum(
            max(b - a, d - c) - 1 for (a, b), (c, d) in zip(itertools.pairwise(i), itertools.pairwise(j), strict=True)
        )
        assert len(i) - 2 - gaps == best_score(one, other)


def test_a_token_is_kept_where_every_compared_response_shares_it() -> None:
    responses = tuple(TokenResponse(ids=ids) for ids in ((2, 3, 4), (2, 5, 4), (2, 3, 6), (9,)))
    group = TokenGroup(prompt_ids=(1,), responses=responses, judgements=(Comparison(better=0, worse=1),))
    (found,) = with_edits([group])
    assert [r.is_kept for r in found.responses] == [
        (True, False, True), (True, False, True), (True, True, True), (True,),
    ]  # fmt: skip
    (ranked,) = with_edits([replace(group, judgements=(Ranking(order=((0,), (1,), (2,))),))])
    assert [r.is_kept for r in ranked.responses[:3]] == [
        (True, False, False),
        (True, False, False),
        (True, False, False),
    ]


# Critical tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_the_contrastive_estimate_is_the_softmax_of_the_contrast(layout: str) -> None:
    positive, negative, groups = build_policy(seed=1), build_policy(seed=2), ragged_groups(GROUPS)
    if layout == "plain":
        negative.fall_back_to_plain("asked for")
    found = with_critical(groups, positive, negative, contrast=0.5, max_tokens=40)
    for group, marked in zip(groups, found, strict=True):
        for response, with_marks in zip(group.responses, marked.responses, strict=True):
            whole = torch.tensor([group.prompt_ids + response.ids])
            right, wrong = (m.causal_lm(whole, use_cache=False).logits[0].log_softmax(-1) for m in (positive, negative))
            start = len(group.prompt_ids) - 1
            expected = (1.5 * right - 0.5 * wrong).softmax(-1)[range(start, whole.shape[1] - 1), response.ids]
            assert with_marks.critical == pytest.approx(expected.tolist(), rel=1e-9)
            assert (with_marks.ids, with_marks.is_trained) == (response.ids, response.is_trained)


def test_no_contrast_is_the_probability_under_the_first_model() -> None:
    policy, groups = build_policy(), ragged_groups(GROUPS)
    targets = torch.tensor([token for group in groups for r in group.responses for token in r.ids])
    readout = policy.readout_of(groups)
    found = contrastive_estimate(readout, build_policy(seed=4).readout_of(groups), targets, contrast=0.0)
    torch.testing.assert_close(found, own_token_logps(policy.causal_lm, groups).exp().detach())


def test_a_token_forbidden_to_both_models_is_critical() -> None:
    logits = Readout(logits_NV=torch.tensor([[0.0, -torch.inf]]))
    assert contrastive_estimate(logits, logits, torch.tensor([1]), contrast=1.0).tolist() == [0.0]


def test_dropout_is_off_in_a_readout() -> None:
    """Two readouts of one policy agree bit for bit."""
    model = build_model("gpt2", resid_pdrop=0.5)
    silence_dropout(model)
    policy, groups = Policy(model.train(), build_policy("gpt2").tokenizer), ragged_groups((2,))
    one, other = policy.readout_of(groups), policy.readout_of(groups)
    assert one.hidden_NH is not None
    assert other.hidden_NH is not None
    assert torch.equal(one.hidden_NH, other.hidden_NH)
