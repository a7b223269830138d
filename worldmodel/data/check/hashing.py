"""64-bit hashes of rows of arrays, computed without a loop over the rows."""

import numpy as np

_RNG = np.random.default_rng(20240229)
_ODD = _RNG.integers(0, 2**63, 4096, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
BLOCK = 256  # rows at a time, so that a video needs little memory beside it


def row_hashes(values: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N,) uint64; equal for rows with equal bytes, and only by chance (2^-64) for others."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    parts = [_block(rows[begin : begin + BLOCK]) for begin in range(0, len(rows), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _block(rows: np.ndarray) -> np.ndarray:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    words = scramble(np.ascontiguousarray(padded).view(np.uint64) + np.uint64(rows.shape[1]))
    total = np.zeros(len(rows), np.uint64)
    for begin in range(0, words.shape[1], len(_ODD)):
        piece = words[:, begin : begin + len(_ODD)]
        total = scramble(total + (piece * _ODD[: piece.shape[1]]).sum(axis=1, dtype=np.uint64))
    return total


def scramble(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads each bit over all (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def mixed(hashes: list[np.ndarray]) -> np.ndarray:
    """One hash (N,) from several (N,), which tells their order apart."""
    total = np.zeros_like(hashes[0])
    for part in hashes:
        total = scramble(total * np.uint64(3) + part)
    return total


def grams(hashes: np.ndarray, k: int) -> np.ndarray:
    """(N,) -> (N - k + 1,): a hash of each run of k."""
    windows = np.lib.stride_tricks.sliding_window_view(hashes, k)
    return scramble((windows * _ODD[:k]).sum(axis=1, dtype=np.uint64))


def prefixes(hashes: np.ndarray) -> np.ndarray:
    """(N,) -> (N,): a hash of the rows up to and with each."""
    places = scramble(np.arange(len(hashes), dtype=np.uint64) + np.uint64(1))
    return np.cumsum(scramble(hashes ^ places), dtype=np.uint64)
