"""Seeds derived from names, and so independent of order and batch."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on the parts alone.

    It does not depend on the process, the platform or the Python version.

    A run seeds a defence by its own seed, the defence and the image, but not by the attack. A clean image and its
    attacked version then have the same initial network and the same noise, so that conditions differ by the attack and
    not by chance. Within a condition the samples of different images are independent.

    Example:
        >>> derive_seed(0, "dip", "n01440764/1.JPEG") == derive_seed("0", "dip", "n01440764/1.JPEG")
        True
    """
    # The unit separator keeps (1, 23) from (12, 3).
    sha = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(sha[:8], "big") >> 1
