"""How fast are batches made, against one raw gather from a memory map of the same rows?

    python benchmarks/loader.py [--json FILE]

One thread, page cache warm; the variants take turns, and the medians of many short rounds are compared. A round makes
the same batches of 16 lanes x 64 steps, in the order of training: the raw gather gets its row numbers for nothing.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import options_parser, save

from worldmodel.data.episode import Episode
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.load import load, load_compressed
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.segments import Segments
from worldmodel.data.spaces import box_of
from worldmodel.data.writer import EpisodeWriter

LANES, STEPS, BATCHES, ROUNDS = 16, 64, 8, 60


def main() -> None:
    torch.set_num_threads(1)
    parser = options_parser(__doc__)
    arguments = parser.parse_args()
    figures: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        figures["vectors"] = compare(Path(folder) / "vectors", {"state": np.zeros(17, np.float32)}, 400, 1000, 0.5)
        figures["images"] = compare(Path(folder) / "images", {"image": np.zeros((64, 64, 3), np.uint8)}, 60, 250, 0.7)
    save(arguments.json, figures)


def compare(folder: Path, observation: dict[str, np.ndarray], episodes: int, length: int, goal: float) -> dict:
    """Write a dataset, read it every way, print steps/s and ratios."""
    record(folder, observation, episodes, length)
    source = open_dataset(folder)
    layout = Layout(source.observation_space, source.action_space)
    ways = {
        "from memory": load(source, np.inf, folder / "none").episodes,
        "from the cache": load(source, 0, folder / "cache").episodes,
    }
    if layout.images:
        ways["decoded, no worker"] = load_compressed(folder, layout).episodes
    batches = {name: segments_of(way) for name, way in ways.items()}
    timed: dict[str, Callable[[int], object]] = {"raw gather": raw_gather(ways["from the cache"], folder)}
    timed |= {name: segments.__getitem__ for name, segments in batches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(ROUNDS):
        for name, make in timed.items():
            begin = time.perf_counter()
            for n in range(number * BATCHES, (number + 1) * BATCHES):
                make(n % len(batches["from memory"]))
            seconds[name].append((time.perf_counter() - begin) / BATCHES)
    raw = statistics.median(seconds["raw gather"][5:])
    print(
        f"{folder.name}: {episodes} episodes of {length} steps, row of {sum(v.nbytes for v in observation.values())} B"
    )
    figures = {}
    for name, values in seconds.items():
        low, middle, high = np.quantile(values[5:], [0.25, 0.5, 0.75])
        figures[name] = {"steps_per_second": LANES * STEPS / middle, "ratio": raw / middle}
        spread = f"{1e6 * low:.0f}-{1e6 * high:.0f}"
        print(
            f"  {name:20} {LANES * STEPS / middle:12,.0f} steps/s   {spread:>12} us a batch   ratio {raw / middle:.2f}"
        )
    print(f"  goal: from memory or the cache at least {goal} of the raw gather\n")
    return figures


def record(folder: Path, observation: dict[str, np.ndarray], episodes: int, length: int) -> None:
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(
        folder,
        {
            "observation_space": {key: box_of(value[None]) for key, value in observation.items()},
            "action_space": box_of(np.zeros((1, 6), np.float32)),
        },
        flush_seconds=1e9,
    )
    for _ in range(episodes):
        seen = {key: blobs(rng, (length + 1, *value.shape), value.dtype) for key, value in observation.items()}
        actions = rng.standard_normal((length, 6)).astype(np.float32)
        writer.add(Episode(seen, actions, rng.standard_normal(length), False, True))
    writer.finish()


def blobs(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Noise, or for images a flat background with a square that moves: about as compressible as rendered frames."""
    if dtype != np.uint8:
        return rng.standard_normal(shape).astype(dtype)
    frames = np.full(shape, 90, np.uint8)
    for t, frame in enumerate(frames):
        frame[t % 50 : t % 50 + 14, 10:30] = rng.integers(0, 256, (14, 20, 3), dtype=np.uint8) // 32 * 32
    return frames


def segments_of(episodes: Episodes) -> Segments:
    return Segments(episodes, LaneSchedule(episodes.num_frames, LANES, STEPS))


def raw_gather(episodes: Episodes, folder: Path) -> Callable[[int], object]:
    """One gather from a memory map, of what the batches consist of mostly; the row numbers are made before."""
    name, dtype = ("images.u8", np.uint8) if episodes.images is not None else ("frames.f32", np.float32)
    width = episodes.layout.pixels or episodes.layout.row_dim
    (path,) = (folder / "cache").glob(f"*/{name}")
    mapped = np.memmap(path, dtype, mode="r").reshape(-1, width)
    schedule = LaneSchedule(episodes.num_frames, LANES, STEPS)
    rows = []
    for n in range(schedule.batches_per_epoch):
        frames = schedule.batch(n)
        rows.append(np.where(frames.episode < 0, 0, episodes.starts[frames.episode] + frames.step))
    return lambda n: torch.from_numpy(mapped.take(rows[n], axis=0))


if __name__ == "__main__":
    main()
