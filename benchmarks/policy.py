"""A policy with memory against sb3-contrib's RecurrentPPO: the same tasks, environment steps and seeds.

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0 sb3-contrib==2.9.2 popgym==1.0.7 .
    .venv-peers/bin/python benchmarks/policy.py [--tasks cartpole,...] [--ways memory,...] [--seeds 0,1,2]
    .venv-peers/bin/python benchmarks/policy.py --speed [--rounds 5] [--ways recurrent_ppo,recurrent_ppo_zoo]
    .venv-peers/bin/python benchmarks/policy.py --json FILE                     # with both
    .venv-peers/bin/python benchmarks/policy.py --ready                         # of the runs there are

Every run is a process of its own with one thread, and lands in runs/policy_benchmark; the next call takes it from
there. `memory` and `feed_forward` are conf/policy/TASK.yaml with this budget; `reset every K` is `memory` whose state
starts from zeros at every K-th frame while it is judged. RecurrentPPO is set as rl-baselines3-zoo tuned it (sb3's
defaults for repeat_first) but for two things that cost it time: LSTMs as wide as our memory, and Pendulum's
minibatches. `recurrent_ppo_zoo` undoes both; `recurrent_ppo_alike` has the discount, lambda and entropy weight of ours
(on CartPole; elsewhere they are the same). It does not see its last action, as our memory does.

The policy at the end plays 20 episodes with its likeliest actions and 20 as it was trained, from the same starts. Speed
is of collecting and training alone, in CPU time (other processes do not count), in turns.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stopwatch import Stopwatch, TrainingStopwatch
from timing import options_parser, save

from worldmodel.statistics import t_interval

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "policy_benchmark"
ENVS, EPISODES, EVALUATION_SEED = 8, 20, 10_000
PEER, ZOO, ALIKE = "recurrent_ppo", "recurrent_ppo_zoo", "recurrent_ppo_alike"
WAYS = (PEER, "memory", "feed_forward")
CPU = "steps_per_cpu_second"
FORGETTING = (1, 2, 4, 8, 16)  # frames between two resets of the state in mid-episode
GOAL = 1.5


@dataclass(frozen=True)
class Task:
    """What is to be done, and how RecurrentPPO is set for it."""

    env_id: str
    observe: list[int] | None  # entries of the observation; None: all
    steps: int  # of all environments together
    short: int  # the same where only speed is measured
    peer: dict[str, Any] = field(default_factory=dict)
    zoo: dict[str, Any] = field(default_factory=dict)  # what of it the zoo has otherwise
    alike: dict[str, Any] = field(default_factory=dict)  # of conf/policy/TASK.yaml, where it differs


def falling(first: float) -> Callable[[float], float]:
    """A line to 0 at the end of the training."""
    return lambda left: first * max(left, 0.0)  # the last rollout may pass the end


TASKS = {
    "cartpole": Task(
        "CartPole-v1", [0, 2], 50_000, 2048,
        {"n_steps": 32, "batch_size": 256, "gamma": 0.98, "gae_lambda": 0.8, "n_epochs": 20,
         "learning_rate": falling(1e-3), "clip_range": falling(0.2)},
        alike={"gamma": 0.995, "gae_lambda": 0.95, "ent_coef": 0.01},
    ),
    "pendulum": Task(
        "Pendulum-v1", [0, 1], 80_000, 4096,
        {"n_steps": 512, "batch_size": 512, "gamma": 0.9, "n_epochs": 10, "learning_rate": 1e-3, "use_sde": True,
         "sde_sample_freq": 4},
        {"batch_size": 128},
    ),
    "repeat_first": Task("popgym:popgym-RepeatFirstEasy-v0", None, 50_000, 2048),
}  # fmt: skip
EQUAL = {"policy_kwargs": {"lstm_hidden_size": 64}}  # our hidden_dim; sb3's is 256


# --- one run ---------------------------------------------------------------------------------------------------------


def of_peer(task: Task, seed: int, steps: int, settings: dict[str, Any], judged: bool) -> dict[str, Any]:
    """Train RecurrentPPO, and let it play."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: _monitored(task)] * ENVS)
    model = RecurrentPPO("MlpLstmPolicy", envs, seed=seed, device="cpu", **task.peer | settings)
    watch = Stopwatch()
    watch.start()
    model.learn(steps)
    watch.stop()
    found = watch.figures(model.num_timesteps)
    found["parameters"] = sum(p.numel() for p in model.policy.parameters())
    if judged:
        found["training"] = [episode["r"] for episode in list(model.ep_info_buffer or [])[-EPISODES:]]
        found["likeliest"], found["sampled"] = (_played_by_peer(model, task, likeliest) for likeliest in (True, False))
    return found


