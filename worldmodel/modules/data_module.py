"""Datasets for the Trainer: collected, split by episode, measured, and cut into the lanes of truncated BPTT."""

import logging
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from worldmodel.batch import Batch
from worldmodel.data.episode import Source
from worldmodel.data.episodes import Episodes, Layout
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.load import NonFinite, cache_folder, load, load_compressed, only_finite
from worldmodel.data.readers import Alignment, check_format, open_source
from worldmodel.data.segments import Segments, StreamSampler
from worldmodel.data.spaces import Json, check_leaf
from worldmodel.data.splits import Split, check_split, folds_of_frames, split
from worldmodel.data.statistics import normalization
from worldmodel.envs.collect import CollectOptions, collect_once
from worldmodel.errors import UserError, at_least
from worldmodel.modules.stream import OPTIONS, same_files
from worldmodel.tasks.sequences import Task, task_of

log = logging.getLogger(__name__)

WORKER_SECONDS = 45  # a batch that takes longer than this means that a worker hangs


class EpisodeDataModule(pl.LightningDataModule):
    """Episodes as lanes of consecutive segments.

    Training walks an endless stream of batches whose only state is `position`, the number of the next one; the
    TruncatedBPTT callback advances it, and checkpoints keep it. Lanes are divided among the ranks. What is to be
    collected is collected by `prepare_data`; everything else is read when it is first asked for.

    Args:
        path: Dataset: a folder of `worldmodel collect`, or one of the other formats (see data.readers).
        collect: What to collect where there is nothing at the path yet; null: the dataset must exist.
        format: Format of the dataset, or a reader of your own, file.py:name; null: detected.
        alignment: For npz rows: `next` if a row's action follows its observation, `previous` if it led to it.
        schema: Where your own HDF5, npz or zarr file or table holds what: a mapping, or a YAML file with one.
        observations: Keys of the observations to use, as `worldmodel data info` lists them; null: all.
        action: Name of what is the action in the files (or names, side by side); null: action or actions.
        reward: Name of what is the reward in the files; null: reward or rewards, zeros where there is none.
        rename: New names for keys of the observations, by the old ones.
        skip: Keys to leave out, by name, group or pattern (images.*); files of them alone are not opened.
        image_crop: Part of every image to keep: top, left, height, width in pixels; null: all of it.
        image_size: Size to scale images to: the side of a square, or height, width; null: as they are.
        steps: Segment length T in steps, the horizon of truncated BPTT.
        lanes: Number of lanes B, the batch size over all ranks together; a multiple of the number of ranks.
        val_fraction: Share of the episodes for validation; at least one episode.
        test_fraction: Share of the episodes for the test; at least one episode where it is not 0.
        test_path: Dataset for the test alone, of the same spaces and format, which replaces test_fraction; null: none.
        test_schema: The schema of test_path, such as other columns or rows of the same file; null: as schema.
        test_collect: What to collect where there is nothing at test_path yet; null: that dataset must exist.
        folds: Number of folds for cross-validation, which replaces val_fraction: whole episodes or, where there are
            fewer than folds, consecutive blocks of each; null: none.
        fold: The fold that validates, from 0.
        split_seed: Seed of the split into training, validation and test.
        seed: Seed of the order of the episodes in training.
        non_finite: Whether an episode with a NaN or infinity is an error, or is skipped.
        memory_gb: Largest unpacked dataset that is held in memory, in gigabytes; a larger one is cached on disk.
        cache_dir: Folder of that cache; null: beside the data.
        decode: Keep images compressed on disk and decode those of a batch: slower, without a cache (use num_workers).
        num_workers: Number of processes that prepare batches; 0 is fastest where nothing is decoded.
        crop: Length in frames of crops, a multiple of `steps`, from random places of the episodes, on which training
            starts afresh: for few long recordings, which fill few lanes; null: whole episodes.
        whole_episodes: Whether a training segment holds one episode from start to end, and padding.
        accept_changed: Whether a fit may resume from a checkpoint although the dataset's files have changed.
    """

    def __init__(
        self,
        path: Path,
        collect: CollectOptions | None = None,
        format: str | None = None,
        alignment: Alignment | None = None,
        schema: dict[str, Any] | str | None = None,
        observations: list[str] | str | None = None,
        action: list[str] | str | None = None,
        reward: str | None = None,
        rename: dict[str, str] | str | None = None,
        skip: list[str] | str | None = None,
        image_crop: list[int] | str | None = None,
        image_size: int | list[int] | str | None = None,
        steps: int = 32,
        lanes: int = 16,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        test_path: Path | None = None,
        test_schema: dict[str, Any] | str | None = None,
        test_collect: CollectOptions | None = None,
        folds: int | None = None,
        fold: int = 0,
        split_seed: int = 0,
        seed: int = 0,
        non_finite: NonFinite = "error",
        memory_gb: float = 2.0,
        cache_dir: Path | None = None,
        decode: bool = False,
        num_workers: int = 0,
        crop: int | None = None,
        whole_episodes: bool = False,
        accept_changed: bool = False,
    ) -> None:
        super().__init__()
        self.path, self.collect, self.test_collect = Path(path), collect, test_collect
        self.test_path = None if test_path is None else Path(test_path)
        self.observations = [observations] if isinstance(observations, str) else observations
        self.action, self.reward, self.rename, self.skip = action, reward, rename, skip
        self.reading: dict[str, Any] = {"format": format, "alignment": alignment, "schema": schema}
        self.reading |= {"observations": observations, "action": action, "reward": reward}
        self.reading |= {"rename": rename, "skip": skip, "image_crop": image_crop, "image_size": image_size}
        self.image_crop, self.image_size = image_crop, image_size
        self.test_reading = self.reading | ({} if test_schema is None else {"schema": test_schema})
        self.steps, self.lanes = steps, lanes
        self.val_fraction, self.test_fraction = val_fraction, test_fraction if test_path is None else 0.0
        self.folds, self.fold = folds, fold
        self.split_seed, self.seed, self.position = split_seed, seed, 0
        self.non_finite: NonFinite = non_finite
        self.memory_gb, self.cache_dir, self.decode = memory_gb, cache_dir, decode
        self.num_workers, self.accept_changed = num_workers, accept_changed
        self.crop, self.whole_episodes = crop, whole_episodes
        self._origins: dict[str, list[int | float]] | None = None  # those of a model's data; None: of these
        at_least(1, "data.", steps=steps, lanes=lanes)
        at_least(0, "data.", num_workers=num_workers)
        if crop is not None and (crop < 1 or crop % steps):
            raise UserError(f"data.crop is {crop}: it must be a multiple of the segment, data.steps {steps}, or null")
        if test_path is None and not (test_collect is None and test_schema is None):
            raise UserError("test_collect and test_schema say what the test's data is, data.test_path must say where")
        if format is not None:
            check_format(format)
        check_split(val_fraction, test_fraction, folds, fold)

    def prepare_data(self) -> None:
        """Collect what is missing; raise UserError if a dataset there was collected otherwise."""
        for path, options in ((self.path, self.collect), (self.test_path, self.test_collect)):
            if path is not None and options is not None:
                collect_once(options, path)

    def setup(self, stage: str) -> None:
        """A new fit walks the stream from its beginning, and its model takes what it needs to know of the data.

        A checkpoint's position replaces the beginning.
        """
        module = None if self.trainer is None else self.trainer.lightning_module
        if stage != "fit" or self.trainer is None:
            if (spaces := getattr(module, "observation_space", None)) is not None:
                self.take_origins(spaces)
            return
        if self.trainer.global_step == 0:
            self.position = 0
        if take := getattr(module, "take_statistics", None):
            take(self)  # before the setup of callbacks, which may copy the module

    @cached_property
    def source(self) -> Source:
        """The dataset."""
        return self._open(self.path, self.collect, self.reading)

    @cached_property
    def test_source(self) -> Source:
        """The dataset of the test episodes."""
        return self._open(self.test_path, self.test_collect, self.test_reading) if self.test_path else self.source

    def _open(self, path: Path, collect: CollectOptions | None, reading: dict[str, Any]) -> Source:
        if collect is not None and not path.exists():
            raise UserError(f"no dataset at {path} yet: call EpisodeDataModule.prepare_data() to collect it")
        return open_source(path, **reading)

    @property
    def layout(self) -> Layout:
        """What the entries of observations and actions are; once they are read, with what is subtracted from them."""
        read = self.__dict__.get("episodes")
        return self._declared.shifted(self._origins or {}) if read is None else read.layout

    @cached_property
    def _declared(self) -> Layout:
        return Layout(self.source.observation_space, self.source.action_space)

    def take_origins(self, spaces: dict[str, Json]) -> None:
        """Subtract from observations what was subtracted from those of a model's data, whose spaces these are."""
        for key, leaf in spaces.items():
            check_leaf(leaf, f"the checkpoint's observation space, {key}")
        self._origins = Layout(spaces, {}).origins
        if "episodes" in self.__dict__ and self.layout.origins != self._origins:
            for name in ("episodes", "splits", "statistics"):
                self.__dict__.pop(name, None)

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
        """The environment that the data comes from, or the folder's name."""
        return self.source.provenance.get("env_id") or self.path.stem

    @cached_property
    def task(self) -> Task | None:
        """The sequence task that the data comes from; None for other data."""
        return task_of([dict(self.collect)] if self.collect else self.source.provenance.get("collected") or [])

    @cached_property
    def episodes(self) -> Episodes:
        """All episodes of the dataset, in its order."""
        return self._load(self.source, self.path, self._origins)

    @cached_property
    def splits(self) -> dict[Split, Episodes]:
        """The episodes of each split; a function of the data, the fractions, the fold and `split_seed`."""
        shares = self.val_fraction, self.test_fraction
        splits = split(self.episodes, *shares, self.folds, self.fold, self.split_seed)
        if self.test_path is not None:
            for name in ("observation_space", "action_space"):
                own, test = getattr(self.source, name), getattr(self.test_source, name)
                if own != test:
                    raise UserError(
                        f"data.test_path {self.test_path} has another {name} ({test}) than {self.path} ({own})"
                    )
            splits["test"] = self._load(self.test_source, self.test_path, self.episodes.layout.origins)
        return splits

    def _load(self, source: Source, path: Path, origins: dict[str, list[int | float]] | None) -> Episodes:
        if source.provenance.get("complete") is False:
            log.warning("%s is incomplete: its recording or conversion was interrupted; using what it holds", path)
        if self.decode:
            if not self.images:
                raise UserError(f"data.decode is for images, and {path} holds none: leave it out")
            if source.format != "worldmodel":
                raise UserError(
                    f"data.decode reads folders of this program, {path} is of the format {source.format}:"
                    f" leave it out, or use `worldmodel data convert {path} --out DIR` first"
                )
            if self.rename or self.image_crop is not None or self.image_size is not None:
                raise UserError(
                    "data.decode reads images as they are stored: leave out rename, image_crop and image_size, or use"
                    f" `worldmodel data convert {path} --out DIR` with them first"
                )
            loaded = load_compressed(path, self.layout, origins)
        else:
            part = "" if source is self.source else "test"  # which may be the same file by another schema
            cache = cache_folder(path, self.cache_dir) / part
            loaded = load(source, self.memory_gb * 2**30, cache, self.layout, origins)
        return only_finite(loaded, path, self.non_finite)

    @cached_property
    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of the training split's observations, actions and rewards."""
        return normalization(self.splits["train"])

    def train_dataloader(self) -> DataLoader[Batch]:
        segments = self.training_segments()
        if segments.schedule.padding > 0.3 and not self.whole_episodes:
            why = (
                f"{len(segments.episodes)} episodes do not fill {self.lanes} lanes evenly; fewer lanes (--data.lanes)"
                " waste less, or crops of long episodes (--data.crop)"
                if self.crop is None
                else f"many episodes are shorter than the {self.crop} frames of --data.crop; shorter crops waste less"
            )
            log.warning("%.0f%% of a training epoch is padding: %s", 100 * segments.schedule.padding, why)
        return self._loader(segments, StreamSampler(lambda: self.position, len(segments)))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._segments("val"))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As Lightning does, but nothing on the CPU, where a batch is already."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Join pixels to the vectors on the model's device: uint8 travels at a quarter of the size."""
        pixels = batch.pop("pixels", None)
        if pixels is not None:
            batch["obs"] = torch.cat([batch["obs"], pixels.to(batch["obs"].dtype)], dim=-1)
        return batch

    def training_segments(self) -> Segments:
        """The training batches by their position, of this rank's lanes, before any transfer."""
        return self._segments("train", shuffle=True)

    def acknowledge(self, position: int) -> None:
        """Advance past batch number `position`, which was trained on."""
        self.position = position + 1

    def state_dict(self) -> dict[str, Any]:
        spaces = {"observation_space": self.layout.observation_space, "action_space": self.layout.action_space}
        data = {"env_id": self.env_id, **spaces, "collect": self.source.provenance.get("collect")}
        return {"position": self.position, "stream": self._stream(), "data": data}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a checkpoint's position; raise UserError if a batch would hold other frames than before."""
        self.take_origins(state_dict.get("data", {}).get("observation_space", {}))
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        same = same_files(state_dict["stream"], self._stream(), self.path, self.accept_changed)
        self.position = state_dict["position"]
        if not same:  # at the start of an epoch, which continues no episode that a lane was in
            epoch = len(self.training_segments())
            self.position = -(-self.position // epoch) * epoch
            log.warning(
                "the files of %s are not those that the checkpoint was trained on: every lane starts an episode, from"
                " zeros, and an episode is in the split that it was in if others were only added behind it",
                self.path,
            )

    def _stream(self) -> dict[str, Any]:
        stream = {name: getattr(self, name) for name in OPTIONS} | {"files": self.source.fingerprint[:12]}
        if self.folds is not None:
            how = len(self.episodes), self.folds, self.test_fraction, self.split_seed
            stream["folds_of_frames"] = folds_of_frames(*how)
        return stream

    def _segments(self, split: Split, shuffle: bool = False) -> Segments:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.lanes % world_size:
            raise UserError(f"data.lanes {self.lanes} cannot be divided among {world_size} ranks: choose a multiple")
        episodes = self.splits[split]
        if not len(episodes):
            own = ", or give a dataset of its own with --data.test_path" if split == "test" else ""
            raise UserError(f"the {split} split is empty: train with --data.{split}_fraction above 0{own}")
        fewest = min(self.lanes, -(-len(episodes) // world_size) * world_size)
        lanes = self.lanes if shuffle else fewest  # in evaluation, a lane without episodes is only waste
        whole, crop = shuffle and self.whole_episodes, self.crop if shuffle else None
        longest = min(int(episodes.num_frames.max()), crop or sys.maxsize)
        if whole and self.steps < longest:
            raise UserError(
                f"whole episodes (--model.gradient bptt) do not fit segments of {self.steps} steps: --data.steps"
                f" {longest} is enough for the longest, or --model.gradient rtrl needs no long segments"
            )
        schedule = LaneSchedule(episodes.num_frames, lanes, self.steps, self.seed, shuffle, whole, crop)
        return Segments(episodes, schedule, rank, world_size)

    def _loader(self, segments: Segments, sampler: StreamSampler | None = None) -> DataLoader[Batch]:
        # otherwise each new iterator draws from the global generator, and validation would change the training
        generator = torch.Generator().manual_seed(self.seed)
        workers: dict[str, Any] = {"num_workers": self.num_workers, "worker_init_fn": _silence}
        workers |= {"prefetch_factor": 4, "timeout": WORKER_SECONDS} if self.num_workers else {}
        workers["pin_memory"] = bool(self.trainer) and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(segments, batch_size=None, sampler=sampler, generator=generator, **workers)


def _silence(worker: int) -> None:
    """Keep the thread that hands tensors to the trainer from showing how it went; batches report errors elsewhere."""
    sys.excepthook = lambda *_: None
