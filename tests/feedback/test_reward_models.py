"""Reward models as rewards: the same score however it is laid out, padded or batched; ensembles; steps; pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models import SHAREABLE, build_tokenizer

from accord.errors import ConfigError
from accord.feedback.rating import with_ratings
from accord.feedback.reward_calibration import Calibration, ensemble_scores, write_calibration
from accord.feedback.reward_models import calibrate_reward, reward_model_reward
from accord.policy.reward import RewardModel, load_reward
from accord.records import Comparison, FinishReason, Group, Message, Ranking, Rating, Response

CLOSE = 1e-5  # float32 scores of order 1


def save_reward(folder: Path, *, seed: int = 0, kind="response", name: str = "llama") -> str:
    """Write a tiny reward model with a random head, as a trained one has."""
    torch.manual_seed(seed)
    config = SHAREABLE[name]
    config = type(config)(**config.to_dict() | {"num_labels": 1})
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    RewardModel(model, build_tokenizer(), kind=kind).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model on disk."""
    return save_reward(tmp_path_factory.mktemp("reward"))


def words(*ids: int) -> str:
    return " ".join(f"w{i}" for i in ids)


def groups_of_text() -> list[Group]:
    answers = [[(5, 6), (7,), (8, 9, 10, 11)], [(12, 13, 14)], [(5, 5), (6, 6, 6)]]
    prompts = [(2, 3, 4), (20, 21), (30, 31, 32, 33, 34, 35)]
    return [
        Group(prompt=words(*prompt), responses=tuple(Response(content=words(*ids)) for ids in row))
        for prompt, row in zip(prompts, answers, strict=True)
    ]


def scores(reward, groups) -> list[list[float | None]]:
    return [[finding.score for finding in row] for row in reward(groups)]


def assert_same(one, other, tolerance: float = CLOSE) -> None:
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=tolerance)


# One model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_transformers_whatever_the_padding(folder: str, side: str):
    groups = groups_of_text()
    ours = scores(reward_model_reward(folder), groups)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    texts = [f"{group.prompt} {response.content} <eos>" for group in groups for response in group.responses]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    flat = [score for row in ours for score in row]
    assert flat == pytest.approx(theirs, abs=CLOSE)
    assert len({round(score, 4) for score in flat}) == len(flat)


def test_batch_packing_order_and_layout_change_no_score(folder: str):
    groups = groups_of_text()
    whole = scores(reward_model_reward(folder), groups)
    assert_same(scores(reward_model_reward(folder, max_batch_tokens=1), groups), whole)
    assert_same(scores(reward_model_reward(folder), groups[::-1])[::-1], whole)
    alone = reward_model_reward(folder)
    assert_same([scores(alone, [group])[0] for group in groups], whole)
    plain = load_reward(folder, device="cpu")
    plain.fall_back_to_plain("the test asks for it")
    assert_same(scores(reward_model_reward(plain), groups), whole)
    split = [[replace(group, responses=(response,)) for response in group.responses] for group in groups]
    assert_same([[row[0] for row in scores(alone, part)] for part in split], whole)


