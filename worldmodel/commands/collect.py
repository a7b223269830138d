"""`worldmodel collect`: record a simulator."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from worldmodel.arguments import Parser
from worldmodel.envs.collect import DEFAULTS, CollectOptions, collect
from worldmodel.runs.display import Display


def main(argv: list[str]) -> None:
    """Parse the command line, collect while progress is shown, and say what was written.

    Ctrl-C ends with status 130, after the line that says what was kept.
    """
    arguments = vars(_parser().parse_args(argv))
    out, vectorization, append = (arguments.pop(name) for name in ("out", "vectorization", "append"))
    options = CollectOptions(**arguments)
    on_disk: list[int] = []
    what, episodes = f"collecting {options['env_id']}", lambda: f"{sum(on_disk)} episodes on disk"
    try:
        with Display(what, options["steps"], more=episodes) as display:
            manifest = collect(
                options, out, vectorization, append=append, on_steps=display.advance, on_acknowledged=on_disk.append
            )
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"worldmodel: interrupted: {interrupt}\n" if str(interrupt) else "worldmodel: interrupted\n")
        raise SystemExit(130) from None
    print(f"collected {options['steps']} steps of {options['env_id']} in {out}", end="")
    print(f", which holds {manifest['episodes']} episodes, {manifest['steps']} steps")
    print(f"look at it: worldmodel data check {out}; train: worldmodel fit --data.path {out} --trainer.max_epochs 10")


def _parser() -> Parser:
    parser = Parser("worldmodel collect", "Step a Gymnasium environment and write its episodes as a dataset.")
    add = parser.add_argument
    add(
        "env_id",
        metavar="ENV_ID",
        help="Environment, such as Pendulum-v1; module:ID where a module registers it, or your own, file.py:name.",
    )
    add("--out", type=_folder, required=True, metavar="DIR", help="New folder for the dataset.")
    add("--append", action="store_true", help="Add to the dataset in --out, with another --seed.")
    add("--steps", type=int, default=100_000, metavar="N", help="Number of transitions in all.")
    add("--seed", type=int, default=DEFAULTS["seed"], metavar="S", help="Seed of the environments and the policy.")
    policy = "What acts: uniform, smooth, or your own module:function or file.py:function, "
    policy += "called with the observations (N, ...) and is_first (N,) of all environments."
    add("--policy", default=DEFAULTS["policy"], help=policy)
    observe = "Record only these entries of a vector observation, or these keys of a Dict."
    add("--observe", type=entries_or_keys, metavar="I,J", help=observe)
    add("--pixels", type=_sides, metavar="SIDE", help="Record frames of SIDE x SIDE pixels, or height,width: 64,96.")
    add("--keep_state", action="store_true", help="With --pixels, also record the observation.")
    add("--num_envs", type=int, default=DEFAULTS["num_envs"], metavar="N", help="Environments, stepped together.")
    add("--max_episode_steps", type=int, metavar="N", help="Time limit in steps instead of the environment's own.")
    shortest = "Draw each episode's time limit in steps between this and --max_episode_steps, log-uniformly."
    add("--min_episode_steps", type=int, metavar="N", help=shortest)
    add("--env_kwargs", type=_json, default={}, metavar="JSON", help="Further arguments of gymnasium.make.")
    add("--vectorization", choices=("sync", "async"), default="sync", help="One process, or one each environment.")
    return parser


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("it must name a folder")
    return Path(text)


def entries_or_keys(text: str) -> list[int] | list[str]:
    """The value of --observe: entries such as 0,1 or keys such as agent,image."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0,1 or agent,image")
    try:
        return [int(part) for part in parts]
    except ValueError:
        return parts


def _sides(text: str) -> int | list[int]:
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a side such as 64, or height,width such as 64,96") from None
    return sides[0] if len(sides) == 1 else sides


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as '{{\"g\": 9.8}}'")
    return value
