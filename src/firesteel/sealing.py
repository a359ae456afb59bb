"""Notes in a place that others can write to, which only who has the run's key can have written."""

from __future__ import annotations

import hmac

_BYTES = 32


def seal(key: str, name: str, data: bytes) -> bytes:
    """`data`, to be left under `name`."""
    return _code(key, name, data) + data


def unseal(key: str, name: str, sealed: bytes) -> bytes | None:
    """The data that was sealed under this name, or None where somebody else has written it."""
    code, data = sealed[:_BYTES], sealed[_BYTES:]
    return data if hmac.compare_digest(code, _code(key, name, data)) else None


def _code(key: str, name: str, data: bytes) -> bytes:
    return hmac.digest(key.encode(), b"%d %s %s" % (len(name.encode()), name.encode(), data), "sha256")
