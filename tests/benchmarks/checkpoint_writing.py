"""What a checkpoint costs training: written in the step, and beside the steps that follow.

python -m tests.benchmarks.checkpoint_writing [--millions 215] [--folder /tmp]

A state like that of a full fine-tuning with AdamW (weights and two moments, float32, in tensors as large as a U-Net's),
and small matrix products in place of a step. Prints seconds: of writing, of the copy in memory (the first also gets the
memory), and of the products alone and while a checkpoint is written, the slowest too. Needs a core for each of the two.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dpo_core.checkpoint import TrainingState, save_checkpoint
from dpo_core.saving import CheckpointWriter

ROWS, COLUMNS = 1280, 5120


def make_state(millions: float) -> TrainingState:
    count = max(1, round(millions * 1e6 / (ROWS * COLUMNS)))
    weights = {f"blocks.{index}.weight": torch.randn(ROWS, COLUMNS) for index in range(count)}
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": weight.clone(), "exp_avg_sq": weight.square()}
        for index, weight in enumerate(weights.values())
    }
    return TrainingState(1, weights, {"learner": {"optimizer": {"state": moments}}}, {})


def products(seconds: float, going: CheckpointWriter | None = None) -> list[float]:
    """Seconds of each product, for ``seconds`` or while ``going`` writes."""
    matrix, took = torch.randn(600, 600), []
    end = time.perf_counter() + seconds
    while going.busy if going is not None else time.perf_counter() < end:
        before = time.perf_counter()
        for _ in range(10):
            torch.mm(matrix, matrix)
        took.append(time.perf_counter() - before)
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=215)
    parser.add_argument("--folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = make_state(options.millions)
    size = 12 * options.millions / 1e3
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        before = time.perf_counter()
        save_checkpoint(folder / "in", state, 1)
        print(f"{size:.1f} GB written in the step: {time.perf_counter() - before:.1f} s")
        os.sync()
        alone = products(3.0)
        writer = CheckpointWriter(folder / "beside", 1, lambda: None, background=True, copies=True)
        for which in ("first", "second"):
            state.step += 1
            before = time.perf_counter()
            writer.save(state, now=False)
            held = time.perf_counter() - before
            beside = products(0, writer)
            print(f"{which} copy {held:.2f} s, written beside in {time.perf_counter() - before - held:.1f} s")
            print(
                f"  a product takes {1000 * statistics.mean(beside):.1f} ms meanwhile, at most "
                f"{1000 * max(beside):.0f}; alone {1000 * statistics.mean(alone):.1f}, at most {1000 * max(alone):.0f}"
            )
            writer.wait()


if __name__ == "__main__":
    main()
