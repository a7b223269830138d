"""The comparisons of docs/results, from scratch: python benchmarks/results.py [linear pendulum ...]

NAME_none is gated_norm without a base, as long as a run with one takes; linear_memory are the cells made for sequence
tasks. Each resumes where it was interrupted (runs/results/NAME); then its tables, numbers and curves are copied to
docs/results. On two cores the linear system takes an hour, each simulator about twenty minutes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import ARGUMENTS, find  # noqa: E402

RULES = "residual,gated,gated_norm,direct,unit_norm,gru,lstm,triad"
DOCS = ROOT / "docs" / "results"
SIMULATORS = ("pendulum", "cartpole", "acrobot", "half_cheetah")
COMPARISONS = {  # name -> configuration, rules, starts, seeds, further options
    "linear": ("conf/linear.yaml", RULES, "carry,zero", "0,1,2,3,4"),
    **{name: (f"conf/results/{name}.yaml", RULES, "carry", "0,1,2") for name in SIMULATORS},
    "linear_memory": ("conf/linear.yaml", "diagonal,slots", "carry", "0,1,2"),
    **{
        f"{name}_none": (
            f"conf/results/{name}.yaml", "gated_norm", "carry", "0,1,2", "--model.base", "none",
            "--model.open_loop_weight", "0.3", "--trainer.max_steps", "4200",
        )
        for name in SIMULATORS
    },
}  # fmt: skip


def compare(name: str) -> Path:
    """Run a comparison to its end; returns its folder."""
    conf, rules, starts, seeds, *options = COMPARISONS[name]
    out = f"runs/results/{name}"
    options += ["--config", conf, "--rules", rules, "--start", starts, "--seeds", seeds]
    options += ["--wandb", "disabled", "--out", out]
    subprocess.run([Path(sys.executable).with_name("worldmodel"), "compare", *options], cwd=ROOT, check=True)
    return ROOT / out


def publish(folder: Path, name: str) -> None:
    """Copy tables and numbers of a comparison, and take a picture of its report's curves."""
    DOCS.mkdir(parents=True, exist_ok=True)
    for file in ("results.md", "results.csv"):
        shutil.copyfile(folder / file, DOCS / f"{name}{Path(file).suffix}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto((folder / "report.html").as_uri())
        page.locator("#curves").screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    for name in sys.argv[1:] or COMPARISONS:
        publish(compare(name), name)
