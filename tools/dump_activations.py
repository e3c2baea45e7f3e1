"""Write the activations that cross layer boundaries of a Hugging Face model to a safetensors file.

    python tools/dump_activations.py --model DIR --out FILE.safetensors [--tokens 8192] [--dtype bfloat16 ...]

One tensor a boundary and dtype, ``prefill.L<layer>.<dtype>`` [tokens, d]: the residual stream after that many layers
(0 is the embedding), and one ``decode.L<layer>.<dtype>``: the rows of tokens generated one at a time, for causal models.
The text is the Python standard library's own sources (or ``--text FILE``), cut into sequences of ``--context`` tokens.
The model runs in the dtype its tensors are written in.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sysconfig

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def standard_library_text(num_chars: int) -> str:
    """About ``num_chars`` of Python sources, spread over the standard library in a fixed order."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.glob("*.py") if p.stat().st_size > 2000)
    parts: list[str] = []
    total = 0
    # A stride coprime to any file count visits every file in an order that mixes neighbours.
    for i in range(len(files)):
        text = files[(i * 7919) % len(files)].read_text("utf-8", errors="replace")
        parts.append(text)
        total += len(text)
        if total >= num_chars:
            break
    return "\n".join(parts)


def token_rows(tokenizer: object, text: str, num_tokens: int, context: int) -> torch.Tensor:
    """[sequences, context] int64 token ids, the first ``num_tokens`` of ``text`` (rounded down to whole sequences)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    num_sequences = min(len(ids), num_tokens) // context
    if num_sequences == 0:
        raise SystemExit(f"{len(ids)} tokens of text are fewer than one sequence of {context}")
    return torch.tensor(ids[: num_sequences * context]).view(num_sequences, context)


@torch.no_grad()  # type: ignore[untyped-decorator]
def prefill(model: torch.nn.Module, rows: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """Residual stream at every boundary, each [tokens, d]; the last of transformers' list is normed, so it is left out."""
    pieces: list[list[torch.Tensor]] = []
    for start in range(0, len(rows), batch):
        hidden = model(input_ids=rows[start : start + batch], output_hidden_states=True).hidden_states
        pieces.append([h.reshape(-1, h.shape[-1]) for h in hidden])
    return [torch.cat(layer).contiguous() for layer in zip(*pieces, strict=True)]


@torch.no_grad()  # type: ignore[untyped-decorator]
def decode(model: torch.nn.Module, rows: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """The same while sampling ``steps`` tokens for each sequence, in step order: each [steps * sequences, d]."""
    out = model(input_ids=rows, use_cache=True)
    pieces: list[list[torch.Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        probabilities = torch.softmax(out.logits[:, -1].float(), -1)
        token = torch.multinomial(probabilities, 1, generator=generator)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, output_hidden_states=True)
        pieces.append([h[:, -1] for h in out.hidden_states])
    return [torch.cat(layer).contiguous() for layer in zip(*pieces, strict=True)]


def dump(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    causal = any("CausalLM" in name for name in AutoConfig.from_pretrained(args.model).architectures or [])
    text = args.text.read_text("utf-8") if args.text else standard_library_text(args.tokens * 6)
    rows = token_rows(tokenizer, text, args.tokens, args.context)
    tensors: dict[str, torch.Tensor] = {}
    for name in args.dtype:
        kind = AutoModelForCausalLM if causal else AutoModel
        model = kind.from_pretrained(args.model, dtype=DTYPES[name]).eval()
        # The final norm (causal models) leaves the stack: what it gives never crosses a boundary.
        stop = -1 if causal else None
        for layer, tensor in list(enumerate(prefill(model, rows, args.batch)))[:stop]:
            tensors[f"prefill.L{layer}.{name}"] = tensor
        if causal and args.decode_steps:
            for layer, tensor in list(enumerate(decode(model, rows[:16, :64], args.decode_steps)))[:stop]:
                tensors[f"decode.L{layer}.{name}"] = tensor
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub name")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, help="UTF-8 file; default: the Python standard library's sources")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences run at once")
    parser.add_argument("--decode-steps", type=int, default=256, help="tokens generated for each of 16 sequences; 0: none")
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES), default=["bfloat16"])
    args = parser.parse_args()
    tensors = dump(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out, metadata={"model": str(args.model), "context": str(args.context)})
    print(json.dumps({name: list(t.shape) for name, t in tensors.items()}))


if __name__ == "__main__":
    main()
