"""Simulators: making them, acting in them and recording them. Importing this package registers its environments."""

from gymnasium.envs.registration import register

from worldmodel.tasks.sequences import TASKS

LINEAR_GAUSSIAN = "worldmodel/LinearGaussian-v0"
register(LINEAR_GAUSSIAN, entry_point="worldmodel.envs.linear:LinearGaussian", max_episode_steps=500)
for _name in TASKS:
    register(_name, entry_point="worldmodel.tasks.sequences:SequenceEnv", kwargs={"task": _name})
