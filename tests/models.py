"""Tiny random models and tokenizers of many architectures: real transformers classes, a few thousand weights each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from accord.data.tokens import TokenGroup, TokenResponse
from accord.policy.policy import Policy

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 128}
BODY = SIZES | {"intermediate_size": 24, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
GROUPED = BODY | {"num_key_value_heads": 2, "pad_token_id": 0}
HEADS = GROUPED | {"head_dim": 4}

SHAREABLE: dict[str, hf.PreTrainedConfig] = {
    "llama": hf.LlamaConfig(**GROUPED),
    "llama_tied": hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": hf.MistralConfig(**GROUPED, sliding_window=None),
    "mistral_window": hf.MistralConfig(**GROUPED, sliding_window=9),
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen3": hf.Qwen3Config(**HEADS),
    "gemma2": hf.Gemma2Config(**HEADS, sliding_window=11, query_pre_attn_scalar=4),
    "gemma3": hf.Gemma3TextConfig(**HEADS, sliding_window=7, query_pre_attn_scalar=4),
    "gpt2": hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=128, eos_token_id=1),
    "gpt_neox": hf.GPTNeoXConfig(**BODY),
    "phi": hf.PhiConfig(**BODY),  # a bias in the head
    "phi3": hf.Phi3Config(**GROUPED),
    "olmo2": hf.Olmo2Config(**GROUPED),
    "mixtral": hf.MixtralConfig(**GROUPED, num_local_experts=4),
    "qwen3_moe": hf.Qwen3MoeConfig(**HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    "opt": hf.OPTConfig(**SIZES, num_hidden_layers=2, ffn_dim=24, word_embed_proj_dim=16, pad_token_id=1),
    "cohere": hf.CohereConfig(**GROUPED),  # logits are scaled: the head is not the bare linear map
    "granite": hf.GraniteConfig(**GROUPED, logits_scaling=3.0),
}

UNSHAREABLE: dict[str, hf.PreTrainedConfig] = {
    "mamba": hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    "falcon_h1": hf.FalconH1Config(  # attention beside a state-space block in each layer
        **HEADS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=16
    ),
    "gpt_oss": hf.GptOssConfig(**HEADS, num_local_experts=4, sliding_window=8),
    "bloom": hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4),
    "mpt": hf.MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=4, max_seq_len=128),
    "falcon": hf.FalconConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4),
    "falcon_alibi": hf.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "stablelm": hf.StableLmConfig(**GROUPED),
    "llama4": hf.Llama4TextConfig(**HEADS, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=24),
    "roberta": hf.RobertaConfig(**BODY | {"pad_token_id": 3}, is_decoder=True),  # positions start at 4
}

HYBRID: dict[str, hf.PreTrainedConfig] = {  # a recurrent or convolution layer, then an attention layer
    "lfm2": hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "recurrent_gemma": hf.RecurrentGemmaConfig(**GROUPED, lru_width=16, block_types=["recurrent", "attention"]),
    "qwen3_next": hf.Qwen3NextConfig(
        **HEADS, layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=4, linear_value_head_dim=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
}  # fmt: skip


def build_tokenizer(vocabulary: int = VOCABULARY) -> hf.PreTrainedTokenizerFast:
    """Words w0, w1, … with the pad token first and the end-of-sequence token second."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build_model(
    name: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> hf.PreTrainedModel:
    """A model with weights large enough that attention is far from uniform; `changes` go to its config."""
    config = (SHAREABLE | UNSHAREABLE | HYBRID)[name]
    torch.manual_seed(seed)
    config = type(config)(**config.to_dict() | changes)
    # the default grouped product of experts has no float64 kernel
    model = hf.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.to(dtype)


def build_policy(name: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Policy:
    """A policy without dropout, as `load_policy` makes it."""
    from accord.policy.load import silence_dropout

    model = build_model(name, dtype=dtype, seed=seed)
    silence_dropout(model)
    return Policy(model, build_tokenizer())


def save_model(folder: Path, name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny model folder as the Hub has them."""
    build_model(name, dtype=dtype, seed=seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def ragged_groups(
    num_responses: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8), *, longest: int = 22, seed: int = 0
) -> list[TokenGroup]:
    """Random groups: prompts and responses of 1 … `longest` tokens, among them a response of one token each group."""
    rng = random.Random(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, VOCABULARY) for _ in range(length))

    groups = []
    for row, k in enumerate(num_responses):
        lengths = [1, *(rng.randint(1, longest) for _ in range(k - 1))]
        rng.shuffle(lengths)
        prompt = draw((1, longest, rng.randint(2, longest))[row % 3])
        groups.append(
            TokenGroup(prompt_ids=prompt, responses=tuple(TokenResponse(ids=draw(n)) for n in lengths), index=row)
        )
    return groups


def own_token_logps(model: hf.PreTrainedModel, groups: Sequence[TokenGroup]) -> torch.Tensor:
    """log π(token) of every response token by the model's own forward pass, one unpadded sequence at a time."""
    found = []
    for group in groups:
        for response in group.responses:
            sequence = torch.tensor([group.prompt_ids + response.ids])
            logps_LV = model(sequence, use_cache=False).logits[0].log_softmax(-1)
            first = len(group.prompt_ids)
            places = torch.arange(first, first + len(response.ids))
            found.append(logps_LV[places - 1, sequence[0, places]])
    return torch.cat(found)
