"""`worldmodel plan`: a trained model acts in the real environment by planning at every step."""

import csv
from argparse import Namespace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table

from worldmodel.agents.agent import Chooser
from worldmodel.agents.planner import METHODS
from worldmodel.agents.trained import Trained, check_env, environments, read_trained
from worldmodel.arguments import TRUST, Parser
from worldmodel.commands.collect import entries_or_keys
from worldmodel.data.readers import OPTIONS, open_source
from worldmodel.durable import whole_file
from worldmodel.envs.make import registered
from worldmodel.envs.play import EpisodeReturns, Film, play
from worldmodel.envs.policies import Policy, make_policy
from worldmodel.errors import MOST_SEED, MOST_THREADS, UserError, at_least, choose, within
from worldmodel.runs.config import read_config
from worldmodel.runs.display import Display, console
from worldmodel.runs.files import find_checkpoint
from worldmodel.runs.folder import file_name, result_folder
from worldmodel.statistics import t_interval
from worldmodel.two_hot import Point

ACTOR = "actor"
CHOOSERS = (*METHODS, ACTOR)
RANDOM = "random"


def main(argv: list[str]) -> None:
    """Parse the command line, act, and report the returns."""
    options = _parser().parse_args(argv)
    if options.planner is not None:
        choose("planner", options.planner, CHOOSERS)
    at_least(1, "--", episodes=options.episodes)
    within(0, MOST_SEED, "--", seed=options.seed)
    within(1, MOST_THREADS, "--", threads=options.threads)
    if options.threads:
        torch.set_num_threads(options.threads)
    trained = read_trained(find_checkpoint(options.ckpt), options.trust)
    env_id = options.env or trained.env_id
    if not options.trust:
        check_env(trained, options.env, "add --trust, or name another with --env")
    options.planner = options.planner or ("cem" if trained.policy is None else ACTOR)
    returns, film = _play(trained, env_id, options, _chooser(trained, options))
    with result_folder("plan", f"{options.planner}-{file_name(env_id)}-s{options.seed}", options.out) as folder:
        files = [_write(folder / "episodes.csv", returns)]
        if film is not None and film.frames:
            film.save(folder / "film.gif")
            files.append("film.gif")
    known, unknown = data_returns(trained, options.trust)
    _print(returns, known, f"{env_id}, {options.planner}, {options.episodes} episodes")
    if unknown:
        print(f"without the returns of the data: {unknown}")
    if options.goal is None and (line := disappointment(trained, options, returns, known)) is not None:
        print(line)
    if film is not None and film.problem:
        print(f"no film: {film.problem}")
    print(f"files: {', '.join(files)}")
    print(f"plan: {folder.parent}")


def _chooser(trained: Trained, options: Namespace) -> Chooser:
    """The policy of an imagined run, or a planner in the model."""
    if options.planner == ACTOR:
        if trained.policy is None:
            raise UserError(f"{trained.path} is a world model without an actor: --planner cem, or a run of `imagine`")
        return trained.policy
    return trained.planner(
        options.horizon, options.goal, method=options.planner, candidates=options.candidates, elites=options.elites,
        iterations=options.iterations, temperature=options.temperature, persistence=options.persistence,
        penalty=options.penalty,
        discount=options.discount, seed=options.seed,
    )  # fmt: skip


def _play(
    trained: Trained, env_id: str, options: Namespace, chooser: Chooser
) -> tuple[dict[str, EpisodeReturns], Film | None]:
    """Play episodes of the model and of random actions, from the same starts."""
    number, film = min(options.episodes, options.num_envs), None
    returns: dict[str, EpisodeReturns] = {}
    for name in (options.planner, RANDOM):
        filmed = name != RANDOM and not options.no_film
        simulator, observed = environments(trained, env_id, number, options.observe, film=filmed)
        envs, shown = simulator.envs, None
        policy: Policy = make_policy("uniform", envs.single_action_space, number, options.seed)
        if name != RANDOM:
            policy = trained.agent(observed, chooser)
            shown = film = Film(envs) if filmed else None
        with Display(name, _longest(env_id, options.episodes)) as display:

            def on_step(counted: np.ndarray, display: Display = display, film: Film | None = shown) -> None:
                display.advance(int(counted.sum()))
                if film is not None:
                    film.on_step(counted)

            returns[name] = play(simulator, policy, options.episodes, options.seed, on_step)
    return returns, film


def _longest(env_id: str, episodes: int) -> int | None:
    """The most steps that all episodes can take together; None: the environment has no time limit."""
    spec = gym.registry.get(registered(env_id))
    return None if spec is None or spec.max_episode_steps is None else episodes * spec.max_episode_steps


