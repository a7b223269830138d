"""`worldmodel plan`: a trained model acts in the real environment, by planning at every step."""

import csv
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from worldmodel.agents.agent import Chooser
from worldmodel.agents.planner import METHODS
from worldmodel.agents.playing import Film, OnStep
from worldmodel.agents.trained import Trained, environments, read_trained
from worldmodel.arguments import Parser
from worldmodel.commands.collect import entries_or_keys
from worldmodel.data.readers import open_source
from worldmodel.envs.evaluate import Played, play
from worldmodel.envs.make import Simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.policies import Policy, make_policy
from worldmodel.envs.vector import SimulationError, close
from worldmodel.errors import UserError, choose
from worldmodel.runs.checkpoint import config_of, find_checkpoint
from worldmodel.runs.display import Display
from worldmodel.runs.folder import file_name, new_folder
from worldmodel.statistics import t_interval

ACTOR = "actor"
CHOOSERS = (*METHODS, ACTOR)
SIDE_BY_SIDE = 20  # environments at most: a planner rolls out all of them in one batch


def main(argv: list[str]) -> None:
    """Parse the command line, act, and say what came of it."""
    options = _parser().parse_args(argv)
    if options.planner is not None:
        choose("planner", options.planner, CHOOSERS)
    if options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: it must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    trained = read_trained(find_checkpoint(options.ckpt))
    env_id = options.env or trained.env_id
    options.planner = options.planner or ("cem" if trained.policy is None else ACTOR)
    chooser = _chooser(trained, options)
    played, film = _played(trained, env_id, options, lambda observed: trained.agent(observed, chooser))
    folder = new_folder("plan", f"{options.planner}-{file_name(env_id)}-s{options.seed}", options.out, "--out")
    files = [_write(folder / "episodes.csv", played)]
    if film is not None and film.frames:
        film.save(folder / "film.gif")
        files.append("film.gif")
    _print(played, behaviour(trained), f"{env_id}, {options.planner}, {options.episodes} episodes")
    if film is not None and film.problem:
        print(f"no film: {film.problem}")
    print(f"files: {', '.join(files)}")
    print(f"plan: {folder}")


def _chooser(trained: Trained, options: Namespace) -> Chooser:
    """The policy of an imagined run, or a planner in the model."""
    if options.planner == ACTOR:
        if trained.policy is None:
            raise UserError(f"{trained.path} is a world model without an actor: --planner cem, or a run of `imagine`")
        return trained.policy
    return trained.planner(
        options.horizon, options.goal, method=options.planner, candidates=options.candidates, elites=options.elites,
        iterations=options.iterations, temperature=options.temperature, persistence=options.persistence,
        discount=options.discount, seed=options.seed,
    )  # fmt: skip


def _played(
    trained: Trained, env_id: str, options: Namespace, make: Callable[[Observed], Policy]
) -> tuple[dict[str, Played], Film | None]:
    """The episodes of the model and of random actions, from the same starts."""
    number = min(options.episodes, options.num_envs)
    played: dict[str, Played] = {}
    film = None
    for name in (options.planner, "random"):
        simulator, observed = environments(trained, env_id, number, options.observe, film=name != "random")
        envs = simulator.envs
        policy: Policy = make_policy("uniform", envs.single_action_space, number, options.seed)
        recorders = []
        if name != "random":
            policy = make(observed)
            film = None if options.no_film else Film(envs)
            recorders = [] if film is None else [film.on_step]
        with Display(name, _longest(env_id, options.episodes)) as display:
            hear: list[OnStep] = [lambda counted, show=display.advance: show(int(counted.sum())), *recorders]
            played[name] = _play(simulator, env_id, policy, options, hear)
        close(envs)
    return played, film


def _play(simulator: Simulator, env_id: str, policy: Policy, options: Namespace, hear: list[OnStep]) -> Played:
    def on_step(counted: np.ndarray) -> None:
        for callback in hear:
            callback(counted)

    try:
        return play(simulator, policy, options.episodes, options.seed, on_step)
    except SimulationError as error:
        raise UserError(f"{env_id}, {error}") from error


