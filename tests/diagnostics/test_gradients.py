"""The geometry of a pair against autograd, and its prediction against a real small step."""

import pytest
import torch

from accord.diagnostics.gradients import pair_geometry
from accord.groups import groups_from_pairs
from accord.objectives import OBJECTIVES

V, H = 11, 5


def make_pair(seed: int = 0, num_better: int = 4, num_worse: int = 6):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def ids(count):
        return torch.randint(V, (count,), generator=generator)

    return draw(num_better, H), draw(num_worse, H), ids(num_better), ids(num_worse), draw(V, H), draw(V)


def logp(hidden, ids, weight, bias):
    return (hidden @ weight.T + bias).log_softmax(-1).gather(-1, ids[:, None]).sum()


def test_inner_products_are_those_of_autograd():
    h_w, h_l, ids_w, ids_l, weight, bias = make_pair()
    weight.requires_grad_()
    (g_w,) = torch.autograd.grad(logp(h_w, ids_w, weight, bias), weight)
    (g_l,) = torch.autograd.grad(logp(h_l, ids_l, weight, bias), weight)
    found = pair_geometry(h_w, h_l, ids_w, ids_l, weight.detach(), bias)
    assert found.dot == pytest.approx(float((g_w * g_l).sum()), rel=1e-5)
    assert found.better_norm_sq == pytest.approx(float((g_w * g_w).sum()), rel=1e-5)
    assert found.worse_norm_sq == pytest.approx(float((g_l * g_l).sum()), rel=1e-5)
    expected = torch.nn.functional.cosine_similarity(g_w.flatten(), g_l.flatten(), dim=0)
    assert found.cosine == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["dpo", "simpo", "ipo"])
def test_the_first_order_change_is_what_a_small_step_does(name):
    h_w, h_l, ids_w, ids_l, weight, bias = make_pair(seed=1)
    weight.requires_grad_()
    logps = torch.stack([logp(h_w, ids_w, weight, bias), logp(h_l, ids_l, weight, bias)])
    pair = groups_from_pairs(
        logps[None], reference_logps_P2=logps.detach()[None] - 0.3, num_tokens_P2=torch.tensor([[4, 6]])
    )
    loss = OBJECTIVES[name].fn(pair).loss_P.sum()
    by_logps, by_weight = torch.autograd.grad(loss, [logps, weight])
    d_w, d_l = -by_logps[0].item(), by_logps[1].item()
    geometry = pair_geometry(h_w, h_l, ids_w, ids_l, weight.detach(), bias)
    rate = 1e-6
    with torch.no_grad():
        after = weight - rate * by_weight
        moved = [
            (float(logp(h, ids, after, bias)) - float(before)) / rate
            for h, ids, before in ((h_w, ids_w, logps[0]), (h_l, ids_l, logps[1]))
        ]
    assert geometry.better_change(d_w, d_l) == pytest.approx(moved[0], rel=1e-3)
    assert geometry.worse_change(d_w, d_l) == pytest.approx(moved[1], rel=1e-3)


def test_equal_responses_push_nowhere_and_only_one_side_can_go_wrong():
    h_w, _, ids_w, _, weight, bias = make_pair(seed=2)
    same = pair_geometry(h_w, h_w, ids_w, ids_w, weight, bias)
    assert same.cosine == pytest.approx(1.0)
    assert same.better_change(0.5, 0.5) == pytest.approx(0.0, abs=1e-6)
    for seed in range(20):
        found = pair_geometry(*make_pair(seed))
        assert not (found.better_change(1.0, 1.0) < 0 < found.worse_change(1.0, 1.0))


def test_ches_is_large_where_the_hidden_sums_agree():
    h_w, _, ids_w, _, weight, bias = make_pair(seed=3)
    towards = pair_geometry(h_w, 2 * h_w, ids_w, ids_w, weight, bias)
    away = pair_geometry(h_w, -h_w, ids_w, ids_w, weight, bias)
    total = float(h_w.sum(0) @ h_w.sum(0))
    assert towards.ches == pytest.approx(2 * total - total)
    assert away.ches == pytest.approx(-2 * total)
    assert towards.ches_normalised == pytest.approx(total / 16)
