"""A client of any OpenAI-compatible HTTP endpoint: retries, an answer cache, counts of tokens and cost."""

from accord.endpoint.answers import Answer, TokenLogp
from accord.endpoint.cache import AnswerCache
from accord.endpoint.client import Endpoint
from accord.endpoint.settings import EndpointDown, EndpointSettings, RequestRefused, Usage

__all__ = [
    "Answer",
    "AnswerCache",
    "Endpoint",
    "EndpointDown",
    "EndpointSettings",
    "RequestRefused",
    "TokenLogp",
    "Usage",
]
