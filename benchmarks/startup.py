"""How long the program takes to start.

    python benchmarks/startup.py [--rounds 7] [--json FILE]

Real processes take turns: help, the imports of the package, of torch and of Lightning, and a whole fit of one step.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from timing import in_turns, options_parser, save

GOAL = 0.5  # seconds, of `worldmodel --help`
WAYS = {
    "python": ["-c", "pass"],
    "worldmodel --help": ["-m", "worldmodel", "--help"],
    "import worldmodel": ["-c", "import worldmodel"],
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "worldmodel fit --help": ["-m", "worldmodel", "fit", "--help"],
}


def main() -> None:
    """Seconds of each: the median, and the quartiles."""
    parser = options_parser(__doc__, rounds=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        collected = ["collect", "Pendulum-v1", "--out", str(folder / "data"), "--steps", "2000"]
        subprocess.run([sys.executable, "-m", "worldmodel", *collected], check=True, capture_output=True)
        trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "limit_val_batches": 0}
        conf = {"wandb": "disabled", "data": {"path": str(folder / "data")}, "trainer": trainer}
        (folder / "fit.yaml").write_text(yaml.safe_dump(conf))
        ways = WAYS | {"worldmodel fit, one step": ["-m", "worldmodel", "fit", "--config", str(folder / "fit.yaml")]}

        def process(arguments: list[str]):
            return lambda: subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)

        timed = in_turns(
            {name: process(arguments) for name, arguments in ways.items()}, options.rounds, 1, time.perf_counter
        )
    for name, taken in timed.items():
        goal = f"   goal < {GOAL} s" if name == "worldmodel --help" else ""
        print(f"{name:26}{taken.median:8.2f} s   {taken.low:.2f}-{taken.high:.2f}{goal}")
    save(options.json, {"seconds": {name: taken.median for name, taken in timed.items()}})


if __name__ == "__main__":
    main()
