"""What `fit`, `validate` and `test` are whatever is trained: a run's folder, loggers, checkpoints, resume."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from worldmodel.arguments import explain, fail
from worldmodel.callbacks.final_validation import FinalValidation
from worldmodel.callbacks.guard import NumericalGuard
from worldmodel.callbacks.hidden_norm import HiddenNormMonitor
from worldmodel.callbacks.idle_hooks import leave_out_idle_hooks
from worldmodel.callbacks.last_checkpoint import BestCheckpoint, LastCheckpoint
from worldmodel.callbacks.metrics_file import LOGGED
from worldmodel.callbacks.progress import FitProgress
from worldmodel.callbacks.random_state import RandomState
from worldmodel.errors import UserError
from worldmodel.experiments.loggers import WandbMode, define_metrics, make_loggers
from worldmodel.runs.checkpoint import find_checkpoint, read_checkpoint
from worldmodel.runs.checkpoint_io import DurableCheckpointIO
from worldmodel.runs.checkpoints import check_arguments, finished
from worldmodel.runs.folder import check_free, file_name, hand_down, is_first_rank, run_folder
from worldmodel.runs.resume import RunLock, find_run, newest_good


class ExperimentParser(LightningArgumentParser):
    """LightningCLI's parser, with this program's errors: one line, the nearest right choice, status 2."""

    further_keys: ClassVar[Iterable[str]] = ()  # of options that are dicts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # --model.rul is a mistake, not --model.rule

    def error(self, message: str, ex: Exception | None = None) -> Any:
        fail(explain(message, self._keys()))

    def _keys(self) -> list[str]:
        parsers: list[Any] = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
        options = [name for parser in parsers for name in parser._option_string_actions if name.startswith("--")]
        return [*options, *self.further_keys]


class SaveConfig(SaveConfigCallback):
    """config.yaml in the run's folder, and the same configuration in every logger that takes one."""

    best: Literal["min", "max"] = "min"

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        config = self.config.as_dict()
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
            define_metrics(logger, self.compared(config, getattr(trainer, "datamodule", None)), self.best)

    def compared(self, config: dict[str, Any], data: Any) -> list[str]:
        """Metrics that runs are compared by."""
        return ["val/loss"]


