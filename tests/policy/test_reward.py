"""The reward model: scores by explicit index, in any packing, on any layout, the same as transformers' own class."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from models import VOCABULARY, build_tokenizer, ragged_groups, save_model

from accord.data.tokens import TokenGroup, TokenResponse
from accord.errors import PolicyError
from accord.policy.check import check_layout
from accord.policy.load import load_policy
from accord.policy.reward import RewardModel, load_reward

FAMILIES = {"llama": 1e-8, "qwen2": 1e-8, "gpt2": 1e-11, "gemma2": 1e-6}
"""And how exact they are: some work in float32 at places, whatever their weights are in."""


def build_reward(
    name: str = "llama", *, kind="response", head: float = 0.3, dtype: torch.dtype = torch.float64
) -> RewardModel:
    """A reward model with a random head, as a trained one has."""
    from models import SHAREABLE, UNSHAREABLE

    torch.manual_seed(0)
    config = (SHAREABLE | UNSHAREABLE)[name]
    config = type(config)(**config.to_dict() | {"num_labels": 1})
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.score.weight.normal_(std=head or 1.0).mul_(head > 0)
    return RewardModel(model.to(dtype).eval(), build_tokenizer(), kind=kind)


def own_score(reward: RewardModel, ids: tuple[int, ...], at: int = -1) -> float:
    """The head on the hidden state of one token, by the model's own forward pass of one unpadded sequence."""
    model = reward.causal_lm
    hidden_LH = model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return model.score(hidden_LH[at]).item()


@pytest.mark.parametrize("name", [*FAMILIES])
def test_scores_are_the_head_at_the_last_token_of_each_sequence_alone(name: str):
    reward, groups = build_reward(name), ragged_groups((1, 2, 3, 4, 5))
    with torch.no_grad():
        scores = reward.score(groups)
    assert reward.why_plain is None
    for row, group in enumerate(groups):
        for column, response in enumerate(group.responses):
            expected = own_score(reward, group.prompt_ids + response.ids)
            assert scores.score_PK[row, column].item() == pytest.approx(expected, abs=FAMILIES[name])
        assert not scores.is_valid_PK[row, len(group.responses) :].any()
        assert scores.score_PK[row, len(group.responses) :].tolist() == [0.0] * (5 - len(group.responses))
    assert scores.num_tokens_PK[2].tolist() == [len(r.ids) for r in groups[2].responses] + [0, 0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["response", "pair"])
