"""Entropy with gradient is the plain sum over the vocabulary, however the positions are cut into chunks."""

from __future__ import annotations

import pytest
import torch
from models import build_model, build_policy, ragged_groups

from accord.policy.tokens import position_kl
from accord.policy.tokens.entropy import position_entropy
from accord.policy.tokens.position_kl import Readout


def plain(logits_NV: torch.Tensor) -> torch.Tensor:
    probability_NV = logits_NV.softmax(-1)
    return -(probability_NV * probability_NV.log()).sum(-1)


def readout(kind: str, n: int = 23) -> tuple[Readout, list[torch.Tensor]]:
    """What a model says at n positions and the leaves of it; the vocabulary has 13 entries."""
    draw = torch.Generator().manual_seed(3)
    shapes = [(n, 13)] if kind == "logits" else [(n, 5), (13, 5), (13,)]
    leaves = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    if kind == "logits":
        return Readout(logits_NV=leaves[0]), leaves
    return Readout(hidden_NH=leaves[0], weight_VH=leaves[1], bias_V=leaves[2]), leaves


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("kind", ["logits", "linear"])
def test_value_and_gradient_are_the_plain_ones(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(position_kl, "CHUNK_BYTES", chunk * 4 * 13)
    said, leaves = readout(kind)
    assert len(said.chunks()) == -(-23 // chunk)
    weight_N = torch.linspace(-1, 2, 23, dtype=torch.float64)
    found_N = position_entropy(said)
    found = torch.autograd.grad((weight_N * found_N).sum(), leaves)
    logits_NV = leaves[0] if kind == "logits" else leaves[0] @ leaves[1].T + leaves[2]
    expected_N = plain(logits_NV)
    torch.testing.assert_close(found_N, expected_N, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        found, torch.autograd.grad((weight_N * expected_N).sum(), leaves), rtol=1e-10, atol=1e-12
    )


def test_the_ends_of_the_scale():
    """log V where all is equally likely; 0 where one token has all but e^-60 of the probability."""
    logits_NV = torch.zeros(2, 13, dtype=torch.float64)
    logits_NV[1, 4] = 60.0
    found_N = position_entropy(Readout(logits_NV=logits_NV))
    assert found_N[0].item() == pytest.approx(torch.tensor(13.0).log().item(), rel=1e-6)
    assert found_N[1].item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("name", ["llama", "phi", "cohere"])  # a plain head, one with a bias, one whose logits it makes
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_of_a_policy_it_is_that_of_its_own_logits(name: str, temperature: float):
    policy, groups = build_policy(name), ragged_groups((2, 3), longest=9)
    policy.temperature = temperature
    model, expected = build_model(name), []
    for group in groups:
        for response in group.responses:
            logits_LV = model(torch.tensor([group.prompt_ids + response.ids]), use_cache=False).logits[0]
            first = len(group.prompt_ids) - 1
            expected.append(plain(logits_LV[first : first + len(response.ids)] / temperature))
    scores = policy(groups, with_entropy=True)
    assert scores.entropy_N is not None
    torch.testing.assert_close(scores.entropy_N, torch.cat(expected), rtol=1e-9, atol=1e-9)
    scores.entropy_N.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_it_does_not_depend_on_the_batch_nor_the_layout():
    policy, groups = build_policy(), ragged_groups((2, 4, 1), longest=9)
    together = policy(groups, with_entropy=True).entropy_N
    alone = [policy([group], with_entropy=True).entropy_N for group in groups]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert policy.layout == "tree"
    torch.testing.assert_close(
        together, policy(groups, with_entropy=True, layout="plain").entropy_N, rtol=1e-9, atol=1e-9
    )


def test_nothing_is_made_of_nothing():
    assert position_entropy(Readout(logits_NV=torch.zeros(0, 13))).shape == (0,)
