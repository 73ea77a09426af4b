"""Training a reward model on ranked lists of 8: the tree layout against one sequence per row, CPU seconds of one epoch.

    python benchmarks/reward_model.py --repeats 2 --json result.json

Prompts of 512 tokens with eight ranked responses of 128, the layers of `preference_training.py`, `accord.align` with
objective=k_wise, one thread, fp32, one list per micro-batch on either layout. Both take turns in one process, after a
warm-up on one list each; seconds are of the training loop without its checkpoint, and only their ratio means something
elsewhere. Goal: at least 3.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ.update(CI="1", HF_HUB_OFFLINE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import Clock
from necessary import Shape, forward_flops, plain_forward_flops
from workload import EOS, MODEL_SHAPE, VOCABULARY, _word_tokenizer, _write_model

from accord import align
from accord.policy.reward import load_reward
from accord.records import Group, Ranking, Response
from accord.train import Loop

NUM_RESPONSES, NUM_PROMPT, NUM_RESPONSE = 8, 512, 128
GOAL = 3.0


def ranked_groups(count: int) -> list[Group]:
    """Groups of random words: each response is 127 of them and the end of sequence."""
    words = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{words.randrange(1, VOCABULARY - 1)}" for _ in range(length))

    order = tuple((place,) for place in range(NUM_RESPONSES))
    return [
        Group(
            prompt=text(NUM_PROMPT),
            responses=tuple(Response(content=" " + text(NUM_RESPONSE - 1)) for _ in range(NUM_RESPONSES)),
            judgements=(Ranking(order=order),),
        )
        for _ in range(count)
    ]


def train_once(model: Path, groups: Sequence[Group], layout: str, out: Path) -> dict[str, Any]:
    """Train one epoch on a layout and return the loop's seconds and losses."""
    policy = load_reward(model, device="cpu")
    if layout == "plain":
        policy.fall_back_to_plain("the benchmark compares with one sequence per row")
    clock, saving, losses = Clock(), Clock(), []
    train, save = Loop.train, Loop.save_checkpoint

    def timed(loop: Loop) -> Any:
        with clock:
            return train(loop)

    def timed_save(loop: Loop, *args: Any, **kwargs: Any) -> Any:
        with saving:
            return save(loop, *args, **kwargs)

    def watch(step: int, total: int, metrics: dict[str, float]) -> None:
        losses.append(metrics["loss"])

    settings = {
        "objective": "k_wise", "data.eval_fraction": 0.0, "train.batch_size": 4, "train.lr": 1e-5, "train.log_every": 1,
        "train.max_batch_tokens": 2048, "tracking.report": False, "out": str(out),
    }  # fmt: skip
    with mock.patch.object(Loop, "train", timed), mock.patch.object(Loop, "save_checkpoint", timed_save):
        done = align(policy=policy, groups=groups, overwrite=True, progress=watch, **settings)
    return {
        "layout": done.summary["layout"], "cpu_s": clock.cpu_s - saving.cpu_s, "wall_s": clock.wall_s - saving.wall_s,
        "cpu_s_saving": saving.cpu_s, "losses": losses,
    }  # fmt: skip


def ratio_by_flops() -> float:
    """What the layers' products alone would give: a reward model has no vocabulary to meet."""
    width = MODEL_SHAPE["hidden_size"]
    shape = Shape(width, MODEL_SHAPE["num_hidden_layers"], MODEL_SHAPE["intermediate_size"], 0, width)
    lengths = [NUM_RESPONSE] * NUM_RESPONSES
    return plain_forward_flops(shape, NUM_PROMPT, lengths) / forward_flops(shape, NUM_PROMPT, lengths)


def compare(repeats: int, num_groups: int, folder: Path) -> dict[str, Any]:
    """Run both layouts `repeats` times in turn."""
    tokenizer = _word_tokenizer()
    _write_model(folder / "model", tokenizer, MODEL_SHAPE)
    groups = ranked_groups(num_groups)
    runs: dict[str, list[dict[str, Any]]] = {"tree": [], "plain": []}
    for layout in runs:
        train_once(folder / "model", groups[:1], layout, folder / "run")  # memory that is touched first costs more
    for repeat in range(repeats):
        for layout, found in runs.items():
            found.append(train_once(folder / "model", groups, layout, folder / "run"))
            last = found[-1]
            assert last["layout"] == layout, f"ran on the {last['layout']} layout"
            print(f"# {repeat + 1}/{repeats}  {layout}: {last['cpu_s']:.1f} CPU s, losses {last['losses']}", flush=True)
    ratios = [plain["cpu_s"] / tree["cpu_s"] for plain, tree in zip(runs["plain"], runs["tree"], strict=True)]
    gap = max(
        abs(a - b)
        for tree, plain in zip(runs["tree"], runs["plain"], strict=True)
        for a, b in zip(tree["losses"], plain["losses"], strict=True)
    )
    return {
        "groups": num_groups, "runs": runs, "ratio": median(ratios), "ratio_range": [min(ratios), max(ratios)],
        "ratio_by_flops": ratio_by_flops(), "largest_loss_gap": gap, "torch": torch.__version__,
        "load_average": os.getloadavg(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8, help="ranked lists of 8 in the epoch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args.repeats, args.groups, Path(folder))
    tree, plain = (median(run["cpu_s"] for run in found["runs"][layout]) for layout in ("tree", "plain"))
    low, high = found["ratio_range"]
    print(
        f"reward model, {args.groups} ranked lists of 8 (prompt 512, responses 128), end of sequence {EOS}: tree "
        f"{tree:.1f} CPU s, one sequence per row {plain:.1f}: {found['ratio']:.2f} times ({low:.2f}–{high:.2f}; by "
        f"FLOPs {found['ratio_by_flops']:.2f}; goal {GOAL}); losses differ by at most {found['largest_loss_gap']:.1e}"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
