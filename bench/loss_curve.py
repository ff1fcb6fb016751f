"""A small language model trained from one seed by eager and by backend="flex": the same curve?

    python -m bench.loss_curve [--steps 300] [--device cpu] [--out FILE]

A GPT-2 of two layers without dropout learns the characters of Python's own documentation strings, eight pieces of 128
at a step. Two curves of eager differ too, by how their sums are rounded: `noise` is eager again, with its sums in
another order (the batch turned around, and another number of threads). ours: backend="flex" with
rewrite="always", so that our kernels compute every layer, forward and backward. Written are the three losses of each
step and, with matplotlib, a picture beside them: curves, and how far each is from eager. What Inductor computes
around the attention is rounded in its own way too.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.record import ROOT, write

COLUMNS = ("step", "eager", "noise", "ours")
BATCH, LENGTH, WIDTH = 8, 128, 128
SETTINGS = {"n_layer": 2, "n_embd": WIDTH, "n_head": 4, "n_positions": LENGTH, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
            "attn_pdrop": 0.0, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/loss_curve.csv")
    args = parser.parse_args()
    found = curves(args.steps, args.device)
    rows = [
        {"step": i, **{how: f"{loss:.7f}" for how, loss in zip(found, x)}} for i, x in enumerate(zip(*found.values()))
    ]
    write(args.out, COLUMNS, rows)
    plot(found, args.out.with_suffix(".png"))
    for how, losses in found.items():
        print(f"{how}: {losses[0]:.4f} to {losses[-1]:.4f}, at most {distance(found, how):.2g} from eager")


def curves(steps: int, device: str) -> dict[str, list[float]]:
    """The loss of every step, by eager, by eager summing in another order, and by us."""
    import torch

    threads, other = torch.get_num_threads(), 1 if torch.get_num_threads() > 1 else 2
    found = {"eager": trained(steps, device)}
    torch.set_num_threads(other)
    try:
        found["noise"] = trained(steps, device, turned=True)
    finally:
        torch.set_num_threads(threads)
    found["ours"] = trained(steps, device, {"rewrite": "always", "on_failure": "raise"})
    return found


def trained(steps: int, device: str, options: dict[str, Any] | None = None, turned: bool = False) -> list[float]:
    """Trains the model from its seed. options: those of backend="flex"; None for eager."""
    import torch
    import transformers

    data = pieces(device)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=128, **SETTINGS)
    net = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").to(device).train()
    run = net if options is None else torch.compile(net, backend="flex", options=options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        batch = next(data).flip(0) if turned else next(data)
        loss = run(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def pieces(device: str) -> Iterator[Any]:
    """Batches of random pieces of the text, the same ones every time."""
    import torch

    text = "".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore")
    characters = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().to(device)
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(characters) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([characters[i : i + LENGTH] for i in starts.tolist()])


def distance(found: dict[str, list[float]], how: str) -> float:
    """How far a curve is from eager's at most."""
    return max(abs(a - b) for a, b in zip(found[how], found["eager"]))


def plot(found: dict[str, list[float]], path: Path) -> None:
    """The curves, and their distances from eager (needs the extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True)
    for (how, losses), style in zip(found.items(), ("-", "--", ":")):
        above.plot(losses, style, label=how)
        if how != "eager":
            below.semilogy([max(abs(a - b), 1e-8) for a, b in zip(losses, found["eager"])], style, label=how)
    above.set_ylabel("loss")
    below.set_ylabel("distance from eager")
    below.set_xlabel("step")
    for axis in (above, below):
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
