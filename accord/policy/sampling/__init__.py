"""Sampling from the policy: what a sampler is asked, and the local one."""

from accord.policy.sampling.draw import tempered_logps
from accord.policy.sampling.engine import LocalSampler, answer_prompts, sample_responses
from accord.policy.sampling.protocol import NoSampler, Sampler, Samples, SamplingSettings
from accord.policy.sampling.rows import stop_ids, trained_ends

__all__ = [
    "LocalSampler",
    "NoSampler",
    "Sampler",
    "Samples",
    "SamplingSettings",
    "answer_prompts",
    "sample_responses",
    "stop_ids",
    "tempered_logps",
    "trained_ends",
]
