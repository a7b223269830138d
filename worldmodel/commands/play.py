"""`worldmodel play`: a page in the browser, on which a trained model is driven beside the truth."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import gymnasium as gym

from worldmodel.agents.trained import Trained, check_env, read_trained
from worldmodel.arguments import TRUST, Parser
from worldmodel.commands.collect import entries_or_keys
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.modules.of_run import data_of, split_of
from worldmodel.page.contents import contents, recordings
from worldmodel.page.document import document, policy
from worldmodel.page.server import Answers, Server
from worldmodel.page.simulator import Simulation
from worldmodel.runs.checkpoint import config_of, data_spaces, read_checkpoint
from worldmodel.runs.files import find_checkpoint, read_yaml
from worldmodel.runs.signals import ended_at_once


def main(argv: list[str]) -> None:
    """Parse the command line, and serve the page until Ctrl-C, or write it."""
    options = _parser().parse_args(argv)
    out: Path | None = options.out
    if out is not None and out.exists():
        raise UserError(f"{out} exists: choose a new --out, or remove it")
    server = Server(options.port) if out is None else None  # a port that is taken is reported before the work
    path = find_checkpoint(options.ckpt)
    trained = read_trained(path, options.trust)
    env_id = options.env or trained.env_id
    simulator = None
    if server is not None and (options.env or trained.collected or env_id in gym.registry):
        if not options.trust:
            check_env(trained, options.env, "add --trust, or name another with --env")
        simulator = Simulation(trained, env_id, options.observe)
    steps = read_checkpoint(path).get("EpisodeDataModule", {}).get("stream", {}).get("steps", 32)
    recorded = None if simulator else _recordings(trained, steps, options)
    print(f"{path}: the model is written as programs for the page, which takes some seconds", flush=True)
    data = contents(trained, steps, _threshold(path)) | {"recordings": recorded}
    data["rate"] = simulator.rate if simulator and simulator.rate > 0 else None
    page = document(data)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
        print(f"{len(page):,} bytes, which need no network and no program but a browser")
        print(f"play: {out}")
    if server is not None:
        _serve(server, page, simulator)


def _serve(server: Server, page: str, simulator: Simulation | None) -> None:
    answers: Answers = {}
    if simulator is not None:
        answers = {
            "/reset": lambda asked: simulator.reset(_seed(asked)),
            "/step": lambda asked: simulator.step(_action(asked)),
        }
    print(f"play: {server.url}  (Ctrl-C ends it)", flush=True)
    with ended_at_once():
        server.run(page, policy(), answers)


def _recordings(trained: Trained, steps: int, options: Namespace) -> list[dict[str, Any]]:
    """Episodes of the run's data, where there is no simulator."""
    data = data_of(trained.path, options.trust)
    data.prepare_data()
    data.take_origins(data_spaces(read_checkpoint(trained.path)))
    split, episodes = split_of(data, options.split)
    if not (found := recordings(episodes, steps)):
        raise UserError(f"no episode of the {split} split is longer than T = {steps} frames: choose another --split")
    return found


def _threshold(checkpoint: Path) -> float | None:
    """That of the run's validation; None where its configuration does not say."""
    config = None if (path := config_of(checkpoint)) is None else read_yaml(path)
    rollout = config.get("rollout") if isinstance(config, dict) else None
    threshold = rollout.get("threshold") if isinstance(rollout, dict) else None
    return float(threshold) if isinstance(threshold, int | float) else None


def _seed(asked: dict[str, Any]) -> int:
    seed = asked.get("seed")
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise UserError("a seed is a whole number from 0")
    return seed


def _action(asked: dict[str, Any]) -> list[float]:
    action = asked.get("action")
    if not isinstance(action, list) or not all(isinstance(value, int | float) for value in action):
        raise UserError("an action is a list of numbers")
    return action


def _parser() -> Parser:
    what = "Drive a trained model in the browser: its dream beside the true simulator, on a page of this machine alone."
    parser = Parser("worldmodel play", what)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="Folder of a run, or a checkpoint.")
    where = "Write the page as one new HTML file instead, with recorded episodes for the truth; it needs no network."
    add("--out", type=Path, default=None, metavar="FILE", help=where)
    add("--port", type=int, default=8321, help="Port on 127.0.0.1; 0: any that is free.")
    add("--env", default=None, metavar="ID", help="Environment of the truth. Default: that of the data.")
    add("--observe", type=entries_or_keys, default=None, metavar="I,J", help="Entries to see. Default: as in the data.")
    episodes = (
        "Split of the recorded episodes, of --out, or where there is no simulator. Default: test, or val without one."
    )
    add("--split", choices=("test", "val", "train"), default=None, help=episodes)
    add("--trust", action="store_true", help=f"{TRUST}, of its environment too.")
    return parser
