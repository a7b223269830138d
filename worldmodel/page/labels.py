"""What the entries of well-known environments are called, with their units; of others, the dataset's own names."""

from worldmodel.agents.trained import Trained

TORQUE = "torque at the joint (N m)"
# environment -> names of its observation's entries, names of its action's entries or choices, drawing in pictures.js
KNOWN: dict[str, tuple[list[str], list[str], str]] = {
    "Pendulum-v1": (["cos of the angle", "sin of the angle", "angular velocity (rad/s)"], ["torque (N m)"], "pendulum"),
    "CartPole-v1": (
        ["position (m)", "velocity (m/s)", "angle (rad)", "angular velocity (rad/s)"],
        ["push left", "push right"],
        "cartpole",
    ),
    "Acrobot-v1": (
        [
            "cos of angle 1",
            "sin of angle 1",
            "cos of angle 2",
            "sin of angle 2",
            "velocity 1 (rad/s)",
            "velocity 2 (rad/s)",
        ],
        ["torque -1 N m", "no torque", "torque +1 N m"],
        "acrobot",
    ),
    "MountainCar-v0": (["position", "velocity"], ["push left", "coast", "push right"], "mountain_car"),
    "MountainCarContinuous-v0": (["position", "velocity"], ["force"], "mountain_car"),
}


def entries(trained: Trained) -> list[str]:
    """Names of the entries of the vector part of an observation."""
    known, names = KNOWN.get(trained.env_id), trained.layout.vector_entries
    chosen = _chosen(trained)
    return names if known is None or chosen is None else [known[0][i] for i in chosen]


def actions(trained: Trained, count: int) -> list[str]:
    """Names of `count` entries, or choices, of an action."""
    known = KNOWN.get(trained.env_id)
    return known[1] if known and len(known[1]) == count else [f"action[{i}]" for i in range(count)]


def drawing(trained: Trained) -> tuple[str, list[int]] | None:
    """Which drawing shows the environment, and which of its entries each entry of the model's observation is."""
    chosen = _chosen(trained)
    return None if chosen is None or trained.layout.images else (KNOWN[trained.env_id][2], chosen)


def _chosen(trained: Trained) -> list[int] | None:
    """Which entries of a known environment's observation the model sees; None if it is not known."""
    if trained.env_id not in KNOWN or [*trained.layout.vectors] != ["observation"] or trained.layout.origins:
        return None
    total, chosen = len(KNOWN[trained.env_id][0]), trained.collected.get("observe")
    chosen = list(range(total)) if chosen is None else chosen
    fits = isinstance(chosen, list) and all(isinstance(i, int) and 0 <= i < total for i in chosen)
    return chosen if fits and len(chosen) == trained.layout.vector_dim else None
