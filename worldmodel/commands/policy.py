"""`worldmodel policy fit | validate | test`: a policy with memory, trained by PPO."""

from worldmodel.arguments import chosen
from worldmodel.runs.signals import ended_at_once

USAGE = """usage: worldmodel policy {fit,validate,test} [OPTIONS]

Trains a policy with memory by PPO, and plays whole episodes with it.

  fit       train a policy: worldmodel policy fit --config conf/policy/cartpole.yaml
  validate  the mean return of a checkpoint, with its 95% interval
  test      the same on other episodes

`worldmodel policy SUBCOMMAND --help` lists the options."""


def main(argv: list[str]) -> None:
    """Run a subcommand, named by the first argument."""
    if chosen(argv, "policy", USAGE):
        with ended_at_once():
            from worldmodel.experiments.errors import training_errors
            from worldmodel.experiments.policies import PolicyCLI

        with training_errors(argv, "policy"):
            PolicyCLI(argv)
