"""Simulators: making them, acting in them, recording what they do. No model in here."""

from gymnasium.envs.registration import register

# `import worldmodel.envs` makes it known to Gymnasium; every command of the program does
LINEAR_GAUSSIAN = "worldmodel/LinearGaussian-v0"
register(LINEAR_GAUSSIAN, entry_point="worldmodel.envs.linear:LinearGaussian", max_episode_steps=500)
