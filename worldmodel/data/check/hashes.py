"""64-bit hashes of rows, computed without a loop over the rows."""

import numpy as np

ODD = np.random.default_rng(20240229).integers(0, 2**63, 4096, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
AT_ONCE = 4 << 20  # bytes hashed at a time, so that a video needs little extra memory


def row_hashes(values: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,) uint64; equal for rows with equal bytes, and only by chance (2^-64) for others."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    size = max(1, AT_ONCE // max(rows.shape[1], 1))
    parts = [_block(rows[begin : begin + size]) for begin in range(0, len(rows), size)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _block(rows: np.ndarray) -> np.ndarray:
    width = rows.shape[1]
    if width % 8:
        rows = np.pad(rows, ((0, 0), (0, -width % 8)))
    words = scrambled(np.ascontiguousarray(rows).view(np.uint64) + np.uint64(width))
    total = np.zeros(len(rows), np.uint64)
    for begin in range(0, words.shape[1], len(ODD)):
        piece = words[:, begin : begin + len(ODD)]
        total = scrambled(total + (piece * ODD[: piece.shape[1]]).sum(axis=1, dtype=np.uint64))
    return total


def scrambled(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads each bit over the whole word (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def mixed(hashes: list[np.ndarray]) -> np.ndarray:
    """One hash (N,) from several (N,), which depends on their order."""
    total = np.zeros_like(hashes[0])
    for part in hashes:
        total = scrambled(total * np.uint64(3) + part)
    return total


def grams(hashes: np.ndarray, k: int) -> np.ndarray:
    """(N,) -> (N - k + 1,), N at least k: a hash of each run of k."""
    total = np.zeros(len(hashes) - k + 1, np.uint64)
    for i in range(k):
        total += hashes[i : i + len(total)] * ODD[i]
    return scrambled(total)