def data_returns(trained: Trained, trust: bool) -> tuple[np.ndarray | None, str | None]:
    """The returns (E,) of the episodes that the model was trained on; where they cannot be read None, and why."""
    try:
        config = read_config(trained.path, "train it with this version of the program", trust)
        if config is None:
            return None, f"{trained.path} has no config.yaml of its run beside it"
        data = config["data"]
        how = {name: data.get(name) for name in OPTIONS}
        episodes = open_source(Path(data["path"]), **how).episodes()
        return np.array([episode.rewards.sum() for _, episode in episodes], np.float64), None
    except (UserError, OSError, TypeError) as error:
        return None, str(error)


def disappointment(
    trained: Trained, options: Namespace, played: dict[str, EpisodeReturns], data: np.ndarray | None
) -> str | None:
    """One line if the mean return is below that of random actions or of the data, with what to try; else None."""
    means = {name: float(episodes.returns.mean()) for name, episodes in played.items()}
    own, others = means[options.planner], {"random actions": means[RANDOM]}
    if data is not None and len(data):
        others["the data"] = float(data.mean())
    better = [f"{name} ({mean:.1f})" for name, mean in others.items() if mean > own]
    if not better:
        return None
    model, tries = trained.model, list[str]()
    if options.planner == ACTOR:
        tries += ["imagine fit with more steps, a longer --model.horizon or a --model.discount nearer to 1"]
    else:
        if model.value_discount is None:
            tries += ["fit --model.value_discount 0.98: a value head sees past the horizon"]
        if isinstance(model.reward_form, Point):
            tries += ["fit --model.reward_head two_hot, where a rare large reward drowns small ones"]
        tries += [f"plan --horizon {2 * options.horizon}"]
        if not options.penalty:
            members = "fit --model.members 5, then " if model.members == 1 else ""
            tries += [f"{members}plan --penalty 1: it keeps to where the model knows"]
    return f"a mean return of {own:.1f}, less than {' and '.join(better)}; try {'; '.join(tries)}"


def _write(path: Path, played: dict[str, EpisodeReturns]) -> str:
    """Write a row for each episode: policy, episode, return, steps, success (empty if it is not reported)."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["policy", "episode", "return", "steps", "success"])
        for name, episodes in played.items():
            unknown, success = [""] * len(episodes.returns), episodes.success
            successes = unknown if success is None else success.astype(int).tolist()
            rows = zip(episodes.returns.tolist(), episodes.lengths.tolist(), successes, strict=True)
            writer.writerows((name, i, *row) for i, row in enumerate(rows))
    return path.name


def _print(played: dict[str, EpisodeReturns], data: np.ndarray | None, title: str) -> None:
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
    console().print(table)


def _parser() -> Parser:
    parser = Parser("worldmodel plan", "A trained model acts in the real environment, planning at every step.")
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="Folder of a run, or a checkpoint.")
    add("--env", default=None, metavar="ID", help="Environment to act in. Default: that of the data.")
    add("--trust", action="store_true", help=f"{TRUST}, of its environment too.")
    add("--episodes", type=int, default=20, metavar="N", help="Number of episodes.")
    how = "Search method, or actor, the policy of a run of `imagine`. Default: the actor if there is one, else cem."
    add("--planner", default=None, metavar="|".join(CHOOSERS), help=how)
    add("--horizon", type=int, default=20, metavar="H", help="Steps that a plan looks ahead.")
    add("--candidates", type=int, default=200, help="Sequences of actions for each environment and iteration.")
    add("--iterations", type=int, default=3, help="Number of times that the plan is fitted to candidates, each step.")
    add("--elites", type=int, default=20, help="Number of candidates that cem fits the plan to.")
    add("--temperature", type=float, default=0.3, help="Temperature of mppi, in deviations of the scores.")
    add("--persistence", type=float, default=0.5, help="Correlation of the noise at neighbouring steps.")
    add("--discount", type=float, default=None, help="Discount of rewards. Default: the value head's, else 1.")
    add("--penalty", type=float, default=0.0, help="Cost of a deviation between members, in deviations of the reward.")
    add("--goal", default=None, metavar="O,O", help="Observation to reach instead of rewards, or a .npy file.")
    add("--observe", type=entries_or_keys, default=None, metavar="I,J", help="Entries to see. Default: as in the data.")
    add("--num_envs", type=int, default=20, metavar="N", help="Number of environments, stepped together.")
    add("--seed", type=int, default=1000, metavar="S", help="Seed of the environments and the planner.")
    add("--threads", type=int, default=None, help="Number of torch's threads on the CPU.")
    add("--no_film", action="store_true", help="Save no film of the first environment.")
    where = "New folder. Default: runs/plan/<planner>-<environment>."
    add("--out", type=Path, default=None, metavar="DIR", help=where)
    return parser
