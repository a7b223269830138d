"""Datasets for the Trainer: read, split by episode, measured, and cut into the lanes of truncated BPTT."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader

from worldmodel.batch import Batch
from worldmodel.data import spaces
from worldmodel.data.episodes import Episodes
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.segments import Segments, StreamSampler
from worldmodel.data.store import MANIFEST, load_episodes, read_manifest
from worldmodel.envs.collect import DEFAULTS, CollectOptions, collect
from worldmodel.errors import UserError

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]


class EpisodeDataModule(pl.LightningDataModule):
    """Episodes as lanes of consecutive segments.

    Training walks an endless stream of batches whose only state is `position`, the number of the next one; the
    TruncatedBPTT callback moves it on, and checkpoints keep it. Lanes are divided among the ranks.

    Args:
        path: the dataset's folder.
        collect: what to collect where the folder has no dataset yet; null: the dataset must be there.
        steps: T, the segment length: the horizon of truncated BPTT.
        lanes: B, the batch size over all ranks together; a multiple of the number of ranks.
        val_fraction: of the episodes, for validation; at least one.
        test_fraction: of the episodes, for the test; at least one where it is not 0.
        split_seed: which episodes go where.
        seed: of the order of the episodes.
        non_finite: an episode with a NaN or infinity is an error, or is left out.
        num_workers: processes that make batches; 0 is fastest for vectors.
    """

    def __init__(
        self,
        path: Path,
        collect: CollectOptions | None = None,
        steps: int = 32,
        lanes: int = 16,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        seed: int = 0,
        non_finite: Literal["error", "skip"] = "error",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.collect = collect
        self.steps, self.lanes = steps, lanes
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed, self.seed = split_seed, seed
        self.non_finite: Literal["error", "skip"] = non_finite
        self.num_workers = num_workers
        self.position = 0
        for name, value, least in (("steps", steps, 1), ("lanes", lanes, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise UserError(f"data.{name} is {value}: it must be at least {least}")
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                f"data.val_fraction is {val_fraction}, data.test_fraction {test_fraction}: the first must be above 0,"
                " the second may be 0, and something must be left to train on"
            )

    # --- what the data is ----------------------------------------------------------------------------------------

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The dataset's manifest; collects the dataset first where it is missing and `collect` says what."""
        if self.collect is not None:
            # ranks that torchrun starts side by side must not collect twice
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.parent / f".{self.path.name}.lock"):
                if not (self.path / MANIFEST).exists():
                    asked = f"{self.collect['steps']} steps of {self.collect['env_id']}"
                    print(f"no dataset at {self.path} yet: collecting {asked}", flush=True)
                    collect(self.collect, self.path, keep_interrupted=False)
            self._check_collected(read_manifest(self.path), {**DEFAULTS, **self.collect})
        return read_manifest(self.path)

    @property
    def obs_dim(self) -> int:
        """Entries of an observation as a vector."""
        return spaces.num_features(self.manifest["observation_space"])

    @property
    def action_dim(self) -> int:
        """Entries of an action as a vector, one-hot where discrete."""
        return spaces.num_features(self.manifest["action_space"])

    @property
    def env_id(self) -> str:
        """Where the data comes from, for names: the environment, or the folder."""
        return self.manifest.get("collect", {}).get("env_id", self.path.name)

    @cached_property
    def splits(self) -> dict[Split, Episodes]:
        """The episodes of each split; a function of the data, the fractions and `split_seed`."""
        _ = self.manifest
        episodes, skipped = load_episodes(self.path, self.non_finite)
        if skipped:
            log.warning("%s: left out %d episodes that hold a NaN or an infinity", self.path, skipped)
        counts = {name: _count(len(episodes), getattr(self, f"{name}_fraction")) for name in ("val", "test")}
        if len(episodes) - sum(counts.values()) < 1:
            raise UserError(
                f"{self.path} holds {len(episodes)} episode{'s' * (len(episodes) > 1)}: too few to split into training,"
                f" {counts['val']} for validation and {counts['test']} for the test; collect more episodes"
                " (--data.test_fraction 0 needs one fewer)"
            )
        order = np.random.default_rng(self.split_seed).permutation(len(episodes))
        val, test, train = np.split(order, [counts["val"], counts["val"] + counts["test"]])
        return {"train": episodes.select(train), "val": episodes.select(val), "test": episodes.select(test)}

    @cached_property
    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of the training split's observations, actions and rewards, for normalisation.

        One-hot entries keep their units: mean 0, deviation 1. A reward's deviation is taken as at least an eighth of
        its range: one that comes once an episode would otherwise outweigh all else by its square.
        """
        train = self.splits["train"]
        has_step = np.ones(len(train.obs), dtype=bool)
        has_step[train.starts + train.num_frames - 1] = False
        obs_space, action_space = self.manifest["observation_space"], self.manifest["action_space"]
        reward = train.reward[has_step, None]
        mean, std = _mean_std(reward, True)
        return {
            "obs": _mean_std(train.obs, spaces.is_continuous(obs_space)),
            "action": _mean_std(train.action[has_step], spaces.is_continuous(action_space)),
            "reward": (mean, std.clamp(min=float(np.ptp(reward)) / 8)),
        }

    # --- batches -------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        segments = self._segments("train", shuffle=True)
        if segments.schedule.padding > 0.3:
            log.warning(
                "%.0f%% of a training epoch is padding: %d episodes do not fill %d lanes evenly; "
                "fewer lanes (--data.lanes) waste less",
                100 * segments.schedule.padding,
                len(segments.episodes),
                self.lanes,
            )
        return self._loader(segments, StreamSampler(lambda: self.position, len(segments)))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("val"))

    def acknowledge(self, position: int) -> None:
        """Batch number `position` was trained on; the next is the one behind it."""
        self.position = position + 1

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "stream": self._stream()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the position, if it means the same frames as it did.

        Raises:
            UserError: in a fit, if anything differs that decides which frames a batch holds.
        """
        then, now = state_dict["stream"], self._stream()
        differ = [f"data.{name} is {now[name]}, was {value}" for name, value in then.items() if now[name] != value]
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if differ:
            raise UserError(
                f"the checkpoint was trained on another stream of data, and cannot go on ({'; '.join(differ)}):"
                " use the config.yaml of its run"
            )
        self.position = state_dict["position"]

    def _stream(self) -> dict[str, Any]:
        """What decides which frames batch n holds."""
        names = ("steps", "lanes", "seed", "split_seed", "val_fraction", "test_fraction", "non_finite")
        files = [file["sha256"][:12] for file in self.manifest["files"]]
        return {name: getattr(self, name) for name in names} | {"files": " ".join(files)}

    def _segments(self, split: Split, shuffle: bool = False) -> Segments:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.lanes % world_size:
            raise UserError(f"data.lanes {self.lanes} cannot be divided among {world_size} ranks: choose a multiple")
        episodes = self.splits[split]
        if not len(episodes):
            raise UserError(f"the {split} split is empty: raise --data.{split}_fraction above 0")
        fewest = min(self.lanes, -(-len(episodes) // world_size) * world_size)
        lanes = self.lanes if shuffle else fewest  # without training, a lane without episodes is only waste
        schedule = LaneSchedule(episodes.num_frames, lanes, self.steps, self.seed, shuffle)
        return Segments(episodes, schedule, rank, world_size)

    def _loader(self, segments: Segments, sampler: StreamSampler | None = None) -> DataLoader[Batch]:
        # A generator of its own: otherwise every new iterator draws from the global one, and validation would change
        # the random numbers of the training.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(segments, batch_size=None, sampler=sampler, num_workers=self.num_workers, generator=generator)

    def _check_collected(self, manifest: dict[str, Any], asked: dict[str, Any]) -> None:
        have = manifest.get("collect", {})
        differ = [
            f"{key} is {have.get(key)!r}, asked is {asked[key]!r}" for key in asked if have.get(key) != asked[key]
        ]
        if differ:
            raise UserError(
                f"the dataset at {self.path} is not what data.collect asks for ({'; '.join(differ)}):"
                " choose another --data.path, remove the folder, or use it as it is with --data.collect null"
            )


def _count(episodes: int, fraction: float) -> int:
    return max(1, round(episodes * fraction)) if fraction > 0 else 0


def _mean_std(values: np.ndarray, continuous: bool) -> tuple[Tensor, Tensor]:
    if not continuous:
        return torch.zeros(values.shape[1]), torch.ones(values.shape[1])
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
