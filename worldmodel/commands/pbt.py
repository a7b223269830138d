"""`worldmodel pbt`: members train side by side; at intervals the worst copy the best, and vary what they copied."""

import gc

from worldmodel.errors import UserError
from worldmodel.experiments.config import check_options
from worldmodel.experiments.errors import training_errors
from worldmodel.population.design import Population
from worldmodel.population.folder import Lineage, begin
from worldmodel.population.options import NOT_HERE, help_text, kind_of
from worldmodel.population.report import conclude
from worldmodel.runs.folder import RunLock
from worldmodel.runs.signals import interruptible


def main(argv: list[str]) -> None:
    """Train a population, or continue one."""
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return
    check_options("pbt", NOT_HERE, argv, any(word.split("=")[0] in ("--config", "-c") for word in argv))
    _check_extra()
    fit = ["fit", *argv]
    with training_errors(fit):
        population = kind_of(argv)(fit).population()
    gc.collect()  # the data that was read to check it
    with RunLock(population.out, "--out"):
        lineage = begin(population)
        last = lineage.last()
        if len(last) == population.size and all(of.step == population.last_step for of in last.values()):
            print(f"the population in {population.out} is finished; train from scratch in another --out", flush=True)
        else:
            from worldmodel.population.engine import evolve

            with interruptible(lambda: _kept(population, lineage)) as stop_if_asked:
                evolve(population, lineage, stop_if_asked)
        conclude(population, lineage)


def _check_extra() -> None:
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UserError("pbt needs Ray Tune: pip install 'worldmodel[pbt]'") from error


def _kept(population: Population, lineage: Lineage) -> str:
    last = lineage.last()
    if not last:
        return f"no member of {population.out} has reached an exchange yet"
    steps = " and ".join(map(str, sorted({report.step for report in last.values()})))
    return f"{len(last)} members at step {steps} are kept in {population.out}"
