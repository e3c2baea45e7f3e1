"""Makes bloombee/engine/bank.safetensors: real activations of the packaged model, for models that have none of their own.

    python tools/make_activation_bank.py        # rewrites the file

Three depths, bfloat16 [rows, d]: half of the rows from prefill, half from tokens generated one at a time. The text is the
Python standard library's. Rows are spread evenly over what tools/dump_activations.py records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.dump_activations import dump  # noqa: E402

FILE = ROOT / "bloombee" / "engine" / "bank.safetensors"
LAYERS = (1, 4, 7)
NUM_ROWS = 192


def main() -> None:
    options = argparse.Namespace(
        model=str(ROOT / "bloombee" / "demo_model" / "target"),
        text=None,
        tokens=4096,
        context=256,
        batch=8,
        decode_steps=128,
        dtype=["bfloat16"],
    )
    recorded = dump(options)
    bank = {}
    for layer in LAYERS:
        halves = [_spread(recorded[f"{phase}.L{layer}.bfloat16"], NUM_ROWS // 2) for phase in ("prefill", "decode")]
        bank[f"L{layer}"] = torch.cat(halves).contiguous()
    save_file(bank, FILE, metadata={"model": "demo", "text": "the Python standard library"})
    print(f"{FILE}: {FILE.stat().st_size} bytes, { ({name: list(t.shape) for name, t in bank.items()}) }")


def _spread(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows[torch.linspace(0, len(rows) - 1, count).long()]


if __name__ == "__main__":
    main()
