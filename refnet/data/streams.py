"""Random numbers that depend on what they are for, never on who draws them first.

Philox (Salmon et al. 2011) turns a key and a counter into random words, so that a stream may start anywhere: the
seed and the purpose are its key, the numbers of the step and the image are the counter's upper words. Streams
that differ in any of them share no counter value, whatever the process, thread or order that draws from them.
"""

import numpy as np

from refnet.errors import ArgumentError

_WORD = 1 << 64


def stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """The random numbers for `purpose` at `position`, such as (step, image id).

    Args:
        seed: 0 to 2**64 - 1.
        purpose: 1 to 8 ASCII characters; their bytes are the second half of the key.
        position: at most three numbers, each 0 to 2**64 - 1.

    Raises:
        ArgumentError: one of them is out of its range.
    """
    name = purpose.encode("ascii", errors="replace")
    if not purpose.isascii() or not 1 <= len(name) <= 8:
        raise ArgumentError(f"stream: the purpose must be 1 to 8 ASCII characters, got {purpose!r}")
    if len(position) > 3 or any(not 0 <= word < _WORD for word in (seed, *position)):
        raise ArgumentError(
            f"stream: expected a seed and at most three numbers from 0 to 2**64 - 1, got {(seed, *position)}"
        )
    key = np.array([seed, int.from_bytes(name, "big")], np.uint64)
    counter = np.array([0, *position, *[0] * (3 - len(position))], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
