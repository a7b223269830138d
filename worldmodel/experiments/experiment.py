"""`fit`, `validate` and `test`, whatever is trained: a run's folder, loggers, checkpoints, resume."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from worldmodel.callbacks.checkpoints import DurableCheckpointIO
from worldmodel.callbacks.early_stopping import StoppingOptions, used_up
from worldmodel.callbacks.hidden_norm import HiddenNormMonitor
from worldmodel.callbacks.metrics import LOGGED
from worldmodel.errors import UserError
from worldmodel.experiments.callbacks import as_list, callbacks
from worldmodel.experiments.configs import Kind
from worldmodel.experiments.errors import explained
from worldmodel.experiments.loggers import make_loggers
from worldmodel.experiments.monitor import early_stopping
from worldmodel.experiments.more_loggers import check_packages, more_loggers
from worldmodel.experiments.parser import ExperimentParser, add_run_options
from worldmodel.experiments.save_config import SaveConfig
from worldmodel.experiments.start import Start, start_from
from worldmodel.experiments.trainer import FitTrainer, check_trainer, make_trainer
from worldmodel.parts import tell_changes
from worldmodel.runs.checkpoint import (
    check_arguments,
    check_training,
    finished,
    load_weights,
    newest_whole,
    read_checkpoint,
    taken_from,
)
from worldmodel.runs.files import find_checkpoint
from worldmodel.runs.folder import (
    RunLock,
    check_free,
    check_possible,
    file_name,
    find_run,
    hand_down,
    is_first_rank,
    new_folder,
)


class ExperimentCLI(LightningCLI):
    """The subcommands that need a Trainer. Each run gets a folder, loggers and the callbacks of this package.

    Args:
        argv: a subcommand and its options.
    """

    kind: Kind
    model_class: Any  # a LightningModule; its `hparams["rule"]` is part of the run's name
    datamodule_class: Any  # a LightningDataModule with an `env_id`
    trainer_options: ClassVar[dict[str, Any]]  # defaults, beyond those that all kinds share
    about: ClassVar[dict[str, str]]  # `prog` and `description` of the parser
    parses: ClassVar[type[ExperimentParser]] = ExperimentParser
    best: ClassVar[Literal["min", "max"]] = "min"  # of the metrics that runs are compared by
    monitor: ClassVar[str] = "val/loss"  # chooses best.ckpt, unless another metric is asked for
    jobs: ClassVar[tuple[str, ...]] = ("fit", "validate", "test", "predict")
    model: Any
    datamodule: Any

    def __init__(self, argv: list[str]) -> None:
        self.asked = [job for job in self.jobs if job in argv[:1]] or self.jobs
        self.argv = argv
        self.scratch: TemporaryDirectory[str] | None = None  # instead of a run's folder
        self.made: Path | None = None  # the folder, if it is new
        try:
            super().__init__(
                self.model_class,
                self.datamodule_class,
                trainer_class=FitTrainer,
                save_config_callback=None,  # see callbacks()
                seed_everything_default=0,
                trainer_defaults={
                    "log_every_n_steps": 50,
                    "enable_model_summary": False,
                    "use_distributed_sampler": False,  # the data divides itself among the ranks
                    "num_sanity_val_steps": 0,
                    **self.trainer_options,
                },
                parser_class=self.parses,
                parser_kwargs=self.about,
                auto_configure_optimizers=False,
                args=argv,
            )
        except Exception:
            trainer = getattr(self, "trainer", None)
            begun = trainer is not None and (self.subcommand != "fit" or trainer.fit_loop.total_batch_idx >= 0)
            if self.made is not None and not begun:  # what is refused leaves no folder: it would be taken
                shutil.rmtree(self.made, ignore_errors=True)
            raise
        finally:
            if self.scratch is not None:
                self.scratch.cleanup()

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one that is asked for: each parser takes a sixth of a second to build."""
        return {job: skipped for job, skipped in LightningCLI.subcommands().items() if job in self.asked}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_options(parser, self.monitor)
        parser.add_lightning_class_args(HiddenNormMonitor, "hidden")
        parser.add_class_arguments(StoppingOptions, "early_stopping")

    def _parse_ckpt_path(self) -> None:
        """Unlike LightningCLI's, keeps the model's arguments instead of silently taking the checkpoint's."""
        self.checkpoint = None
        config = self.config[self.config["subcommand"]]
        self.resume = bool(config.get("resume")) or config.get("ckpt_path") == "last"
        if self.resume:
            if self.config["subcommand"] != "fit" or config.get("ckpt_path") not in (None, "last"):
                raise UserError("--resume is for fit and finds its checkpoint itself: leave out one of the two")
            if config["trainer"]["fast_dev_run"]:
                raise UserError("trainer.fast_dev_run tries things out, and goes on with no run: leave out --resume")
            config["ckpt_path"], config["resume"] = None, False  # config.yaml can start other runs too
        elif path := config.get("ckpt_path"):
            config["ckpt_path"] = str(find_checkpoint(Path(path)))
            self.checkpoint = self._read(Path(config["ckpt_path"]))
        elif self.config["subcommand"] != "fit":
            name = self.config["subcommand"]
            raise UserError(f"{name} needs a trained model: give --ckpt_path RUN, a folder or a checkpoint")
        self._parse_init_from(config)

    def _parse_init_from(self, config: Any) -> None:
        """What a config.yaml holds is of the run's first start: a checkpoint that a fit goes on from replaces it."""
        named = any(word.split("=")[0] == "--init_from" for word in self.argv)
        if named and (self.config["subcommand"] != "fit" or self.checkpoint is not None):
            raise UserError("--init_from is for a new fit, which goes on from no checkpoint: leave out one of the two")
        if self.checkpoint is not None:
            config["init_from"] = None
        elif config["init_from"] is not None and not self.resume:
            find_checkpoint(config["init_from"])  # a mistake is an error before any data is collected

    def _read(self, path: Path) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        if is_first_rank():
            tell_changes(checkpoint.get("parts", {}), path)
        if self.config["subcommand"] == "fit":
            check_training(checkpoint, path)
        return checkpoint

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config["subcommand"]]
        StoppingOptions(**config["early_stopping"].as_dict())  # what is wrong is an error before any data is touched
        if config["trainer"]["precision"] == "16-true":
            raise UserError(
                "trainer.precision 16-true ends at 65,504, and squares and products of the model's go beyond it: choose"
                " 16-mixed, bf16-mixed or bf16-true"
            )
        check_packages(config)
        check_trainer(self.trainer_class, config["trainer"].as_dict())
        if threads := config["threads"]:
            torch.set_num_threads(threads)
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision(config["matmul_precision"])
        # so that config.yaml can start another run: it keeps the experiment's name, not the folder, which is taken
        if config["experiment"] is None:
            config["experiment"] = Path(str(config["config"][0])).stem if config.get("config") else "worldmodel"
        self.run_dir, config["run_dir"] = config["run_dir"], None
        if self.run_dir is not None and not self.resume and is_first_rank():
            self.check_run_dir(self.run_dir)

    def check_run_dir(self, run_dir: Path) -> None:
        """Raise UserError if the folder that the user chose holds files or cannot be made; before data is collected."""
        check_free(run_dir, "--run_dir")
        check_possible(run_dir, "--run_dir")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        theirs = as_list(self._get(self.config_init, "trainer")["callbacks"])
        if self.subcommand == "fit" and any(isinstance(callback, LearningRateFinder) for callback in theirs):
            raise UserError(
                "LearningRateFinder sets a rate that config.yaml does not have: leave it out of trainer.callbacks, and"
                " give --model.learning_rate"
            )
        resumed = self._resumed_folder() if self.resume else None
        if self.checkpoint is not None:
            with taken_from(self._restored_from):
                check_arguments(self.checkpoint, self.model)
                message = self.finished(self.checkpoint) if self.subcommand == "fit" else None
            if message:
                if not resumed:
                    raise UserError(message)
                print(message, flush=True)  # status 0: the same command may be repeated until a run is finished
                raise SystemExit(0)
        self.datamodule.prepare_data()  # before the run's folder is made, which is named after the data
        job, config = str(self.subcommand), self.config_init[str(self.subcommand)]
        start = self._load(config) if job == "fit" else None
        self.folder = resumed or self._new_folder()
        if job == "fit" and is_first_rank():
            self.lock = RunLock(self.folder)
            if start is not None:
                start.record(self.folder)
        if is_first_rank() and resumed is None:
            self.made = self.folder
        given = config["trainer"]["logger"]  # added to CSV and W&B, which this program sets
        name, variant = self.names()
        names = {"name": name, "group": config["experiment"], "job_type": job, "config": {"variant": variant}}
        tags = [*self.tags(), self.datamodule.env_id]
        logged = (self.checkpoint or {}).get(LOGGED) if resumed else None
        loggers = make_loggers(self.folder, config["wandb"], config["project"], is_first_rank(), tags, logged, **names)
        loggers += more_loggers(config, self.folder, config["experiment"], name, tags)
        return self.checked_trainer(
            logger=loggers + as_list(None if isinstance(given, bool) else given),
            callbacks=self.callbacks(),
            plugins=[DurableCheckpointIO(), *as_list(config["trainer"]["plugins"])],
            **kwargs,
        )

    def _load(self, config: Any) -> Start | None:
        """Give the model what a checkpoint knows before callbacks see it; returns that of --init_from if it counts."""
        if self.checkpoint is not None:
            self.model.on_load_checkpoint(self.checkpoint)
            load_weights(self.model, self.checkpoint, Path(config["ckpt_path"]))
        elif config["init_from"] is not None:
            start = start_from(config["init_from"], self.model, self.datamodule, self.about["prog"])
            if is_first_rank():
                print(f"weights and statistics: from {start.path}, step {start.step:,}", flush=True)
            return start
        return None

    @property
    def _begun(self) -> bool:
        """Whether a whole step was made since the checkpoint, if there is one."""
        if self.checkpoint is None:
            return True
        if self.subcommand == "fit":
            return self.trainer.global_step > self.checkpoint["global_step"] + 1  # the schedule's step comes after
        return getattr(self.trainer, f"{self.subcommand}_loop").batch_progress.total.completed > 0

    @property
    def _restored_from(self) -> Path:
        return Path(self.config_init[str(self.subcommand)]["ckpt_path"])

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it. What fails as a checkpoint is restored, or in the first step from it, is laid to the checkpoint."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if self._begun or isinstance(error, MisconfigurationException) or explained(error):
                raise
            with taken_from(self._restored_from):
                raise

    def fit(self, **kwargs: Any) -> None:
        """Fit, and say what ended it early."""
        self.trainer.fit(**kwargs)
        trainer = cast(FitTrainer, self.trainer)
        if trainer.stopped_by and trainer.global_step != trainer.max_steps and trainer.is_global_zero:
            print(f"stopped early at step {trainer.global_step:,}: {trainer.stopped_by}", flush=True)

    def callbacks(self, **further: Any) -> list[Callback]:
        """All callbacks of the run, in order; `further` arguments are those of experiments.callbacks.callbacks."""
        job = str(self.subcommand)
        config = self.config_init[job]
        if not config["trainer"]["fast_dev_run"]:
            metrics, parser = self.compared(), self._parser(job)
            options = {"path": self.folder / "config.yaml", "metrics": metrics, "best": self.best}
            further["save_config"] = SaveConfig(parser, self.config[job], **options)
        return callbacks(self.kind, job, self.folder, config, self.datamodule, **further)

    def compared(self) -> list[str]:
        """The metrics by which runs are compared."""
        return ["val/loss"]

    def finished(self, checkpoint: dict[str, Any]) -> str | None:
        """A message if the checkpoint's run has nothing left to train, else None."""
        stopping = early_stopping(self.config_init[str(self.subcommand)])
        trainer = self._get(self.config_init, "trainer")
        reached = finished(checkpoint, trainer) or (stopping and stopping.finished(checkpoint))
        return reached or used_up(as_list(trainer["callbacks"]), trainer["max_time"], checkpoint)

    def names(self) -> tuple[str, str]:
        """The run's name in W&B, and the name of the variant, by which runs are grouped there."""
        return self.folder.name, self.model.hparams["rule"]

    def tags(self) -> list[str]:
        """The run's tags in W&B, beside the environment."""
        return [self.model.hparams["rule"]]

    def checked_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer from the configuration and these options, which come first.

        Unlike LightningCLI's, it gets no callbacks but those that are given, or else the user's.
        """
        options = {**self._get(self.config_init, "trainer"), "use_distributed_sampler": False, **kwargs}
        return make_trainer(self.trainer_class, options)

    def _new_folder(self) -> Path:
        if self.config[str(self.subcommand)]["trainer"]["fast_dev_run"]:
            self.scratch = TemporaryDirectory()
            return Path(self.scratch.name)
        return new_folder(self.config[str(self.subcommand)]["experiment"], self._run_name(), self.run_dir)

    def _run_name(self) -> str:
        env = file_name(self.datamodule.env_id)
        prefix = "" if self.subcommand == "fit" else f"{self.subcommand}-"
        seed = self.config[str(self.subcommand)]["seed_everything"]
        return f"{prefix}{file_name(self.model.hparams['rule'])}-{env}-s{seed}"

    def _resumed_folder(self) -> Path | None:
        """The folder of the run to resume, whose checkpoint is read; None if a new run begins."""
        folder = find_run(Path("runs", self.config["fit"]["experiment"]), self._run_name(), self.run_dir)
        path = None if folder is None else newest_whole(folder)
        if is_first_rank():
            if folder is not None:
                hand_down(folder)
            where = "no run to go on with" if folder is None else f"no checkpoint in {folder} yet"
            print(f"resume: {where}: it begins" if path is None else f"resume: from {path}", flush=True)
        if path is not None:
            self.checkpoint = self._read(path)
            self.config_init["fit"]["ckpt_path"] = str(path)
        return folder
