"""The command line. Nothing heavy is imported before a command is chosen."""

import errno
import sys
from importlib import import_module

import worldmodel
from worldmodel.arguments import fail
from worldmodel.durable import DISK
from worldmodel.early import OF_RUN, check, help_page
from worldmodel.errors import UserError, nearest
from worldmodel.runs.signals import ended_at_once, insistent
from worldmodel.runs.streams import keep_open

COMMANDS = {
    "fit": "train a world model: worldmodel fit --config conf/quickstart.yaml",
    "validate": "evaluate a checkpoint on the validation episodes",
    "test": "evaluate a checkpoint on the test episodes",
    "predict": "write a checkpoint's predictions of the validation episodes to a file",
    "policy": "train and evaluate a policy with memory: worldmodel policy fit --config conf/policy/cartpole.yaml",
    "rollout": "predict chosen episodes from actions alone: worldmodel rollout --ckpt RUN --horizon 300",
    "plan": "act in the real environment by planning at every step: worldmodel plan --ckpt RUN --episodes 20",
    "play": "drive a model in the browser, beside the true simulator: worldmodel play --ckpt RUN",
    "imagine": "train a policy inside a world model: worldmodel imagine fit --config CONF --model.world RUN",
    "diagnose": "find out what is wrong with a model: worldmodel diagnose --config conf/quickstart.yaml, or --ckpt RUN",
    "export": "write a trained model as safetensors and JSON: worldmodel export --ckpt RUN --out DIR",
    "collect": "record a simulator: worldmodel collect Pendulum-v1 --out data/pendulum",
    "compare": "train rules on the same data and budget, and compare them: worldmodel compare --config CONF --out DIR",
    "pbt": "population-based training on Ray Tune: worldmodel pbt --config conf/pbt/pendulum.yaml",
    "dashboard": "write a workspace and a report that compare the rules in Weights & Biases",
    "data": "inspect or check a dataset, convert another format: worldmodel data info|check|convert|compact PATH",
    "runs": "list runs and their results, the newest last: worldmodel runs",
    "configs": "list, show or copy the configurations that come with the package: worldmodel configs quickstart",
}
OF_PATHS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
TRAINING = ("fit", "validate", "test", "predict")
OF_CONFIG = ("fit", "compare", "pbt")  # their first argument may be a configuration; of OF_RUN, a run


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `worldmodel` program."""
    keep_open()
    argv = sys.argv[1:] if argv is None else argv
    if strange := next((word for word in argv if not _is_text(word)), None):
        fail(f"{strange!r} is not UTF-8, as messages, tables and configurations are: rename it")
    if len(argv) > 1 and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(_help())
    elif (page := help_page(argv)) is not None:
        print(page)
    elif command in ("-V", "--version"):
        print(f"worldmodel {worldmodel.__version__}")
    elif command not in COMMANDS:
        fail(f"unknown command {command!r}: {nearest(command, COMMANDS)}")
    else:
        _run(command, _named(argv))


def _named(argv: list[str]) -> list[str]:
    """The words with --config before a configuration that follows the command, and --ckpt before a run."""
    if len(argv) < 2 or argv[1].startswith("-") or argv[0] not in (*OF_CONFIG, *OF_RUN):
        return argv
    is_config = argv[0] in OF_CONFIG or argv[1].endswith((".yaml", ".yml"))
    return [argv[0], "--config" if is_config else "--ckpt", *argv[1:]]


def _run(command: str, argv: list[str]) -> None:
    try:
        check(argv)
        name, rest = ("fit", argv) if command in TRAINING else (command, argv[1:])
        try:
            with ended_at_once():
                module = import_module(f"worldmodel.commands.{name}")
            with insistent():
                module.main(rest)
        finally:
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except ValueError as error:
        if "embedded null" not in str(error):  # what no path may hold
            raise
        fail("a path in an option or a file holds a null byte")
    except KeyboardInterrupt:
        sys.stderr.write("worldmodel: interrupted\n")
        raise SystemExit(130) from None
    except OSError as error:  # of what libraries write, and of names that no file can have
        if error.errno in DISK or "temporary directory" in str(error):
            fail(f"{error.filename or 'a file'} cannot be written: {error.strerror}. Make room, and run it again")
        if error.filename is None or error.errno not in OF_PATHS:
            raise
        fail(f"{error.filename}: {error.strerror}")


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # the shell gave bytes
        return False
    return True


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return f"""usage: worldmodel COMMAND [OPTIONS]

Trains recurrent latent world models, and shows how far they can be trusted.

{commands}

`worldmodel COMMAND --help` lists a command's options."""
