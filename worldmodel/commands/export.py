"""`worldmodel export`: a trained model as safetensors and JSON, for programs without Lightning."""

from pathlib import Path

import torch

from worldmodel import __version__
from worldmodel.arguments import Parser
from worldmodel.export import DIGESTS, write_export
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.runs.files import find_checkpoint


def main(argv: list[str]) -> None:
    """Parse the command line, write the folder, and say how to load it."""
    parser = Parser("worldmodel export", "Write a trained model as safetensors, JSON and their SHA-256.")
    parser.add_argument("--ckpt", type=Path, required=True, help="Folder of a run, or a checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="New folder to write to.")
    options = parser.parse_args(argv)
    path = find_checkpoint(options.ckpt)
    checkpoint = read_checkpoint(path)
    about = {
        "program": f"worldmodel {__version__}, torch {torch.__version__}",
        "trained_steps": checkpoint.get("global_step"),
        "data": checkpoint.get("EpisodeDataModule", {}).get("data", {}),
    }
    model = write_export(options.out, checkpoint["hyper_parameters"], checkpoint["state_dict"], about, path)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    print(f"{path}: {numbers:,} numbers, {size:,} bytes, verified")
    print(f"check:  cd {options.out} && sha256sum -c {DIGESTS}")
    print(f'load:   from worldmodel import load_exported; model = load_exported("{options.out}")')
    print(f"export: {options.out}")