def _longest(env_id: str, episodes: int) -> int | None:
    """Steps of all episodes together, at most; None where the environment sets no limit."""
    spec = gym.registry.get(env_id.rsplit(":", 1)[-1])
    return None if spec is None or spec.max_episode_steps is None else episodes * spec.max_episode_steps


def behaviour(trained: Trained) -> np.ndarray | None:
    """The returns of the episodes that the model was trained on, (E,); None where they are not there any more."""
    config = config_of(trained.path)
    if config is None:
        return None
    try:
        path = Path(yaml.safe_load(config.read_text())["data"]["path"])
        return np.array([episode.rewards.sum() for _, episode in open_source(path).episodes()], np.float64)
    except (UserError, OSError, LookupError, TypeError, yaml.YAMLError):
        return None


def _write(path: Path, played: dict[str, Played]) -> str:
    """A row an episode: policy, episode, return, steps, success (empty where the environment does not tell)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["policy", "episode", "return", "steps", "success"])
        for name, episodes in played.items():
            told = [""] * len(episodes.returns) if episodes.success is None else episodes.success.astype(int).tolist()
            rows = zip(episodes.returns.tolist(), episodes.lengths.tolist(), told, strict=True)
            writer.writerows((name, i, *row) for i, row in enumerate(rows))
    return path.name


def _print(played: dict[str, Played], data: np.ndarray | None, title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("policy")
    for heading in ("mean return", "95% interval", "least", "most"):
        table.add_column(heading, justify="right")
    successes = any(episodes.success is not None for episodes in played.values())
    if successes:
        table.add_column("success", justify="right")
    returns = {name: episodes.returns for name, episodes in played.items()}
    if data is not None and len(data):
        returns["the data"] = data
    for name, values in returns.items():
        mean, low, high = t_interval(values)
        row = [name, f"{mean:.1f}", f"{low:.1f} to {high:.1f}", f"{values.min():.1f}", f"{values.max():.1f}"]
        if successes and name in played:
            rate, least, most = played[name].success_rate
            row.append(f"{rate:.0%} ({least:.0%} to {most:.0%})")
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)


def _parser() -> Parser:
    parser = Parser("worldmodel plan", "A trained model acts in the real environment, planning at every step.")
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="a run's folder, or a checkpoint")
    add("--env", default=None, metavar="ID", help="default: the one that the data is of")
    add("--episodes", type=int, default=20, metavar="N", help="to play")
    how = "how plans are searched for; actor: the policy of a run of `imagine`; default: that, or cem without one"
    add("--planner", default=None, metavar="|".join(CHOOSERS), help=how)
    add("--horizon", type=int, default=20, metavar="H", help="steps that a plan looks ahead")
    add("--candidates", type=int, default=200, help="sequences of actions, an environment and iteration")
    add("--iterations", type=int, default=3, help="of drawing candidates and fitting the plan to them, a step")
    add("--elites", type=int, default=20, help="of cem: the candidates that a plan is fitted to")
    add("--temperature", type=float, default=0.3, help="of mppi, in standard deviations of the candidates' scores")
    add("--persistence", type=float, default=0.5, help="correlation of what is drawn at neighbouring steps")
    add("--discount", type=float, default=None, help="of rewards, a step; default: the value head's, or 1 without one")
    add("--goal", default=None, metavar="O,O", help="an observation to reach, instead of rewards; or a .npy file")
    add("--observe", type=entries_or_keys, default=None, metavar="I,J", help="default: as in the data")
    add("--num_envs", type=int, default=SIDE_BY_SIDE, metavar="N", help="environments side by side")
    add("--seed", type=int, default=1000, metavar="S", help="of the environments and of all that is drawn")
    add("--threads", type=int, default=None, help="of torch on the CPU")
    add("--no_film", action="store_true", help="save no film of the first environment")
    add(
        "--out", type=Path, default=None, metavar="DIR", help="a new folder; default: runs/plan/<planner>-<environment>"
    )
    return parser
