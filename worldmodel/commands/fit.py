"""`worldmodel fit | validate | test | predict`: train a world model, evaluate one, write its predictions."""

from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.world_model import TrainingCLI


def main(argv: list[str]) -> None:
    """Run the subcommand named by the first argument."""
    with training_errors(argv):
        TrainingCLI(argv)
