"""The parser of all that LightningCLI parses, whose errors are one line with the nearest right choice; its options."""

from argparse import SUPPRESS, Action
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.arguments import explain, fail
from worldmodel.errors import MOST_SEED, MOST_THREADS, UserError, within
from worldmodel.experiments.help import short_help
from worldmodel.experiments.loggers import WandbMode
from worldmodel.parts import by_import_path, by_name, load, misfit, names_in
from worldmodel.presets import located


class ExperimentParser(LightningArgumentParser):
    """LightningCLI's parser with this program's errors: one line, the nearest right choice, status 2."""

    further_keys: ClassVar[Iterable[str]] = ()  # keys of options that are dicts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # --model.rul is a mistake, not --model.rule

    def parse_args(self, args: Any = None, *further: Any, **kwargs: Any) -> Any:
        """As jsonargparse's, and --config takes presets by their names.

        Raises:
            UserError: for lists in lists without end, and for null where a value is needed.
        """
        try:
            words = args
            if isinstance(args, list):
                words = [_with_own(word, before) for before, word in pairwise(["", *located(args)])]
            config = super().parse_args(words, *further, **kwargs)
        except RecursionError:
            raise UserError("an option, or a file of options, is nested too deeply") from None
        job = config.get("subcommand")
        options = config[job] if job else config
        _refuse_nulls(self._jobs()[job] if job else self, options)
        within(0, MOST_SEED, "", seed_everything=options.get("seed_everything"))
        within(1, MOST_THREADS, "", threads=options.get("threads"))
        return config

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's, of a configuration whose Trainer may name the user's own classes."""
        with suppress(yaml.YAMLError):  # jsonargparse's to report
            config = yaml.safe_load(content)
            if isinstance(config, dict) and isinstance(trainer := config.get("trainer"), dict):
                content = by_import_path(content, _own_classes(trainer))
        return super()._load_config_parser_mode(content, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """As jsonargparse's, with the names of the user's own classes."""
        return by_name(super().dump(*args, **kwargs))

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Of a subcommand the short form; `--help-all` prints the parser's own."""
        if not any(action.dest == "trainer.max_steps" for action in self._actions):
            return super().format_help(*args, **kwargs)
        return short_help(self, self.prog.replace(" [options]", ""))

    def format_all(self) -> str:
        """Help on every option, Lightning's too."""
        return super().format_help()

    def error(self, message: str, ex: Exception | None = None) -> Any:
        fail(explain(message, self._keys()))

    def _jobs(self) -> dict[str, Any]:
        """The parsers of the subcommands, by name."""
        return next((action.choices for action in self._actions if isinstance(action.choices, dict)), {})

    def _keys(self) -> list[str]:
        parsers: list[Any] = [self, *self._jobs().values()]
        options = [name for parser in parsers for name in parser._option_string_actions if name.startswith("--")]
        return [*options, *self.further_keys]


def _refuse_nulls(parser: Any, config: Any) -> None:
    """Raise UserError for a null that the user gave where it is no value: jsonargparse takes one for anything.

    What a null among the Trainer's options means is the Trainer's to say.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.default is None or action.dest.startswith("trainer."):
            continue
        if config.get(action.dest) is None and type(None) not in get_args(hint) and hint is not Any:
            raise UserError(f"{action.dest} is null: it needs a value, such as {action.default}")


def _with_own(word: str, before: str) -> str:
    """A word of the command line in which a class of the user's own, for the Trainer, has its dotted path."""
    option, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
    if not option.startswith("--trainer.") or ":" not in value:
        return word
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return word
    key = option.partition("=")[0].rstrip("+").split(".")[-1]
    value = by_import_path(value, _own_classes({key: parsed}))
    return f"{option}={value}" if equals else value


def _own_classes(config: Any) -> set[str]:
    """The user's own classes among the Trainer's options; a callback must be one."""
    for name in names_in({"callbacks": config.get("callbacks")}):
        part = load(name, "callback")
        if not isinstance(part, type) or not issubclass(part, Callback):
            raise misfit(name, "callback", f"it is {part if isinstance(part, type) else type(part).__name__}")
    return set(names_in(config))


class _HelpAll(Action):
    """Prints help on every option, and ends the program."""

    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        print(parser.format_all())
        parser.exit()


def add_run_options(parser: LightningArgumentParser, monitor: str) -> None:
    """Add the options of a run, whatever is trained; `monitor` is the metric that chooses best.ckpt by default."""

    def add(name: str, type: Any, default: Any, help: str) -> None:
        parser.add_argument(name, type=type, default=default, help=help)

    parser.add_argument("--help-all", action=_HelpAll, nargs=0, default=SUPPRESS, help="Help on every option.")
    add("--experiment", str | None, None, "Name that groups runs. Null: the name of the config file.")
    add("--run_dir", Path | None, None, "Folder of the run, new or empty. Null: runs/<experiment>/<run>.")
    add("--wandb", WandbMode, "offline", "Weights & Biases; without an account, online falls back to offline.")
    add("--project", str, "worldmodel", "Name of the project in Weights & Biases.")
    for flag, where in {
        "tensorboard": "Write events for TensorBoard too, into tensorboard/ in the run's folder.",
        "mlflow": "Log to MLflow too, at MLFLOW_TRACKING_URI, or else in mlflow.db here.",
    }.items():
        parser.add_argument(f"--{flag}", action="store_true", help=where)
    add("--threads", int | None, None, "Number of torch's threads on the CPU; 1 is often fastest. Null: all cores.")
    precision = "Precision of float32 matrix products on a GPU; high uses TF32."
    add("--matmul_precision", Literal["highest", "high", "medium"], "high", precision)
    add("--checkpoint_every", int, 500, "Optimizer steps between two saves of last.ckpt.")
    add("--checkpoint_keep", int, 2, "Number of checkpoints to keep: last.ckpt and the ones before it.")
    add("--checkpoint_monitor", str, monitor, "Metric that chooses best.ckpt: any that a validation logs.")
    modes = "Whether its lowest or highest value is best. Null: highest for returns, accuracies and valid times."
    add("--checkpoint_mode", Literal["min", "max"] | None, None, modes)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Resume the newest run of this name, or the one in --run_dir, from its newest whole checkpoint; start"
        " the run if there is none. Only for fit; the same as --ckpt_path last.",
    )
    start = "Run, or one of its checkpoints, whose weights and statistics a new fit starts from. Only for fit."
    add("--init_from", Path | None, None, start)
