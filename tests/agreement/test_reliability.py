"""Reliability of judges from votes alone: a published example, maxima of the likelihoods, planted truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from accord.agreement.reliability import DawidSkene, dawid_skene, repo_reliability

# Dawid and Skene 1979, table 1: 45 patients, what observer 1 said three times, and observers 2 to 5 once
ANAESTHETISTS = (
    "1111111", "3334334", "1122122", "2223121", "2223222", "2223322", "1222111", "3333433", "2222223", "2322223",
    "4444444", "2223343", "1111111", "2223212", "1211111", "1112111", "1111111", "1111111", "2222221", "2221322",
    "2222222", "2222221", "2223222", "2212222", "1111111", "1111111", "2322222", "1111111", "1111111", "1121121",
    "1111111", "3333233", "1111111", "2222222", "2223232", "4334343", "2212232", "2323233", "3333432", "1111111",
    "1111111", "1212111", "2322222", "1211111", "2222222",
)  # fmt: skip


def anaesthetists() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return patient, observer and class of every judgement."""
    rows = [
        (patient, max(place - 2, 0), int(said) - 1)
        for patient, line in enumerate(ANAESTHETISTS)
        for place, said in enumerate(line)
    ]
    item, judge, value = np.array(rows).T
    return item, judge, value


def test_dawid_skene_published() -> None:
    """The paper's estimates: classes .40 .42 .11 .07."""
    item, judge, value = anaesthetists()
    assert len(item) == 45 * 7
    found = dawid_skene(item, judge, value, num_values=4)
    np.testing.assert_allclose(found.prior_V, [0.40, 0.42, 0.11, 0.07], atol=0.005)
    np.testing.assert_allclose(found.confusion_JVV.sum(axis=2), 1.0)
    np.testing.assert_allclose(found.truth_VI.sum(axis=0), 1.0)


def log_likelihood(item, judge, value, prior_V, confusion_JVV) -> float:
    """Return the log-likelihood by its definition, item by item."""
    total = 0.0
    for number in range(item.max() + 1):
        mine = item == number
        total += np.log(
            sum(prior_V[true] * np.prod(confusion_JVV[judge[mine], true, value[mine]]) for true in range(len(prior_V)))
        )
    return float(total)


def test_dawid_skene_is_a_maximum_of_the_likelihood() -> None:
    item, judge, value = anaesthetists()
    found = dawid_skene(item, judge, value, num_values=4, tolerance=1e-13, max_steps=5000)
    best = log_likelihood(item, judge, value, found.prior_V, found.confusion_JVV)
    assert found.log_likelihood == pytest.approx(best)
    generator = np.random.default_rng(0)
    for _ in range(30):
        other_VV = generator.dirichlet(np.ones(4), size=(5, 4))
        moved = 0.99 * found.confusion_JVV + 0.01 * other_VV
        prior = 0.99 * found.prior_V + 0.01 * generator.dirichlet(np.ones(4))
        assert log_likelihood(item, judge, value, prior, moved) < best


def votes(reliability: list[float], *, num_items: int, share: float, seed: int):
    """Return votes of judges who are right so often, about items that each judges with a probability."""
    generator = np.random.default_rng(seed)
    truth_I = generator.choice([-1.0, 1.0], size=num_items)
    rows = [
        (i, j, truth_I[i] * (1 if generator.random() < right else -1))
        for i in range(num_items)
        for j, right in enumerate(reliability)
        if generator.random() < share
    ]
    item, judge, vote = np.array(rows).T
    return item.astype(int), judge.astype(int), vote


def test_planted_reliabilities_are_found() -> None:
    """Sampling error of a share of 1800 votes is at most √(¼/1800) = 0.012; four of them."""
    planted = [0.95, 0.85, 0.7, 0.5, 0.2]
    item, judge, vote = votes(planted, num_items=3000, share=0.6, seed=1)
    np.testing.assert_allclose(repo_reliability(item, judge, vote), planted, atol=0.05)
    np.testing.assert_allclose(
        dawid_skene(item, judge, (vote > 0).astype(int), num_values=2).reliability_J, planted, atol=0.05
    )


def test_repo_without_a_policy_maximises_the_one_coin_likelihood() -> None:
    """−log Π_i ½ (Π η^right (1 − η)^wrong if the truth is + … plus if it is −), by another optimiser."""
    item, judge, vote = votes([0.9, 0.8, 0.65, 0.4], num_items=150, share=0.8, seed=2)

    def loss(logit_J: np.ndarray) -> float:
        signed_I = np.bincount(item, weights=vote * logit_J[judge], minlength=150) / 2
        wrong = np.logaddexp(0, -np.abs(logit_J)) + np.abs(logit_J) / 2  # −log √(η (1 − η))
        return float(wrong[judge].sum() - np.logaddexp(signed_I, -signed_I).sum())

    start_J = np.full(4, np.log(0.9 / 0.1))
    best_J = minimize(loss, start_J, method="BFGS", options={"gtol": 1e-8}).x
    found_J = repo_reliability(item, judge, vote, tolerance=1e-13, max_steps=20_000)
    np.testing.assert_allclose(found_J, 1 / (1 + np.exp(-best_J)), atol=1e-4)


def test_two_against_one_by_hand() -> None:
    """One step from 0.9: the two who agree are right with σ(2a − a), a = logit 0.9, the third with σ(−(2a − a))."""
    item, judge, vote = np.zeros(3, dtype=int), np.arange(3), np.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(repo_reliability(item, judge, vote, max_steps=1), [0.9, 0.9, 0.1])


def test_a_judge_nobody_overlaps_with_keeps_the_start() -> None:
    item, judge, vote = np.array([0, 0, 1]), np.array([0, 1, 2]), np.array([1.0, 1.0, 1.0])
    assert repo_reliability(item, judge, vote)[2] == pytest.approx(0.9)


def test_weights_are_repetitions() -> None:
    item, judge, vote = votes([0.9, 0.7, 0.6], num_items=40, share=1.0, seed=3)
    weight_I = np.random.default_rng(0).integers(0, 3, size=40).astype(float)
    copies = [(n, i) for n, i in enumerate(np.repeat(np.arange(40), weight_I.astype(int)))]
    rows = [(n, j, v) for n, i in copies for j, v in zip(judge[item == i], vote[item == i], strict=True)]
    item_2, judge_2, vote_2 = np.array(rows).T
    item_2, judge_2 = item_2.astype(int), judge_2.astype(int)
    np.testing.assert_allclose(
        repo_reliability(item, judge, vote, weight_I=weight_I), repo_reliability(item_2, judge_2, vote_2), atol=1e-6
    )
    first: DawidSkene = dawid_skene(item, judge, (vote > 0).astype(int), num_values=2, weight_I=weight_I)
    second = dawid_skene(item_2, judge_2, (vote_2 > 0).astype(int), num_values=2)
    assert first.log_likelihood == pytest.approx(second.log_likelihood)
