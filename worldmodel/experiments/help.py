"""The help of `fit` and its like: the options of model, data and run in a screen or two, a sentence each."""

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from worldmodel.rules import RULES

SECTIONS = {  # the first part of an option's name -> title, in this order
    "model": "Model",
    "data": "Data",
    "": "Run",
    "trainer": "Trainer, of which Lightning's other options are shown by --help-all",
    "tbptt": "Carried state",
    "rollout": "Evaluation in open loop",
    "recall": "Evaluation of sequence tasks",
    "hidden": "Watching the hidden state",
    "early_stopping": "Early stopping",
}
FIRST = ("model.rule", "model.hidden_dim", "model.latent_dim", "model.learning_rate", "data.path", "data.steps")
OWN_WORDS = {  # of Lightning's options those that most runs set
    "model.rule": f"Update rule of the hidden state: {', '.join(RULES)}, or your own, file.py:name.",
    "config": "File of options, or a preset (worldmodel configs); may be repeated, the last one wins.",
    "print_config": "Print all options, and end.",
    "seed_everything": "Seed of the random generators.",
    "ckpt_path": "Run, or one of its checkpoints, that is continued or evaluated.",
    "trainer.max_steps": "Optimizer steps to train; -1: no limit.",
    "trainer.max_epochs": "Epochs to train; -1: no limit.",
    "trainer.max_time": "Time to train, as DD:HH:MM:SS.",
    "trainer.check_val_every_n_epoch": "Epochs between two validations.",
    "trainer.accelerator": "cpu, gpu, or auto for what is there.",
    "trainer.devices": "Number of devices, or their numbers, such as [0,1].",
    "trainer.num_nodes": "Number of machines.",
    "trainer.strategy": "How devices share the work: ddp, or fsdp2 to divide the model among them.",
    "trainer.precision": "Numbers that are computed with: 32-true, bf16-mixed, 64-true.",
    "trainer.accumulate_grad_batches": "Batches whose gradients are added up for a step.",
    "trainer.gradient_clip_val": "Highest norm of a gradient; null: no clipping.",
    "trainer.log_every_n_steps": "Steps between two rows of metrics.csv.",
    "trainer.callbacks": "Callbacks of your own: class_path file.py:name, and init_args.",
}
LEFT_OUT = ("help", "weights_only")
HELPERS = ("_ActionConfigLoad", "_ActionHelpClassPath", "ActionLink")  # of the parser
WORDS = {float: "X", int: "N", str: "TEXT", Path: "PATH", bool: "true|false"}
COLUMN, LEAST, MOST = 36, 80, 120  # where the sentences begin; least and greatest width
LONG = 90  # characters, above which a sentence ends with its first clause


def short_help(parser: Any, command: str) -> str:
    """The options of a parser by sections.

    Args:
        parser: of a subcommand.
        command: "worldmodel fit".
    """
    width = min(MOST, max(LEAST, shutil.get_terminal_size((MOST, 24)).columns))
    options: dict[str, list[Action]] = {section: [] for section in SECTIONS}
    for action in sorted(parser._actions, key=lambda action: [*FIRST, action.dest].index(action.dest)):
        section = action.dest.partition(".")[0] if "." in action.dest else ""
        if section in options and _is_shown(action):
            options[section].append(action)
    lines = [f"usage: {command} [--config CONF] [OPTIONS]", ""]
    for section, title in SECTIONS.items():
        if options[section]:
            lines += [f"{title}:", *(line for action in options[section] for line in _lines(action, width)), ""]
    return "\n".join([*lines[:-1], ""])


def _is_shown(action: Action) -> bool:
    if type(action).__name__ in HELPERS or action.dest in LEFT_OUT or not action.option_strings:
        return False
    return action.dest in OWN_WORDS or not action.dest.startswith("trainer.")


def _lines(action: Action, width: int) -> Iterator[str]:
    name = max((option for option in action.option_strings if not option.endswith("+")), key=len)
    left = f"  {name} {_values(action)}".rstrip()
    sentence = OWN_WORDS.get(action.dest) or _first_sentence(action.help or "")
    if action.default not in (None, SUPPRESS) and action.default is not False:
        sentence += f" Default: {_as_yaml(action.default)}."
    wrapped = textwrap.wrap(sentence, width - COLUMN) or [""]
    if len(left) < COLUMN:
        yield f"{left:{COLUMN}}{wrapped.pop(0)}".rstrip()
    else:
        yield left
    yield from (" " * COLUMN + line for line in wrapped)


def _values(action: Action) -> str:
    """What an option takes: its choices, or a word for its type."""
    hint = getattr(action, "_typehint", None)
    kinds = [hint, *get_args(hint)]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and len(choices) <= 6:
        return "|".join(map(str, choices))
    if hint is None:
        return "FILE" if action.dest == "config" else ""
    words = [WORDS[kind] for kind in kinds if kind in WORDS]
    listed = any(get_origin(kind) in (list, tuple) for kind in kinds)
    return "[..]" if listed else next((word for kind, word in WORDS.items() if word in words), "")


def _first_sentence(text: str) -> str:
    text = " ".join(text.replace("`", "").split())
    sentence = text.split(". ")[0].rstrip(".")
    return f"{sentence if len(sentence) < LONG else re.split('[;:] ', sentence)[0]}."


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_as_yaml, value))}]" if isinstance(value, list | tuple) else str(value)
