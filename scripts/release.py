"""Makes released weights of a run: half precision, loadable by name.

    python scripts/release.py --run blind --as gray-awgn-blind      ->  checkpoints/gray-awgn-blind.safetensors

Only the weights, the model's configuration and how it was trained are kept: the run's options without the folders of
this machine, the number of steps and --trained-on. A card, NAME.md, belongs beside the file and is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

from models import resolve_checkpoint
from options.base import Parser
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UsageError, run_script
from utils.provenance import training_facts


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="scripts/release.py", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run, or checkpoint file, of either stage")
    parser.add_argument("--as", dest="name", required=True, help="name of the released weights")
    parser.add_argument(
        "--trained-on",
        default=None,
        metavar="TEXT",
        help='the device and how long it took, e.g. "31 minutes on two cores of a Xeon"',
    )
    parser.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints"))
    opt = parser.parse_args(argv)
    source = load_checkpoint(resolve_checkpoint(opt.run, opt.checkpoints_dir), kind=("stage1", "stage2"))
    target = opt.checkpoints_dir / f"{opt.name}.safetensors"
    if (opt.checkpoints_dir / opt.name / "last.safetensors").is_file():
        raise UsageError(
            f"--as {opt.name}: a run has that name, and checkpoints are found by name; give another, "
            "or rename the run's folder"
        )
    values = {key: source.values[key] for key in ("config", "white_level", "step")}
    facts = {**(training_facts(source.values) or {}), **({"trained_on": opt.trained_on} if opt.trained_on else {})}
    values["training"] = facts or None
    save_checkpoint(
        target, source.kind, {name: tensor.to(torch.float16) for name, tensor in source.tensors.items()}, values
    )
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    run_script(main)
