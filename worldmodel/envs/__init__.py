"""Simulators: making them, acting in them, recording what they do. No model in here."""

from gymnasium.envs.registration import register

from worldmodel.tasks.sequences import TASKS

# `import worldmodel.envs` makes them known to Gymnasium; every command of the program does
LINEAR_GAUSSIAN = "worldmodel/LinearGaussian-v0"
register(LINEAR_GAUSSIAN, entry_point="worldmodel.envs.linear:LinearGaussian", max_episode_steps=500)
for _name in TASKS:
    register(_name, entry_point="worldmodel.tasks.environment:SequenceEnv", kwargs={"task": _name})