def test_packing_and_batching_change_no_score_and_no_gradient(name: str, kind):
    reward, groups = build_reward(name, kind=kind), ragged_groups((3, 2, 4), longest=9)
    parameters = list(reward.parameters())

    def graded(parts: list[list[TokenGroup]], layout: str):
        scores = [reward(part, layout=layout).graded_PK for part in parts]
        flat = torch.cat([one[one != 0] for one in scores])  # padding and diagonals are 0
        slope = torch.cos(torch.arange(len(flat), dtype=flat.dtype))
        return flat.detach(), torch.autograd.grad((flat * slope).sum(), parameters, allow_unused=True)

    whole, whole_gradient = graded([groups], "tree")
    for parts, layout in (([[one] for one in groups], "tree"), ([groups], "plain")):
        split, gradient = graded(parts, layout)
        tolerance = {"llama": 1e-5, "gpt2": 1e-10}[name]
        torch.testing.assert_close(split, whole, rtol=0, atol=tolerance)
        for one, other in zip(gradient, whole_gradient, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_a_token_after_the_last_trained_one_is_not_scored():
    reward = build_reward()
    ids, trained = (5, 6, 7, 8), (True, True, False, False)
    group = TokenGroup(prompt_ids=(2, 3), responses=(TokenResponse(ids=ids, is_trained=trained), TokenResponse(ids=())))
    with torch.no_grad():
        score_PK = reward.score([group]).score_PK
    assert score_PK[0, 0].item() == pytest.approx(own_score(reward, (2, 3, 5, 6)), abs=1e-9)
    assert score_PK[0, 1].item() == pytest.approx(own_score(reward, (2, 3)), abs=1e-9)  # the prompt's last token


def test_a_response_that_ends_in_the_padding_token_is_scored_at_its_end():
    reward = build_reward()
    group = TokenGroup(prompt_ids=(2, 3), responses=(TokenResponse(ids=(5, 0)), TokenResponse(ids=(5, 6, 7))))
    with torch.no_grad():
        assert reward.score([group]).score_PK[0, 0].item() == pytest.approx(own_score(reward, (2, 3, 5, 0)), abs=1e-9)


def test_steps_are_scored_at_their_last_tokens():
    reward = build_reward()
    steps = TokenResponse(ids=(5, 6, 7, 8, 9), step_ends=(1, 4))
    groups = [
        TokenGroup(prompt_ids=(2, 3), responses=(TokenResponse(ids=(4,)), steps)),
        TokenGroup(prompt_ids=(9,), responses=(replace(steps, step_ends=(0, 2, 3)),)),
    ]
    with torch.no_grad():
        score_PKS = reward.score(groups).step_score_PKS
        nothing = reward.score(ragged_groups((2,))).step_score_PKS
    assert score_PKS.shape == (2, 2, 3)
    first = [own_score(reward, (2, 3, 5, 6)), own_score(reward, (2, 3, *steps.ids)), 0.0]
    assert score_PKS[0].tolist() == [[0.0] * 3, pytest.approx(first, abs=1e-9)]
    second = [own_score(reward, (9, *steps.ids[: end + 1])) for end in (0, 2, 3)]
    assert score_PKS[1, 0].tolist() == pytest.approx(second, abs=1e-9)
    assert nothing is None


def test_a_joint_model_reads_both_responses_in_both_orders():
    reward, groups = build_reward(kind="pair"), ragged_groups((3, 1, 2), longest=6)
    with torch.no_grad():
        logit_PKK = reward.score(groups).pair_score_PKK
    for row, group in enumerate(groups):
        ids = [response.ids for response in group.responses]
        for i in range(3):
            for j in range(3):
                is_shown = (i != j or len(ids) == 1) and max(i, j) < len(ids)
                expected = 0.0
                if is_shown:
                    expected = own_score(reward, group.prompt_ids + ids[i] + reward.separator_ids + ids[j])
                assert logit_PKK[row, i, j].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "bloom", "falcon"])
def test_the_layout_is_checked_on_hidden_states_though_the_head_is_zero(name: str):
    reward = build_reward(name, head=0.0)
    assert reward.starts_at_zero
    found = check_layout(reward, ragged_groups((2, 3)), gradients=True)
    assert found.passed == (name == "llama"), found
    with torch.no_grad():
        assert not reward.score(ragged_groups((2, 3))).score_PK.any()


def test_a_reward_model_writes_nothing():
    with pytest.raises(PolicyError, match="expected a language model"):
        build_reward().sample(["a question"])


# On disk ------------------------------------------------------------------------------------------------------------


def text_groups() -> tuple[list[TokenGroup], list[str]]:
    """Groups of known words and the same as texts, each response closed by the end of sequence."""
    groups = ragged_groups((2, 3), longest=8)
    groups = [
        replace(group, responses=tuple(TokenResponse(ids=(*r.ids, 1), has_eos=True) for r in group.responses))
        for group in groups
    ]
    decode = build_tokenizer().decode
    return groups, [decode(list(group.prompt_ids + r.ids)) for group in groups for r in group.responses]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "gpt2"])
def test_transformers_gives_a_saved_model_the_same_scores(name: str, side: str, tmp_path: Path):
    build_reward(name).save(tmp_path)
    groups, texts = text_groups()
    with torch.no_grad():
        ours = load_reward(tmp_path, device="cpu").score(groups)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path, padding_side=side)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [
        len(group.prompt_ids) + len(response.ids) for group in groups for response in group.responses
    ]
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)  # not by itself where they are learnt
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        theirs = model(**batch).logits.flatten()
    torch.testing.assert_close(ours.score_PK[ours.is_valid_PK], theirs, rtol=0, atol=2e-5)
    assert theirs.std() > 0.1