def test_all_responses_of_a_prompt_are_one_tree(folder: str, monkeypatch: pytest.MonkeyPatch):
    model = load_reward(folder, device="cpu")
    groups, seen = groups_of_text(), []
    forward = model.causal_lm.base_model.forward

    def watched(*args, **kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    model.settle_layout(_token_groups(model, groups[:1]))
    monkeypatch.setattr(model.causal_lm.base_model, "forward", watched)
    scores(reward_model_reward(model), groups[:1])
    assert seen == [(1, 3 + 3 + 2 + 5)]  # the prompt once; each response with its end


def _token_groups(model: RewardModel, groups: list[Group]):
    from accord.data import encode_groups

    return encode_groups(groups, model.tokenizer).groups


def test_sampled_ids_are_read_as_they_are(folder: str):
    text = groups_of_text()[:1]
    ids = [replace(text[0], responses=tuple(Response(token_ids=i) for i in ((5, 6, 1), (7, 1), (8, 9, 10, 11, 1))))]
    expected = scores(reward_model_reward(folder), text)
    assert_same(scores(reward_model_reward(folder), ids), expected)  # no text: the ids are all there is
    both = [
        replace(ids[0], responses=tuple(replace(r, content="w40 w41") for r in ids[0].responses))
    ]  # a text that says something else, to see which is read
    assert_same(scores(reward_model_reward(folder, policy_tokenizer=build_tokenizer()), both), expected)
    other = scores(reward_model_reward(folder, policy_tokenizer=build_tokenizer(50)), both)
    assert other[0][0] == other[0][1] != pytest.approx(expected[0][0])


def test_a_response_cut_off_by_the_limit_gets_no_end(folder: str):
    (group,) = groups_of_text()[:1]
    cut = replace(group, responses=tuple(replace(r, finish_reason=FinishReason.LENGTH) for r in group.responses))
    ids = replace(group, responses=tuple(Response(token_ids=i) for i in ((5, 6), (7,), (8, 9, 10, 11))))
    reward = reward_model_reward(folder)
    assert_same(scores(reward, [cut]), scores(reward, [ids]))
    assert scores(reward, [cut])[0] != pytest.approx(scores(reward, [group])[0])


def test_a_response_of_nothing_is_unknown(folder: str):
    group = Group(prompt="w2", responses=(Response(token_ids=()), Response(content="w5"), Response(content="w5")))
    (empty, one, same) = reward_model_reward(folder)([group])[0]
    assert empty.score is None
    assert empty.reason
    assert one.score == same.score is not None  # equal responses are both scored


def test_what_is_longer_than_the_window_is_cut_and_said(folder: str, caplog: pytest.LogCaptureFixture):
    long = Group(prompt=words(*[5] * 150), responses=(Response(content="w6"),))
    (found,) = reward_model_reward(folder)([long])[0]
    assert found.score is not None
    assert "1 of 1 groups are longer than the 128 tokens" in caplog.text


def test_judgements_and_columns_change_no_score(folder: str):
    groups = groups_of_text()
    judged = [
        replace(group, judgements=(Rating(response=0, value=1.0),), extra={"is_prompt_only": True}) for group in groups
    ]
    reward = reward_model_reward(folder)
    assert_same(scores(reward, judged), scores(reward, groups))


def test_conversations_are_rendered_by_the_template(folder: str):
    turns = Group(
        prompt=(Message(role="user", content="w2 w3"),),
        responses=(Response(content=(Message(role="assistant", content="w5"),)), Response(content="w5")),
    )
    found = scores(reward_model_reward(folder, chat_template="transcript"), [turns])[0]
    assert found[0] == pytest.approx(found[1])  # text answers a conversation as a turn does


# Centre, scale, length ------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(folder: str, tmp_path: Path) -> str:
    """The same model, its scores measured: mean 2, deviation 4, half a point per token."""
    copy = save_reward(tmp_path / "calibrated")
    known = Calibration(mean=2.0, std=4.0, num_samples=10, lengths=(0.0, 10.0), expected=(0.0, 5.0))
    write_calibration(copy, known)
    return copy


def test_scores_are_centred_and_scaled_as_asked(folder: str, calibrated: str):
    groups = groups_of_text()
    raw = scores(reward_model_reward(folder), groups)
    for settings, expected in (
        ({"centre": "references"}, lambda row, n: row - 2.0),
        ({"centre": "references", "scale": True}, lambda row, n: (row - 2.0) / 4.0),
        ({"scale": True}, lambda row, n: row / 4.0),
        ({"centre": "prompt"}, lambda row, n: row - row.mean()),
        ({"remove_length": True}, lambda row, n: row - 0.5 * n),
    ):
        found = reward_model_reward(calibrated, **settings)(groups)
        for row, one, group in zip(found, raw, groups, strict=True):
            lengths = np.array([len(r.content.split()) + 1 for r in group.responses])
            assert [f.score for f in row] == pytest.approx(list(expected(np.array(one), lengths)), abs=CLOSE)
            assert [f.parts["raw"] for f in row] == pytest.approx(one, abs=CLOSE)


def test_a_centre_that_was_not_measured_is_refused(folder: str):
    for settings in ({"centre": "references"}, {"scale": True}, {"remove_length": True}):
        with pytest.raises(ConfigError, match="--calibrate"):
            reward_model_reward(folder, **settings)


def test_samples_and_comparisons_calibrate(folder: str):
    (first, second, third) = groups_of_text()
    judged = [
        replace(first, judgements=(Ranking(order=((0,), (1, 2))),)),
        second,
        replace(
            third, judgements=(Comparison(better=1, worse=0), Comparison(better=0, worse=1, is_tie=True))
        ),
    ]  # fmt: skip
    raw = scores(reward_model_reward(folder), judged)
    found = calibrate_reward(load_reward(folder, device="cpu"), judged)
    flat = [score for row in raw for score in row]
    assert found.num_samples == 6
    assert (found.mean, found.std) == pytest.approx((np.mean(flat), np.std(flat, ddof=1)), abs=CLOSE)
    assert found.num_comparisons == 3  # 0 ≻ 1, 0 ≻ 2, and one that is no tie


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"centre": "zero"}, "centre='zero'"),
        ({"ensemble": "worst"}, "two or more"),
        ({"steps": "sum"}, "steps='sum'"),
        ({"precision": "int8"}, "precision"),
        ({"ensemble": "mean", "penalty": -1.0}, "penalty"),
    ],
)
def test_settings_that_mean_nothing_are_refused(folder: str, settings, said):
    with pytest.raises(ConfigError, match=said):
        reward_model_reward(folder, **settings)


def test_an_untrained_head_is_no_reward(tmp_path: Path):
    from models import save_model

    with pytest.raises(ConfigError, match="untrained"):
        reward_model_reward(str(save_model(tmp_path)))


# Ensembles ------------------------------------------------------------------------------------------------------------


