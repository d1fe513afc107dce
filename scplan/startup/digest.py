"""SHA-256 without `hashlib`, which loads OpenSSL: that takes longer than most of what scplan does."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # Python 3.12
    except ImportError:
        try:
            from _sha256 import sha256  # Python 3.11
        except ImportError:
            from hashlib import sha256


def sha256_hex(content: bytes) -> str:
    """SHA-256 of `content` in 64 hexadecimal digits."""
    return sha256(content).hexdigest()