def test_an_end_of_sequence_that_is_also_padding_leaves_transformers_one_text_at_a_time(tmp_path: Path, caplog):
    reward = build_reward()
    reward.tokenizer.pad_token = reward.tokenizer.eos_token
    reward.save(tmp_path)
    assert "one text at a time" in caplog.text
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float64).eval()
    groups, _ = text_groups()
    ids = groups[0].prompt_ids + groups[0].responses[0].ids
    with torch.no_grad():
        assert model(torch.tensor([ids])).logits.item() == pytest.approx(own_score(reward, ids), abs=1e-6)
        with pytest.raises(ValueError, match="no padding token"):
            model(torch.tensor([ids, ids]))


def test_a_language_model_becomes_a_reward_model_with_a_head_of_zeros(tmp_path: Path):
    reward = load_reward(save_model(tmp_path, "llama"), device="cpu")
    assert reward.starts_at_zero
    assert reward.kind == "response"
    policy = load_policy(tmp_path, device="cpu")
    theirs = dict(policy.causal_lm.base_model.named_parameters())
    for name, parameter in reward.causal_lm.base_model.named_parameters():
        assert torch.equal(parameter, theirs[name])
    loss = -torch.nn.functional.logsigmoid(reward.score(ragged_groups((2,))).score_PK @ torch.tensor([1.0, -1.0]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    loss.backward()
    assert reward.causal_lm.score.weight.grad.norm() > 0


def test_a_trained_head_is_kept_and_its_kind_remembered(tmp_path: Path):
    reward = build_reward(kind="pair", dtype=torch.float32)
    reward.save(tmp_path)
    again = load_reward(tmp_path, device="cpu")
    assert again.kind == "pair"
    assert torch.equal(again.causal_lm.score.weight, reward.causal_lm.score.weight)
    with pytest.raises(PolicyError, match="scores each pair"):
        load_reward(tmp_path, kind="response", device="cpu")


def test_adapters_train_the_head_beside_them_and_come_back(tmp_path: Path):
    base = save_model(tmp_path / "base")
    reward = load_reward(base, device="cpu", lora_rank=2)
    trained = {name for name, p in reward.model.named_parameters() if p.requires_grad}
    assert any("score.modules_to_save" in name for name in trained)
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)
    with torch.no_grad():
        for name, parameter in reward.model.named_parameters():
            if name in trained:
                parameter.normal_(std=0.1)
    reward.save(tmp_path / "tuned")
    again = load_reward(tmp_path / "tuned", device="cpu")
    groups = ragged_groups((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(again.score(groups).score_PK, reward.score(groups).score_PK)
        assert again.score(groups).score_PK.any()
    with pytest.raises(PolicyError, match=r"adapters .* of a reward model — expected those of a language model"):
        load_policy(tmp_path / "tuned", device="cpu")
    load_policy(base, device="cpu", lora_rank=2).save(tmp_path / "policy")
    with pytest.raises(PolicyError, match="merge them into their base"):
        load_reward(tmp_path / "policy", device="cpu")


def test_scores_are_made_in_float32_where_the_weights_are_coarser(tmp_path: Path):
    for precision in ("bfloat16", "mixed"):
        reward = load_reward(save_model(tmp_path, "llama"), precision=precision, device="cpu")
        torch.nn.init.normal_(reward.causal_lm.score.weight)
        with torch.no_grad():
            score_PK = reward.score(ragged_groups((2, 3))).score_PK
        assert score_PK.dtype == torch.float32
        assert not torch.equal(score_PK, score_PK.bfloat16().float())


def test_what_has_no_head_of_one_number_is_refused(tmp_path: Path):
    with pytest.raises(PolicyError, match="could not be loaded as a reward model"):
        load_reward(save_model(tmp_path / "cohere", "cohere"), device="cpu")
    config = hf.LlamaConfig(**(build_reward().causal_lm.config.to_dict() | {"num_labels": 3, "id2label": None}))
    config.num_labels = 3
    hf.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    build_tokenizer(VOCABULARY).save_pretrained(tmp_path / "three")
    with pytest.raises(PolicyError, match="could not be loaded as a reward model"):
        load_reward(tmp_path / "three", device="cpu")
    half = save_model(tmp_path / "half", "llama")
    from safetensors.torch import load_file, save_file

    weights = load_file(half / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=r"lacks 1 weights \(model.norm.weight"):
        load_reward(half, device="cpu")
