"""Seeds that follow from names, so that neither order nor batch decides them."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on the parts alone: not on the process, the platform or the Python version.

    A run seeds a defence by (its seed, the defence, the image), whatever the attack. So an image meets the same network
    and the same noise clean and attacked: the difference between two conditions is the attack's and not chance's, each
    condition by itself has as many independent samples as there are images, and neither order nor batch matters.

    Example:
        >>> derive_seed(0, "dip", "n01440764/1.JPEG") == derive_seed("0", "dip", "n01440764/1.JPEG")
        True
    """
    # The unit separator keeps (1, 23) from (12, 3).
    sha = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(sha[:8], "big") >> 1
