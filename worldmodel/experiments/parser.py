"""The parser of all that LightningCLI parses: mistakes are one line that names the nearest right choice."""

from collections.abc import Iterable
from typing import Any, ClassVar, get_args

from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.arguments import explain, fail
from worldmodel.errors import UserError


class ExperimentParser(LightningArgumentParser):
    """LightningCLI's parser with this program's errors: one line, the nearest right choice, status 2."""

    further_keys: ClassVar[Iterable[str]] = ()  # keys of options that are dicts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # --model.rul is a mistake, not --model.rule

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's; a UserError for lists in lists without end, and for null where a value is needed."""
        try:
            config = super().parse_args(*args, **kwargs)
        except RecursionError:
            raise UserError("an option, or a file of options, is nested too deeply") from None
        job = config.get("subcommand")
        _refuse_nulls(self._jobs()[job] if job else self, config[job] if job else config)
        return config

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