def _monitored(task: Task) -> Any:
    import gymnasium as gym
    from stable_baselines3.common.monitor import Monitor

    env: Any = gym.make(task.env_id)
    if task.observe is not None:
        picked, space = task.observe, env.observation_space
        space = gym.spaces.Box(space.low[picked], space.high[picked], dtype=space.dtype)
        env = gym.wrappers.TransformObservation(env, lambda obs: obs[picked], space)
    return Monitor(env)


def _played_by_peer(model: Any, task: Task, likeliest: bool) -> list[float]:
    env, returns = _monitored(task), []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=EVALUATION_SEED + episode)
        state, is_first, over, total = None, np.ones(1, bool), False, 0.0
        while not over:
            action, state = model.predict(np.asarray(obs)[None], state, is_first, likeliest)
            obs, reward, terminated, truncated, _ = env.step(action[0])
            total, over, is_first = total + float(reward), terminated or truncated, np.zeros(1, bool)
        returns.append(total)
    return returns


def of_ours(name: str, seed: int, steps: int, options: list[str], folder: Path, judged: bool) -> dict[str, Any]:
    """`worldmodel policy fit`, and let it play; forgetting its state too, where it has one."""
    from worldmodel.cli import main as worldmodel

    arguments = ["--config", str(ROOT / "conf" / "policy" / f"{name}.yaml"), "--seed_everything", str(seed)]
    arguments += ["--threads", "1", "--wandb", "disabled", "--run_dir", str(folder), *options]
    arguments += [f"--data.total_steps={steps}", f"--data.val_every={steps}", f"--data.num_envs={ENVS}"]
    worldmodel(["policy", "fit", *arguments, "--trainer.callbacks+=stopwatch.TrainingStopwatch"])
    found = dict(TrainingStopwatch.last)
    found["training"] = found["training"][-EPISODES:]
    if judged:
        checkpoint = folder / "checkpoints" / "last.ckpt"
        found["likeliest"], found["sampled"] = (_played_by_ours(checkpoint, name, likely) for likely in (True, False))
        if options == OURS["memory"]:
            found["reset"] = {str(k): _played_by_ours(checkpoint, name, True, k) for k in FORGETTING}
    return found


def _played_by_ours(checkpoint: Path, name: str, likeliest: bool, reset_every: int | None = None) -> list[float]:
    from worldmodel.agents.agent import PolicyAgent
    from worldmodel.envs.make import make_simulator
    from worldmodel.envs.observe import ObservationVectors
    from worldmodel.envs.play import play
    from worldmodel.modules.policy import Policy

    task, policy = TASKS[name], Policy.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    simulator = make_simulator(task.env_id, EPISODES)
    spaces = simulator.envs.single_observation_space, simulator.envs.single_action_space
    draws = torch.Generator().manual_seed(0)
    vectors = ObservationVectors(*spaces, task.observe)
    agent = PolicyAgent(policy, vectors, EPISODES, likeliest, draws, reset_every)
    return play(simulator, agent, EPISODES, EVALUATION_SEED).returns.tolist()


OURS = {"memory": [], "feed_forward": ["--model.rule", "none"]}


def run_here(way: str, name: str, seed: int, steps: int, path: Path, judged: bool) -> None:
    """One run, in this process; its figures go to `path`."""
    torch.set_num_threads(1)
    if way in OURS:
        found = of_ours(name, seed, steps, OURS[way], path.with_suffix(""), judged)
    else:
        task = TASKS[name]
        settings = {PEER: EQUAL, ZOO: task.zoo, ALIKE: EQUAL | task.alike}[way]
        found = of_peer(task, seed, steps, settings, judged)
    path.write_text(json.dumps({"way": way, "task": name, "seed": seed} | found) + "\n")


