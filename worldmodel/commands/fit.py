"""`worldmodel fit | validate | test | predict`: train a world model, evaluate one, write its predictions."""

from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.of_run import with_run
from worldmodel.experiments.world_model import TrainingCLI


def main(argv: list[str]) -> None:
    """Run the subcommand named by the first argument."""
    with training_errors(argv, "world_model"):
        if argv[0] == "fit":
            TrainingCLI(argv)
            return
        with with_run(argv) as words:
            TrainingCLI(words)
