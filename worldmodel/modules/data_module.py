"""Datasets for the Trainer: read, split by episode, measured, and cut into the lanes of truncated BPTT."""

import logging
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from worldmodel.batch import Batch
from worldmodel.data.episode import Source
from worldmodel.data.episodes import Episodes, Layout, Split, split_episodes
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.load import Loaded, NonFinite, load, load_compressed, only_finite
from worldmodel.data.readers import Alignment, Format, open_source
from worldmodel.data.segments import Segments, StreamSampler
from worldmodel.data.statistics import Moments, observation_moments, step_statistics
from worldmodel.envs.collect import CollectOptions, collect_once
from worldmodel.errors import UserError, choose
from worldmodel.tasks.sequences import Task, task_of

log = logging.getLogger(__name__)

WORKER_SECONDS = 45  # that a batch may take of the workers; more, and one of them hangs


class EpisodeDataModule(pl.LightningDataModule):
    """Episodes as lanes of consecutive segments.

    Training walks an endless stream of batches whose only state is `position`, the number of the next one; the
    TruncatedBPTT callback moves it on, and checkpoints keep it. Lanes are divided among the ranks.

    Args:
        path: the dataset: a folder of `worldmodel collect`, or one of the other formats (see data.readers).
        collect: what to collect where nothing is at the path yet; null: the dataset must be there.
        format: of the dataset; null: found out.
        alignment: of npz rows: `next` where the action of a row follows its observation, `previous` where it led to it.
        schema: of a lab's own HDF5 file: a mapping, or a YAML file with one.
        observations: the keys of dict observations that are used; null: all.
        steps: T, the segment length: the horizon of truncated BPTT.
        lanes: B, the batch size over all ranks together; a multiple of the number of ranks.
        val_fraction: of the episodes, for validation; at least one.
        test_fraction: of the episodes, for the test; at least one where it is not 0.
        test_path: a dataset of its own for the test, of the same spaces and format; test_fraction does not count then.
        test_collect: what to collect where nothing is at test_path yet.
        split_seed: which episodes go where.
        seed: of the order of the episodes.
        non_finite: an episode with a NaN or infinity is an error, or is left out.
        memory_gb: a dataset that takes more, unpacked, is read from a cache on disk.
        cache_dir: of that cache; null: beside the data.
        decode: images stay compressed on disk, and batches decode theirs: slower, without a cache (use num_workers).
        num_workers: processes that make batches ahead; 0 is fastest where nothing is to be decoded.
        whole_episodes: a training segment holds one episode from its start to its end, and padding.
        accept_changed: a fit goes on from a checkpoint although the dataset's files are not those that it saw.
    """

    def __init__(
        self,
        path: Path,
        collect: CollectOptions | None = None,
        format: Format | None = None,
        alignment: Alignment | None = None,
        schema: dict[str, Any] | str | None = None,
        observations: list[str] | str | None = None,
        steps: int = 32,
        lanes: int = 16,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        test_path: Path | None = None,
        test_collect: CollectOptions | None = None,
        split_seed: int = 0,
        seed: int = 0,
        non_finite: NonFinite = "error",
        memory_gb: float = 2.0,
        cache_dir: Path | None = None,
        decode: bool = False,
        num_workers: int = 0,
        whole_episodes: bool = False,
        accept_changed: bool = False,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.collect = collect
        self.reading: dict[str, Any] = {"format": format, "alignment": alignment, "schema": schema}
        self.observations = [observations] if isinstance(observations, str) else observations
        self.steps, self.lanes = steps, lanes
        self.test_path, self.test_collect = test_path, test_collect
        self.val_fraction, self.test_fraction = val_fraction, test_fraction if test_path is None else 0.0
        self.split_seed, self.seed = split_seed, seed
        self.non_finite: NonFinite = non_finite
        self.memory_gb, self.cache_dir, self.decode = memory_gb, cache_dir, decode
        self.num_workers, self.whole_episodes, self.accept_changed = num_workers, whole_episodes, accept_changed
        self.position = 0
        for name, value, least in (("steps", steps, 1), ("lanes", lanes, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise UserError(f"data.{name} is {value}: it must be at least {least}")
        if test_collect is not None and test_path is None:
            raise UserError("data.test_collect says what to collect, data.test_path must say where to")
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                f"data.val_fraction is {val_fraction}, data.test_fraction {test_fraction}: the first must be above 0,"
                " the second may be 0, and something must be left to train on"
            )

    # --- what the data is ----------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> Source:
        """The dataset; collected first where it is missing and `collect` says what."""
        return self._open(self.path, self.collect)

    @cached_property
    def test_source(self) -> Source:
        """What the test episodes are of."""
        return self.source if self.test_path is None else self._open(self.test_path, self.test_collect)

    def _open(self, path: Path, collect: CollectOptions | None) -> Source:
        if collect is not None:
            collect_once(collect, path)
        return open_source(path, **self.reading, observations=self.observations)

    @cached_property
    def layout(self) -> Layout:
        """What the entries of observations and actions are."""
        there = self.source.observation_space
        for key in self.observations or ():
            choose("observation key", key, there)
        keys = self.observations or list(there)
        return Layout({key: there[key] for key in keys}, self.source.action_space)

    @property
    def obs_dim(self) -> int:
        """Entries of an observation as a vector: vectors, then pixels."""
        return self.layout.obs_dim

    @property
    def images(self) -> list[tuple[int, int, int]]:
        """(H, W, C) of each image in an observation."""
        return list(self.layout.images.values())

    @property
    def action_dim(self) -> int:
        """Entries of an action as a vector, one-hot where discrete."""
        return self.layout.action_dim

    @property
    def env_id(self) -> str:
        """Where the data comes from, for names: the environment, or the folder."""
        return self.source.provenance.get("env_id") or self.path.stem

    @cached_property
    def task(self) -> Task | None:
        """The sequence task that the data is of, if it is of one."""
        if self.collect is not None:  # which the dataset is held against: so it need not be there yet
            return task_of([dict(self.collect)])
        return task_of(self.source.provenance.get("collected") or [])

    @cached_property
    def splits(self) -> dict[Split, Episodes]:
        """The episodes of each split; a function of the data, the fractions and `split_seed`."""
        episodes = self._load(self.source, self.path)
        chosen = split_episodes(len(episodes), self.val_fraction, self.test_fraction, self.split_seed)
        splits: dict[Split, Episodes] = {name: episodes.select(indices) for name, indices in chosen.items()}
        if self.test_path is not None:
            self._check_spaces(self.test_source, self.test_path)
            splits["test"] = self._load(self.test_source, self.test_path)
        return splits

    def _check_spaces(self, source: Source, path: Path) -> None:
        """A UserError unless the dataset has the training data's spaces."""
        for name in ("observation_space", "action_space"):
            here, there = getattr(self.source, name), getattr(source, name)
            if here != there:
                raise UserError(f"data.test_path {path} has another {name} ({there}) than {self.path} ({here})")

    def _load(self, source: Source, path: Path) -> Episodes:
        return only_finite(self._read(source, path), path, self.non_finite)

    def _read(self, source: Source, path: Path) -> Loaded:
        if source.provenance.get("complete") is False:
            log.warning("%s is unfinished: its recording or conversion broke off; using what is there", path)
        if self.decode:
            if not self.images:
                raise UserError(f"data.decode is for images, and {path} holds none: leave it out")
            if source.format != "worldmodel":
                raise UserError(
                    f"data.decode reads folders of this program, {path} is of the format {source.format}:"
                    f" leave it out, or use `worldmodel data convert {path} --out DIR` first"
                )
            return load_compressed(path, self.layout)
        path = path.resolve()
        beside = (path if path.is_dir() else path.parent) / ".worldmodel-cache"
        cache = beside / path.name
        if self.cache_dir is not None:  # which may serve several datasets of one name
            cache = self.cache_dir / f"{path.name}-{sha256(str(path).encode()).hexdigest()[:8]}"
        return load(source, self.memory_gb * 2**30, cache, self.layout)

    @cached_property
    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of the training split's observations, actions and rewards, for normalisation.

        One-hot entries keep their units: mean 0, deviation 1. Pixels have a mean each, and their image's deviation. A
        reward's deviation is taken as at least an eighth of its range: one that comes once an episode would otherwise
        outweigh all else by its square.
        """
        train = self.splits["train"]
        continuous, continuous_action = self.layout.continuous()
        continuous = np.append(continuous, np.ones(self.layout.pixels, bool))
        steps = step_statistics(train)
        mean, std = _mean_std(steps.reward, np.ones(1, bool))
        return {
            "obs": _mean_std(observation_moments(train), continuous),
            "action": _mean_std(steps.action, np.full(self.action_dim, continuous_action)),
            "reward": (mean, std.clamp(min=steps.reward_range / 8)),
        }

    # --- batches -------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        segments = self.training_segments()
        if segments.schedule.padding > 0.3 and not self.whole_episodes:
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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As Lightning does it, but on the CPU, where a batch is already, without looking at each of its parts."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Join pixels to the vectors, now that they are where the model is: uint8 travels at a quarter of the size."""
        pixels = batch.pop("pixels", None)
        if pixels is not None:
            batch["obs"] = torch.cat([batch["obs"], pixels.to(batch["obs"].dtype)], dim=-1)
        return batch

    def training_segments(self) -> Segments:
        """The training's batches by their position, of this rank's lanes, before any transfer."""
        return self._segments("train", shuffle=True)

    def acknowledge(self, position: int) -> None:
        """Batch number `position` was trained on; the next is the one behind it."""
        self.position = position + 1

    def state_dict(self) -> dict[str, Any]:
        spaces = {"observation_space": self.layout.observation_space, "action_space": self.layout.action_space}
        data = {"env_id": self.env_id, **spaces, "collect": self.source.provenance.get("collect")}
        return {"position": self.position, "stream": self._stream(), "data": data}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the position, if it means the same frames as it did.

        Raises:
            UserError: in a fit, if anything differs that decides which frames a batch holds.
        """
        then, now = state_dict["stream"], self._stream()
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if self.accept_changed:
            now["files"] = then["files"]
        elif then["files"] != now["files"]:
            raise UserError(
                f"the files of {self.path} are not those that the checkpoint was trained on ({now['files']}, were"
                f" {then['files']}): bring them back, or go on with these, in which the batches differ, with"
                " --data.accept_changed true"
            )
        differ = [f"data.{name} is {now[name]}, was {value}" for name, value in then.items() if now[name] != value]
        if differ:
            raise UserError(
                f"the checkpoint was trained on another stream of data, and cannot go on ({'; '.join(differ)}):"
                " use the config.yaml of its run"
            )
        self.position = state_dict["position"]

    def _stream(self) -> dict[str, Any]:
        """What decides which frames batch n holds."""
        names = ("steps", "lanes", "whole_episodes", "seed", "split_seed", "val_fraction", "test_fraction")
        names += ("non_finite", "observations")
        return {name: getattr(self, name) for name in names} | {"files": self.source.fingerprint[:12]}

    def _segments(self, split: Split, shuffle: bool = False) -> Segments:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.lanes % world_size:
            raise UserError(f"data.lanes {self.lanes} cannot be divided among {world_size} ranks: choose a multiple")
        episodes = self.splits[split]
        if not len(episodes):
            own = ", or name data of its own with --data.test_path" if split == "test" else ""
            raise UserError(f"the {split} split is empty: train with --data.{split}_fraction above 0{own}")
        fewest = min(self.lanes, -(-len(episodes) // world_size) * world_size)
        lanes = self.lanes if shuffle else fewest  # without training, a lane without episodes is only waste
        whole = shuffle and self.whole_episodes
        if whole and self.steps < (longest := int(episodes.num_frames.max())):
            raise UserError(
                f"whole episodes (--model.gradient bptt) do not fit segments of {self.steps} steps: --data.steps"
                f" {longest} is enough for the longest, or --model.gradient rtrl needs no long segments"
            )
        schedule = LaneSchedule(episodes.num_frames, lanes, self.steps, self.seed, shuffle, whole)
        return Segments(episodes, schedule, rank, world_size)

    def _loader(self, segments: Segments, sampler: StreamSampler | None = None) -> DataLoader[Batch]:
        # A generator of its own: otherwise every new iterator draws from the global one, and validation would change
        # the random numbers of the training.
        generator = torch.Generator().manual_seed(self.seed)
        workers: dict[str, Any] = {"prefetch_factor": 4, "timeout": WORKER_SECONDS} if self.num_workers else {}
        workers["num_workers"] = self.num_workers
        workers["pin_memory"] = bool(self.trainer) and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(segments, batch_size=None, sampler=sampler, generator=generator, **workers)


def _mean_std(moments: Moments, continuous: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, std = np.where(continuous, moments.mean, 0.0), np.where(continuous, np.sqrt(moments.var), 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