class ExperimentCLI(LightningCLI):
    """The subcommands that need a Trainer. Each run gets a folder, loggers and the callbacks of this package.

    Args:
        argv: a subcommand and its options.
        module: what is trained; its `hparams["rule"]` names the run.
        data: a LightningDataModule with an `env_id`.
        save_config: what goes to the loggers.
        trainer_defaults: beside those that all have.
        about: `prog` and `description` of the parser.
    """

    model: Any
    datamodule: Any
    parses: ClassVar[type[ExperimentParser]] = ExperimentParser  # all options

    def __init__(
        self,
        argv: list[str],
        module: type,
        data: type,
        save_config: type[SaveConfig],
        trainer_defaults: dict[str, Any],
        about: dict[str, str],
    ) -> None:
        super().__init__(
            module,
            data,
            save_config_callback=save_config,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                "log_every_n_steps": 50,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data divides itself among the ranks
                "num_sanity_val_steps": 0,
                **trainer_defaults,
            },
            parser_class=self.parses,
            parser_kwargs=about,
            auto_configure_optimizers=False,
            args=argv,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--experiment", type=str | None, default=None, help="groups runs; default: the config file's name")
        add("--run_dir", type=Path | None, default=None, help="the run's folder; default: runs/<experiment>/<run>")
        add("--wandb", type=WandbMode, default="offline", help="Weights & Biases; online without account: offline")
        add("--project", type=str, default="worldmodel", help="the project in Weights & Biases")
        add(
            "--threads",
            type=int | None,
            default=None,
            help="of torch on the CPU; one is often fastest for small models",
        )
        add(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="high",
            help="of float32 matmuls on a GPU; high: TF32",
        )
        add("--checkpoint_every", type=int, default=500, help="optimizer steps between two saves of last.ckpt")
        add("--checkpoint_keep", type=int, default=2, help="last.ckpt, and as many before it as make this number")
        add(
            "--resume",
            action="store_true",
            help="fit: go on with the newest run of this name, or the one in --run_dir, from its newest whole"
            " checkpoint; begin it, if there is none. --ckpt_path last is the same",
        )
        parser.add_lightning_class_args(HiddenNormMonitor, "hidden")

    def _parse_ckpt_path(self) -> None:
        """Not as LightningCLI does, which silently replaces model arguments by the checkpoint's."""
        self.checkpoint = None
        config = self.config[self.config["subcommand"]]
        self.resume = bool(config.get("resume")) or config.get("ckpt_path") == "last"
        if self.resume:
            if self.config["subcommand"] != "fit" or config.get("ckpt_path") not in (None, "last"):
                raise UserError("--resume is for fit, and finds its checkpoint itself: leave out one of the two")
            config["ckpt_path"], config["resume"] = None, False  # config.yaml serves for other runs too
        elif path := config.get("ckpt_path"):
            config["ckpt_path"] = str(find_checkpoint(Path(path)))
            self.checkpoint = read_checkpoint(Path(config["ckpt_path"]))

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config["subcommand"]]
        if threads := config["threads"]:
            torch.set_num_threads(threads)
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision(config["matmul_precision"])
        # config.yaml must serve for another run: it keeps the experiment's name, and not the folder that is taken now
        if config["experiment"] is None:
            config["experiment"] = Path(str(config["config"][0])).stem if config.get("config") else "worldmodel"
        self.run_dir, config["run_dir"] = config["run_dir"], None
        if self.run_dir is not None and not self.resume and is_first_rank():
            check_free(self.run_dir, "--run_dir")  # before any data is collected

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        resumed = self._resumed_folder() if self.resume else None
        if self.checkpoint is not None:
            check_arguments(self.checkpoint, self.model)
            if self.subcommand == "fit" and (said := self.finished(self.checkpoint)):
                if not resumed:
                    raise UserError(said)
                print(said, flush=True)  # so that the same command may be given until a run is through
                raise SystemExit(0)
        elif self.subcommand != "fit":
            raise UserError(
                f"{self.subcommand} needs a trained model: give --ckpt_path RUN, a run's folder or a checkpoint"
            )
        self.check_options()
        self.datamodule.prepare_data()  # before the run's folder is made, which is named after the data
        self.folder = resumed or self._make_folder()
        job, config = str(self.subcommand), self.config_init[str(self.subcommand)]
        callbacks = self.first_callbacks()
        if config["trainer"]["enable_progress_bar"] is not False:
            callbacks.append(self.progress())
        if job == "fit":
            callbacks.append(NumericalGuard(self.folder))
            if is_first_rank():
                self.lock = RunLock(self.folder)
        if job == "fit" and config["trainer"]["enable_checkpointing"] is not False:
            checkpoints = self.folder / "checkpoints"
            last = LastCheckpoint(checkpoints, config["checkpoint_every"], config["checkpoint_keep"])
            callbacks += [RandomState(), last, self.best_checkpoint(checkpoints)]
        given = config["trainer"]["logger"]  # CSV and W&B are set by this program; the user's come beside them
        name, variant = self.names()
        names = {"name": name, "group": config["experiment"], "job_type": job, "config": {"variant": variant}}
        tags = [*self.tags(), self.datamodule.env_id]
        logged = (self.checkpoint or {}).get(LOGGED) if resumed else None
        loggers = make_loggers(self.folder, config["wandb"], config["project"], is_first_rank(), tags, logged, **names)
        try:
            return self.checked_trainer(
                logger=loggers + _as_list(None if isinstance(given, bool) else given),
                callbacks=callbacks + _as_list(config["trainer"]["callbacks"]),
                plugins=[DurableCheckpointIO(), *_as_list(config["trainer"]["plugins"])],
                **kwargs,
            )
        except UserError:
            with suppress(OSError):
                self.folder.rmdir()  # nothing is in it yet
            raise

    # --- what differs --------------------------------------------------------------------------------------------

    def first_callbacks(self) -> list[Callback]:
        """Those that stand before all others."""
        return [FinalValidation()]

    def progress(self) -> FitProgress:
        """What shows how far a fit is."""
        return FitProgress()

    def best_checkpoint(self, folder: Path) -> BestCheckpoint:
        """What keeps the best weights."""
        return BestCheckpoint(folder)

    def finished(self, checkpoint: dict[str, Any]) -> str | None:
        """What says that its run has nothing left to train, if anything does."""
        return finished(checkpoint, self._get(self.config_init, "trainer"))

    def check_options(self) -> None:
        """What model, data and callbacks cannot see alone; a UserError if it does not go together."""

    def names(self) -> tuple[str, str]:
        """Of the run, and of what is compared, as W&B shows and groups them."""
        return self.folder.name, self.model.hparams["rule"]

    def tags(self) -> list[str]:
        """What one looks for in W&B, beside the environment."""
        return [self.model.hparams["rule"]]

    # --- what does not -------------------------------------------------------------------------------------------

    def checked_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration and these options; what it refuses is the user's mistake."""
        try:
            trainer: Any = super().instantiate_trainer(use_distributed_sampler=False, **kwargs)
            leave_out_idle_hooks(trainer.callbacks)
            return trainer
        except (ValueError, ImportError, MisconfigurationException) as error:
            raise UserError(f"the Trainer refuses its options: {error}") from error

    def _make_folder(self) -> Path:
        return run_folder(self.config[str(self.subcommand)]["experiment"], self._run_name(), self.run_dir)

    def _run_name(self) -> str:
        env = file_name(self.datamodule.env_id)
        prefix = "" if self.subcommand == "fit" else f"{self.subcommand}-"
        seed = self.config[str(self.subcommand)]["seed_everything"]
        return f"{prefix}{self.model.hparams['rule']}-{env}-s{seed}"

    def _resumed_folder(self) -> Path | None:
        """Of the run that goes on, its checkpoint read; None, where a new one begins."""
        folder = find_run(Path("runs", self.config["fit"]["experiment"]), self._run_name(), self.run_dir)
        path = None if folder is None else newest_good(folder)
        if is_first_rank():
            if folder is not None:
                hand_down(folder)
            where = "no run to go on with" if folder is None else f"no checkpoint in {folder} yet"
            print(f"resume: {where}: it begins" if path is None else f"resume: from {path}", flush=True)
        if path is not None:
            self.checkpoint = read_checkpoint(path)
            self.config_init["fit"]["ckpt_path"] = str(path)
        return folder


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