def test_rules_of_ensembles():
    members = np.array([[0.0, 2.0], [1.0, 2.0], [5.0, 2.0]])
    assert ensemble_scores(members).tolist() == [2.0, 2.0]
    assert ensemble_scores(members, how="worst").tolist() == [0.0, 2.0]
    variance = ((0 - 2) ** 2 + (1 - 2) ** 2 + (5 - 2) ** 2) / 3
    assert ensemble_scores(members, how="uncertainty", penalty=0.3).tolist() == pytest.approx([2 - 0.3 * variance, 2.0])
    assert (ensemble_scores(members, how="worst") <= ensemble_scores(members)).all()
    for how in ("mean", "worst", "uncertainty"):  # identical members
        assert ensemble_scores(members[:1].repeat(3, axis=0), how=how).tolist() == [0.0, 2.0]
        assert np.isnan(ensemble_scores(np.array([[1.0], [np.nan]]), how=how)).all()


def test_a_constant_of_a_member_changes_nothing_once_centred(tmp_path: Path):
    paths = [save_reward(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    groups = groups_of_text()
    for how in ("mean", "worst", "uncertainty"):
        before = reward_model_reward(paths, ensemble=how, scale=False)
        shifted = reward_model_reward(paths, ensemble=how, scale=False)
        shifted.members[1].model.causal_lm.score.bias = torch.nn.Parameter(torch.tensor([100.0]))
        assert_same(scores(shifted, groups), scores(before, groups), 1e-4)
    found = before(groups)[0]
    values = np.array([[f.parts["member0"], f.parts["member1"]] for f in found])
    assert values.mean(axis=0) == pytest.approx([0.0, 0.0], abs=CLOSE)  # centred per prompt
    assert [f.parts["deviation"] for f in found] == pytest.approx(list(values.std(axis=1)), abs=CLOSE)


def test_members_are_scaled_before_they_are_joined(tmp_path: Path):
    paths = [save_reward(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    with pytest.raises(ConfigError, match="--calibrate"):
        reward_model_reward(paths)
    for path, std in zip(paths, (1.0, 10.0), strict=True):
        write_calibration(path, Calibration(mean=0.0, std=std, num_samples=9))
    groups = groups_of_text()
    raw = [np.array(scores(reward_model_reward(path), groups)[0]) for path in paths]
    expected = ((raw[0] - raw[0].mean()) + (raw[1] - raw[1].mean()) / 10) / 2
    assert scores(reward_model_reward(paths), groups)[0] == pytest.approx(list(expected), abs=CLOSE)


# Steps and pairs ------------------------------------------------------------------------------------------------------


def test_steps_become_one_number(folder: str):
    text = "w5 w6\nw7\nw8 w9"
    group = Group(prompt="w2 w3", responses=(Response(content=text), Response(content="w5 w6")))
    parts = [(5, 6), (7,), (8, 9)]
    prefixes = [sum(parts[: n + 1], ()) for n in range(3)]
    whole = reward_model_reward(folder)
    ended = [*prefixes[:-1], (*prefixes[-1], 1)]  # the last step ends with the response
    ids = Group(prompt="w2 w3", responses=tuple(Response(token_ids=prefix) for prefix in ended))
    chances = [1 / (1 + np.exp(-score)) for score in scores(whole, [ids])[0]]
    for how, expected in (
        ("min", min(chances)), ("product", np.prod(chances)), ("mean", np.mean(chances)), ("last", chances[-1]),
    ):  # fmt: skip
        found = scores(reward_model_reward(folder, steps=how), [group])[0]
        assert found[0] == pytest.approx(expected, abs=CLOSE)
        single = Group(prompt="w2 w3", responses=(Response(content="w5 w6"),))
        assert found[1] == pytest.approx(1 / (1 + np.exp(-scores(whole, [single])[0][0])), abs=CLOSE)


def test_a_joint_model_gives_each_response_its_lead_over_the_others(tmp_path: Path):
    path = save_reward(tmp_path, kind="pair")
    group = groups_of_text()[0]
    found = scores(reward_model_reward(path), [group])[0]
    assert sum(found) == pytest.approx(0.0, abs=CLOSE)  # P(i ≻ j) + P(j ≻ i) = 1
    pair = scores(reward_model_reward(path), [replace(group, responses=group.responses[:2])])[0]
    assert pair[0] == pytest.approx(-pair[1]) != 0
    alone = reward_model_reward(path)([replace(group, responses=group.responses[:1])])[0][0]
    assert alone.score is None


# Ratings --------------------------------------------------------------------------------------------------------------


def test_findings_become_ratings_and_replace_earlier_ones(folder: str):
    groups = groups_of_text()[:1]
    reward = reward_model_reward(folder, centre="prompt")
    rated = with_ratings(groups, reward(groups), judge=folder)
    values = [j for j in rated[0].judgements if isinstance(j, Rating)]
    assert {j.attribute for j in values} == {"reward", "reward/raw"}
    assert {j.judge for j in values} == {folder}
    assert [j.value for j in values if j.attribute == "reward"] == scores(reward, groups)[0]
    assert with_ratings(rated, reward(groups), judge=folder) == rated
    empty = [replace(groups[0], responses=(Response(token_ids=()),))]
    assert with_ratings(empty, reward(empty), judge=folder)[0].judgements == ()
