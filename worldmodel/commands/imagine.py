"""`worldmodel imagine fit | validate | test`: a policy trained in a world model."""

from worldmodel.arguments import chosen
from worldmodel.runs.signals import ended_at_once

USAGE = """usage: worldmodel imagine {fit,validate,test} [OPTIONS]

Trains a policy in the imagination of a world model, and plays whole episodes with it.

  fit       worldmodel imagine fit --config conf/imagine/pendulum.yaml --model.world RUN
  validate  the mean return of a checkpoint in the real environment, with its 95% interval
  test      the same on other episodes

`worldmodel imagine SUBCOMMAND --help` lists the options."""


def main(argv: list[str]) -> None:
    """Run a subcommand, named by the first argument."""
    if chosen(argv, "imagine", USAGE):
        with ended_at_once():
            from worldmodel.experiments.errors import training_errors
            from worldmodel.experiments.policies import ImagineCLI

        with training_errors(argv, "imagine"):
            ImagineCLI(argv)
