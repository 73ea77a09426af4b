"""Samplers that are not the local one: an endpoint, vLLM, transformers' continuous batching."""

from accord.engines.continuous_batching import ContinuousBatchingSampler
from accord.engines.endpoint_sampler import EndpointSampler, LogprobsKind
from accord.engines.vllm_sampler import VllmSampler, VllmServerSampler

__all__ = [
    "ContinuousBatchingSampler",
    "EndpointSampler",
    "LogprobsKind",
    "VllmSampler",
    "VllmServerSampler",
]
