"""Whether memory or the time of a step grows over a million steps of exact gradients on one endless episode.

    python benchmarks/stream.py [--gradient eligibility|rtrl] [--steps 1000000] [--json FILE]

One lane, segments of 250 steps, one thread; the carry holds the state's derivatives since the start. Prints the
process's memory and the time of a segment along the way.
"""

import time
from pathlib import Path
from typing import Any

import torch
from noise import segment
from timing import options_parser, save

from worldmodel import WorldModel

SEGMENT, OBS, ACTIONS = 250, 3, 1


def memory_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--gradient", default="eligibility")
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rule = "diagonal" if options.gradient == "eligibility" else "gated_norm"
    model: Any = WorldModel(OBS, ACTIONS, rule=rule, gradient=options.gradient, latent_dim=8, hidden_dim=16, width=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator, carry, rows = torch.Generator().manual_seed(0), None, []
    count = options.steps // SEGMENT
    began = time.perf_counter()
    for n in range(count):
        batch = segment(1, SEGMENT, OBS, ACTIONS, generator, n)
        terms, _, carry = model.losses(batch if carry is None else {**batch, "carry": carry})
        optimizer.zero_grad()
        torch.stack([terms[name] for name in model.weights]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (n + 1) % max(1, count // 10) == 0:
            milliseconds = 1000 * (time.perf_counter() - began) / max(1, count // 10)
            rows.append({"steps": (n + 1) * SEGMENT, "memory_mb": memory_mb(), "segment_ms": milliseconds})
            print(
                "{steps:>9,} steps  {memory_mb:7.1f} MB  {segment_ms:6.1f} ms a segment".format(**rows[-1]), flush=True
            )
            began = time.perf_counter()
    if not all(p.isfinite().all() for p in model.parameters()):
        raise SystemExit("weights are not finite")
    save(options.json, {"gradient": options.gradient, "rows": rows})


if __name__ == "__main__":
    main()
