"""`worldmodel export`: a trained model for programs without Lightning, or without Python."""

from pathlib import Path

import torch

from worldmodel import __version__
from worldmodel.arguments import TRUST, Parser
from worldmodel.export import DIGESTS, write_export
from worldmodel.graphs import STEPS, SUFFIX, write_graphs
from worldmodel.restore import own_parts, rebuilt
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.runs.files import find_checkpoint

LOAD = {  # in Python
    "safetensors": 'from worldmodel import load_exported; model = load_exported("{out}")',
    "onnx": 'import onnxruntime; observe = onnxruntime.InferenceSession("{out}/observe.onnx")',
    "torch": 'import torch; observe = torch.export.load("{out}/observe.pt2").module()',
}


def main(argv: list[str]) -> None:
    """Parse the command line, write the folder, and say how to load it."""
    parser = Parser("worldmodel export", "Write a trained model for programs without Lightning, or without Python.")
    parser.add_argument("--ckpt", type=Path, required=True, help="Folder of a run, or a checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="New folder to write to.")
    formats = "safetensors: weights, for worldmodel.load_exported; onnx, torch: graphs that need no worldmodel."
    parser.add_argument("--format", choices=("safetensors", *SUFFIX), default="safetensors", help=formats)
    parser.add_argument("--trust", action="store_true", help=f"{TRUST}.")
    options = parser.parse_args(argv)
    path = find_checkpoint(options.ckpt)
    checkpoint = read_checkpoint(path)
    about = {
        "program": f"worldmodel {__version__}, torch {torch.__version__}",
        "trained_steps": checkpoint.get("global_step"),
        "data": checkpoint.get("EpisodeDataModule", {}).get("data", {}),
    }
    recorded, use = checkpoint.get("parts"), LOAD[options.format]
    if options.format == "safetensors":
        own = {"trust": options.trust, "recorded": recorded}
        model = write_export(options.out, checkpoint["hyper_parameters"], checkpoint["state_dict"], about, path, **own)
        numbers = sum(tensor.numel() for tensor in model.state_dict().values())
        kept, trusting = f"{numbers:,} numbers, verified", bool(own_parts(checkpoint["hyper_parameters"]))
        use = use.replace(")", ", trust=True)") if trusting else use
    else:
        model = rebuilt(checkpoint["hyper_parameters"], checkpoint["state_dict"], path, options.trust, recorded)
        worst = write_graphs(options.out, model, options.format, about)
        kept = f"observe and predict, at most {worst:.0e} from the model over {STEPS} steps"
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{path}: {size:,} bytes; {kept}")
    print(f"check:  cd {options.out} && sha256sum -c {DIGESTS}")
    print(f"load:   {use.format(out=options.out)}")
    print(f"export: {options.out}")
