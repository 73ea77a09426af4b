"""Gradients of held-out pairs in a real run: metrics, rows, and the geometry of one pair against autograd."""

from pathlib import Path

import pytest
import torch
from toy_runs import BASE, SMALL, judged_groups

from accord.alignment import align
from accord.data import encode_groups
from accord.diagnostics.gradients import pair_geometry
from accord.policy.load import load_policy
from accord.run.held_out.pair_gradients import KEYS


def test_a_run_reports_them_in_metrics_and_rows(tmp_path: Path):
    result = align(
        model=BASE, groups=judged_groups(24), out=str(tmp_path / "run"),
        **SMALL | {"train.max_steps": 2, "evaluate.gradient_pairs": 4, "data.eval_fraction": 0.5},
    )  # fmt: skip
    assert result.run is not None
    found = result.summary["eval_after"]
    assert 0.0 <= found["gradients/chosen_falls_low"] <= found["gradients/chosen_falls"] <= 1.0
    assert found["gradients/chosen_falls"] + found["gradients/rejected_rises"] <= 1.0  # one side at most goes wrong
    assert -1.0 <= found["gradients/cosine"] <= 1.0
    assert found["ranking_accuracy/alignment_gap"] == pytest.approx(
        found["ranking_accuracy/idealised"] - found["ranking_accuracy"]
    )
    rows = result.run.read_rows("eval").to_pylist()
    last = [row for row in rows if row["step"] == 2]
    assert sum(row["ches"] is not None for row in last) == 4 < len(last)
    assert all(row[key] is not None for row in last if row["ches"] is not None for key in KEYS)


def test_the_states_are_those_that_predict_the_response():
    """Their geometry is that of the gradient of the scorer's own log-probabilities by the output matrix."""
    policy = load_policy(BASE)
    (group,) = encode_groups(judged_groups(1), policy.tokenizer).groups
    states = policy.predicting_states(group)
    assert states is not None
    head = policy.causal_lm.get_output_embeddings()
    weight = head.weight.detach().clone().requires_grad_()
    ids = [torch.tensor(response.ids) for response in group.responses]
    logps = [
        (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None]).sum()
        for hidden, tokens in zip(states, ids, strict=True)
    ]
    torch.testing.assert_close(torch.stack(logps), policy.score([group]).logps_PK[0], rtol=1e-4, atol=1e-4)
    g_w, g_l = (torch.autograd.grad(value, weight)[0] for value in logps)
    geometry = pair_geometry(*states, *ids, head.weight)
    assert geometry.dot == pytest.approx(float((g_w * g_l).sum()), rel=1e-3)
    assert geometry.worse_norm_sq == pytest.approx(float((g_l * g_l).sum()), rel=1e-3)
