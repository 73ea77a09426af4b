"""How tests and a solution talk across a wall: plain values as lines of JSON. Runs in sandboxes: standard library only.

What arrives is rebuilt from exact built-in types, never unpickled or evaluated: no class, method or operator of the
solution comes across.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

MAX_BYTES = 16 * 1024 * 1024  # of one message
_MAX_ITEMS = 100_000  # of an iterator, which may not end
_SCALARS: dict[type, Callable[[Any], list[Any]]] = {
    complex: lambda value: [value.real, value.imag],
    bytes: lambda value: [bytes(value).hex()],
    bytearray: lambda value: [bytes(value).hex()],
    range: lambda value: [hex(part) for part in (value.start, value.stop, value.step)],
}
_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}


class CannotSendError(TypeError):
    """A value is not made of built-in types."""


def encode(value: Any) -> Any:
    """Return a value as JSON can hold it, its types kept; a subclass of a built-in type becomes that type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return ["int", hex(int.__int__(value))]
    for kind, parts in _SCALARS.items():
        if isinstance(value, kind):
            return [kind.__name__, *parts(value)]
    return _encode_collection(value)


def _encode_collection(value: Any) -> Any:
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in dict.items(value)]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item) for item in value]]
    if isinstance(value, Iterator):
        items = [encode(item) for item in islice(value, _MAX_ITEMS + 1)]
        if len(items) > _MAX_ITEMS:
            raise CannotSendError(f"an iterator has more than {_MAX_ITEMS} items")
        return ["iterator", items]
    raise CannotSendError(f"a {type(value).__name__} is not made of built-in types")


def decode(value: Any) -> Any:
    """Return what `encode` was given. Raises ValueError for anything it cannot have written."""
    if value is None or isinstance(value, bool | str | float):
        return value
    match value:
        case ["int", str(text)]:
            return int(text, 16)
        case ["complex", float(real), float(imaginary)]:
            return complex(real, imaginary)
        case ["bytes", str(text)]:
            return bytes.fromhex(text)
        case ["bytearray", str(text)]:
            return bytearray.fromhex(text)
        case ["range", str(start), str(stop), str(step)]:
            return range(int(start, 16), int(stop, 16), int(step, 16))
        case ["dict", list(pairs)]:
            return {decode(key): decode(item) for key, item in pairs}
        case [str(name), list(items)] if name in _SEQUENCES:
            return _SEQUENCES[name]([decode(item) for item in items])
    raise ValueError("not a value")


class Line:
    """One end of the line between the two: a message a line, each of at most `MAX_BYTES`."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._reader = self._socket.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Raises OSError when nobody listens, CannotSendError when it is too long."""
        text = json.dumps(message).encode("ascii") + b"\n"
        if len(text) > MAX_BYTES:
            raise CannotSendError(f"{len(text)} bytes are more than a message may have")
        self._socket.sendall(text)

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, None when the other end is gone. Raises ValueError for what is not a message."""
        text = self._reader.readline(MAX_BYTES + 1)
        if not text:
            return None
        if not text.endswith(b"\n"):
            raise ValueError("the line broke off or is too long")
        message = json.loads(text)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message
