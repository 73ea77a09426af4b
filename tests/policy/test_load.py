"""Model folders, whole and broken, and what is written back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import build_model, build_tokenizer, ragged_groups, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.errors import PolicyError
from accord.policy.load import load_policy
from accord.policy.policy import Policy


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10")


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_a_key(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    build_model("llama", dtype=torch.float32).save_pretrained(folder, max_shard_size="4KB")
    next(folder.glob("model-00002-of-*.safetensors")).unlink()


def reshape_a_key(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(5, 16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')


def name_unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_type"}))


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "complete weights"),
        (truncate_header, "complete weights"),
        (drop_weights, "complete weights"),
        (drop_a_shard, "complete weights"),
        (drop_a_key, r"lacks 1 weights \(model.layers.1.mlp.up_proj.weight"),
        (reshape_a_key, "complete weights"),
        (garble_config, "config.json"),
        (name_unknown_type, "no_such_type"),
        (drop_tokenizer, "no tokenizer could be loaded"),
    ],
)
def test_a_broken_folder_gets_one_clear_error(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    damage(tmp_path)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(tmp_path)
    assert tmp_path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(PolicyError, match=r"with notes.txt — expected a model folder with a config.json"):
        load_policy(tmp_path)
    with pytest.raises(PolicyError, match=r"got the file .*notes.txt — expected a model folder"):
        load_policy(tmp_path / "notes.txt")
    with pytest.raises(PolicyError, match=r"nowhere, which does not exist"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match=r"\./nowhere, which does not exist"):
        load_policy("./nowhere")


def same_scores(policy: Policy, other: Policy) -> None:
    with torch.no_grad():
        ours, theirs = policy.score(ragged_groups((2, 3))), other.score(ragged_groups((2, 3)))
    assert ours.logps_PK.tolist() == theirs.logps_PK.tolist()


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gemma2", "mixtral"])
def test_saved_folder_loads_in_transformers_with_equal_logits(name: str, tmp_path: Path) -> None:
    policy = load_policy(save_model(tmp_path / "start", name), gradient_checkpointing=True)
    policy.score(ragged_groups((2,))).logps_PK.sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(parameter.grad if parameter.grad is not None else 0.0, alpha=-0.01)
    policy.save(tmp_path / "out")
    assert "accord" not in (tmp_path / "out" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    policy.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy.causal_lm(ids).logits, rtol=0, atol=1e-5)
    before = json.loads((tmp_path / "start" / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: v for k, v in after.items() if k != "use_cache"} == {k: v for k, v in before.items() if k != "use_cache"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == build_tokenizer().get_vocab()
    same_scores(policy, load_policy(tmp_path / "out"))


def test_adapter_folder_round_trip(tmp_path: Path) -> None:
    policy = load_policy(save_model(tmp_path / "base", "llama"), lora_rank=2, lora_alpha=6)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    policy.save(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "model.safetensors").exists()  # adapters only
    again = load_policy(tmp_path / "adapters")
    assert again.has_adapters
    same_scores(policy, again)
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in policy.named_parameters() if p.requires_grad}


def test_broken_adapter_folders(tmp_path: Path) -> None:
    load_policy(save_model(tmp_path / "base", "llama"), lora_rank=2).save(tmp_path / "good")
    bad = tmp_path / "bad"
    shutil.copytree(tmp_path / "good", bad)
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(PolicyError, match=r"the adapters in .*bad could not be loaded"):
        load_policy(bad)
    kept = load_file(tmp_path / "good" / "adapter_model.safetensors")
    kept.popitem()
    save_file(kept, weights)
    with pytest.raises(PolicyError, match=r"the adapters in .*bad could not be loaded: Found missing adapter keys"):
        load_policy(bad)
    (bad / "adapter_config.json").write_text('{"base_model')
    with pytest.raises(PolicyError, match=r"adapter_config.json is not JSON"):
        load_policy(bad)
    (bad / "adapter_config.json").write_text("{}")
    with pytest.raises(PolicyError, match=r"names no base model"):
        load_policy(bad)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(PolicyError, match=r"base, which does not exist"):
        load_policy(tmp_path / "good")


def test_settings_of_load(tmp_path: Path) -> None:
    save_model(tmp_path, "llama", dtype=torch.bfloat16)
    assert next(load_policy(tmp_path).parameters()).dtype == torch.float32  # whatever the file holds
    assert next(load_policy(tmp_path, precision="bfloat16").parameters()).dtype == torch.bfloat16
    mixed = load_policy(tmp_path, precision="mixed")
    assert next(mixed.parameters()).dtype == torch.float32
    assert mixed.autocast == torch.bfloat16
    some = load_policy(tmp_path, lora_rank=2, lora_targets="q_proj,v_proj")
    trained = {name.split(".")[-4] for name, p in some.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}
    with pytest.raises(PolicyError, match=r"got lora_targets='no_such_layer'"):
        load_policy(tmp_path, lora_rank=2, lora_targets="no_such_layer")
