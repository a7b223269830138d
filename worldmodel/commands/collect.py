"""`worldmodel collect`: record a simulator."""

import argparse
import json
from pathlib import Path
from typing import Any

from worldmodel.commands.parser import Parser
from worldmodel.envs.collect import DEFAULTS, CollectOptions, collect


def main(argv: list[str]) -> None:
    """Parse the command line, collect under a progress bar, and say what was written."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    arguments = vars(_parser().parse_args(argv))
    out, vectorization = arguments.pop("out"), arguments.pop("vectorization")
    options = CollectOptions(**arguments)
    columns = (TextColumn("collecting {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(options["env_id"], total=options["steps"])
        manifest = collect(options, out, vectorization, on_steps=lambda n: progress.advance(task, n))
    print(f"collected {manifest['episodes']} episodes, {manifest['steps']} steps of {options['env_id']} in {out}")
    print(f"train on it: worldmodel fit --config conf/quickstart.yaml --data.path {out} --data.collect null")


def _parser() -> Parser:
    parser = Parser("worldmodel collect", "Step a Gymnasium environment and write its episodes as a dataset.")
    add = parser.add_argument
    add("env_id", metavar="ENV_ID", help="for example Pendulum-v1; module:ID where a module registers it")
    add("--out", type=Path, required=True, metavar="DIR", help="the dataset's folder, new")
    add("--steps", type=int, default=100_000, metavar="N", help="transitions in all")
    add("--seed", type=int, default=DEFAULTS["seed"], metavar="S", help="of the environments and the policy")
    add(
        "--policy",
        default=DEFAULTS["policy"],
        help="uniform, smooth, or your own: module:function or file.py:function, "
        "called with the observations (N, ...) and is_first (N,) of all environments",
    )
    add("--observe", type=_entries, metavar="I,J", help="keep only these entries of the observation")
    add("--num_envs", type=int, default=DEFAULTS["num_envs"], metavar="N", help="environments side by side")
    add("--max_episode_steps", type=int, metavar="N", help="time limit instead of the environment's own")
    add("--env_kwargs", type=_json, default={}, metavar="JSON", help="further arguments of gymnasium.make")
    add("--vectorization", choices=("sync", "async"), default="sync", help="one process, or one for each environment")
    return parser


def _entries(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of entries such as 0,1") from None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as '{{\"g\": 9.8}}'")
    return value