def run(way: str, name: str, seed: int, steps: int, path: Path, judged: bool = True) -> dict[str, Any]:
    """One run in a process of its own, or what it came to an earlier time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # of a run that did not come to its end
        settled = json.dumps([way, name, seed, steps, str(path), judged])
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
        with path.with_suffix(".log").open("w") as log:
            command = [sys.executable, __file__, "--run", settled]
            subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=log, stderr=subprocess.STDOUT)
    return json.loads(path.read_text())


# --- tables ----------------------------------------------------------------------------------------------------------


def returns_of(names: list[str], ways: list[str], seeds: list[int], ready: bool) -> dict[str, Any]:
    """Train what has not been (`ready`: leave it out), and print mean returns over the seeds with 95% intervals."""
    figures: dict[str, Any] = {}
    for name in names:
        task, figures[name] = TASKS[name], {}
        print(f"\n{name}: mean return after {task.steps:,} steps (seeds)")
        print(f"  {'':20}{'likeliest actions':>28}{'drawn':>28}{'last of training':>28}")
        for way in ways:
            paths = {seed: RUNS / f"{name}-{way}-{task.steps}-{seed}.json" for seed in seeds}
            runs = [run(way, name, s, task.steps, path) for s, path in paths.items() if path.exists() or not ready]
            if not runs:
                continue
            judged = ("likeliest", "sampled", "training")
            figures[name][way] = _row(f"{way} ({len(runs)})", runs, judged)
            figures[name][way] |= {key: [one[key] for one in runs] for key in ("seed", "steps", "parameters", CPU)}
            for k in runs[0].get("reset", {}):
                forgetful = [{"likeliest": one["reset"][k]} for one in runs]
                figures[name][f"reset {k}"] = _row(f"  reset every {k}", forgetful, ("likeliest",))
    return figures


def _row(title: str, runs: list[dict[str, Any]], judged: tuple[str, ...]) -> dict[str, Any]:
    means = {kind: [float(np.mean(one[kind])) for one in runs] for kind in judged}
    intervals = {kind: t_interval(values) for kind, values in means.items()}
    cells = [f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in intervals.values()]
    print(f"  {title:20}" + "".join(f"{cell:>28}" for cell in cells), flush=True)
    bounds = {kind: interval[1:] if len(runs) > 1 else None for kind, interval in intervals.items()}
    return {kind: {"mean": intervals[kind][0], "interval": bounds[kind], "of_seeds": means[kind]} for kind in judged}


def speed_of(names: list[str], peers: list[str], rounds: int) -> dict[str, Any]:
    """Environment steps a second of CPU time, short runs taking turns, and the ratio within each round."""
    figures: dict[str, Any] = {}
    for name in names:
        rates: dict[str, list[float]] = {way: [] for way in ("memory", *peers)}
        for number in range(rounds):
            for way, measured in rates.items():
                path = RUNS / f"speed-{name}-{way}-{number}.json"
                measured.append(run(way, name, number, TASKS[name].short, path, False)[CPU])
        print(f"\n{name}: environment steps a second of CPU time, {rounds} rounds   goal >= {GOAL} of {PEER}")
        figures[name] = {}
        for way, measured in rates.items():
            ratios = [ours / peer for ours, peer in zip(rates["memory"], measured, strict=True)]
            ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
            print(f"  {way:20}{statistics.median(measured):10.0f}     memory / it: {ratio:.2f} ({low:.2f}-{high:.2f})")
            figures[name][way] = {CPU: measured, "ratio": ratio, "low": low, "high": high}
    return figures


def main() -> None:
    """Tables of what was asked for."""
    parser = options_parser(__doc__, rounds=5)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join((*WAYS, ZOO, ALIKE))}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--speed", action="store_true", help="speed alone")
    parser.add_argument("--ready", action="store_true", help="returns of the runs that there are, without new ones")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        way, name, seed, steps, path, judged = json.loads(options.run)
        return run_here(way, name, seed, steps, Path(path), judged)
    names, ways = options.tasks.split(","), options.ways.split(",")
    figures: dict[str, Any] = {"threads": 1, "environments": ENVS, "versions": _versions()}
    if not options.speed:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        figures["returns"] = returns_of(names, ways, seeds, options.ready)
    if options.speed or options.json:
        figures["speed"] = speed_of(names, [way for way in ways if way in (PEER, ZOO, ALIKE)], options.rounds)
    save(options.json, figures)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("sb3-contrib", "stable-baselines3", "gymnasium", "popgym", "lightning")}


if __name__ == "__main__":
    main()
