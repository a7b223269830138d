"""`worldmodel diagnose`: the faults of a model, new or trained, measured on a few real batches."""

import json
import sys
from argparse import HelpFormatter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Trainer

from worldmodel.arguments import TRUST, Parser
from worldmodel.batch import Batch
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.evaluation.cause import Cause, likely_cause, read_course
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.diagnosis.diagnosis import Diagnosis, diagnose
from worldmodel.evaluation.figures import save
from worldmodel.evaluation.linear import LinearCurve, evaluated
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.of_run import options_of
from worldmodel.experiments.world_model import TrainingCLI, TrainingParser
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.world_model import WorldModel
from worldmodel.parts import tell_changes
from worldmodel.runs.checkpoint import check_arguments, config_of, data_spaces, load_weights, read_checkpoint
from worldmodel.runs.display import console
from worldmodel.runs.files import find_checkpoint
from worldmodel.runs.folder import check_free, file_name, result_folder

INSTEAD = {  # of options of fit
    "--ckpt_path": "the trained model is named with --ckpt RUN",
    "--init_from": "the trained model is named with --ckpt RUN",
    "--run_dir": "the folder is chosen with --out DIR",
}


def main(argv: list[str]) -> None:
    """Measure, write diagnosis.json and diagnosis.png, and print the findings."""
    options, rest = parser().parse_known_args(argv)
    _check(options, rest)
    if options.out is not None:
        check_free(options.out, "--out")  # before minutes of measuring
    checkpoint = None if options.ckpt is None else find_checkpoint(options.ckpt)
    with TemporaryDirectory() as temporary:
        configs = options.config or (
            [] if checkpoint is None else [options_of(checkpoint, Path(temporary), trust=options.trust)]
        )
        fit = ["fit", *(word for path in configs for word in ("--config", path)), *rest]
        with training_errors(fit, "world_model"):
            cli = DiagnoseCLI(fit, checkpoint)
            batches = first_batches(cli.datamodule, options.batches)
            model = cli.model.eval()
            if model.members > 1:
                raise UserError(f"diagnose looks into one predictor, and this model has {model.members} members")
            rule = model.hparams["rule"]
            trained = {} if checkpoint is None else {"curves": cli.curves(), "cause": cause_of(checkpoint, model)}
            diagnosis = diagnose(model, batches, rule, cli.carries, model.hparams["gradient"], **trained)
    weights = "first weights" if checkpoint is None else str(checkpoint)
    with result_folder("diagnose", file_name(f"{rule}-{cli.datamodule.env_id}"), options.out) as folder:
        write(folder, diagnosis, f"{cli.datamodule.env_id}, {rule}, {weights}")
    output = console(None if sys.stdout.isatty() else 120)
    lanes, steps = batches[0]["valid"].shape
    output.print(f"{len(batches)} batches of {lanes} lanes and {steps} steps; {weights}")
    if len(batches) < options.batches:
        output.print(f"(an epoch has no more: --batches {options.batches} would continue in another order)")
    diagnosis.print(output)
    print("files: diagnosis.json, diagnosis.png")
    print(f"diagnosis: {folder.parent}")


def parser() -> Parser:
    """The options that `fit` does not have."""
    parser = Parser("worldmodel diagnose", "Find the faults of a model, measured on a few real batches.")
    parser.formatter_class = HelpFormatter
    parser.epilog = "Every option of `worldmodel fit` may be given too, such as --model.rule gru or --data.steps 64."
    add = parser.add_argument
    add(
        "--config",
        action="append",
        metavar="CONF",
        help="Configuration, as for fit. Default: data and model of the run of --ckpt.",
    )
    add("--ckpt", type=Path, metavar="P", help="Folder of a run, or a checkpoint. Default: a new model.")
    add("--batches", type=int, default=8, metavar="N", help="Consecutive training batches. Default: %(default)s.")
    add("--trust", action="store_true", help=f"{TRUST}.")
    add("--out", type=Path, metavar="DIR", help="New folder. Default: runs/diagnose/<rule>-<environment>.")
    return parser


class DiagnoseParser(TrainingParser):
    """A mistyped option may be one of `diagnose`, too."""

    def _keys(self) -> list[str]:
        return [name for name in parser()._option_string_actions if name.startswith("--")] + super()._keys()


class DiagnoseCLI(TrainingCLI):
    """`fit` up to the point where training would begin, with the weights of a checkpoint if there is one."""

    parses = DiagnoseParser

    def __init__(self, argv: list[str], weights: Path | None) -> None:
        self.weights = weights
        super().__init__(argv)

    def _parse_ckpt_path(self) -> None:
        """Ignore the checkpoint in the configuration: that of the run which this one continued."""
        self.checkpoint, self.config["fit"]["ckpt_path"] = None, None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return self.checked_trainer(logger=False, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        trainer: Any = self.trainer
        trainer.datamodule, self.model.trainer = self.datamodule, trainer
        if self.weights is None:
            self.model.take_statistics(self.datamodule)
            return
        checkpoint = read_checkpoint(self.weights, finite=False)
        tell_changes(checkpoint.get("parts", {}), self.weights)
        check_arguments(checkpoint, self.model)
        load_weights(self.model, checkpoint, self.weights)
        self.datamodule.take_origins(data_spaces(checkpoint))

    @property
    def carries(self) -> bool:
        """Whether training carries the state from batch to batch."""
        return self._get(self.config_init, "tbptt").start == "carry"

    def curves(self) -> Callable[[], HorizonCurves] | None:
        """Measures the open-loop errors as the fit does at its end; None of a model of tokens, which has none."""
        if self.model.hparams["objective"] == "tokens":
            return None
        data, options = self.datamodule, self._get(self.config_init, "rollout").options
        return lambda: evaluated(self.model, data.splits, "val", data.steps, options, LinearCurve())


def cause_of(checkpoint: Path, model: WorldModel) -> Cause | None:
    """What the losses of the run that a checkpoint lies in show; None where they are not there, or show nothing."""
    config = config_of(checkpoint)
    course = None if config is None else read_course(config.parent)
    return None if course is None else likely_cause(course, model.hparams["learning_rate"], model.base is not None)


def first_batches(data: EpisodeDataModule, number: int) -> list[Batch]:
    """The first batches of the training stream; of one epoch, so that each continues where the last one ends."""
    loader = data.train_dataloader()
    number = min(number, len(loader))
    return [data.on_after_batch_transfer(batch, 0) for _, batch in zip(range(number), loader, strict=False)]


def write(folder: Path, diagnosis: Diagnosis, title: str) -> None:
    """Write all numbers and findings as JSON, and the picture."""
    values = {"title": title, "findings": [vars(finding) for finding in diagnosis.findings], **diagnosis.as_json()}
    with whole_file(folder / "diagnosis.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")
    save(diagnosis.figure(title), folder / "diagnosis.png")


def _check(options: Any, rest: list[str]) -> None:
    if options.batches < 1:
        raise UserError(f"--batches is {options.batches}: it must be at least 1")
    if not options.config and options.ckpt is None:
        raise UserError("diagnose needs a model: give --config conf/quickstart.yaml, or --ckpt RUN")
    for word in rest:
        if (option := word.split("=")[0]) in INSTEAD:
            raise UserError(f"{option} is no option of diagnose: {INSTEAD[option]}")
