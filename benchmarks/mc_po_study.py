"""MC-PO's kernels against random and max-margin negatives in the text world: at equal steps and at equal KL.

    python benchmarks/mc_po_study.py --seeds 5 --json study.json

Each arm of each seed is a run of some half a minute on one core; what is done is kept in the JSON file after every run,
and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from accord.lab.contrastive import ARMS, BASELINE, Checkpoint, Scale, markdown_table, prepare, run_arm, summarise

KLS = (0.5, 1.0, 1.5)


def main() -> None:
    """Run what is missing, then print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=Scale.num_steps)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--json", type=Path, default=None, help="keep every checkpoint of every run here")
    given = parser.parse_args()
    scale = Scale(num_steps=given.steps)
    runs = _read(given.json, scale)
    for seed in range(given.seeds):
        missing = [arm for arm in given.arms if seed not in runs.get(arm, {})]
        material = prepare(seed, scale) if missing else None
        for arm in missing:
            assert material is not None
            started = time.perf_counter()
            runs.setdefault(arm, {})[seed] = run_arm(material, ARMS[arm], scale)
            end = runs[arm][seed][-1]
            print(
                f"seed {seed}  {arm:32} gold {end.gold:.3f}  KL {end.kl:.2f}  chosen NLL {end.chosen_nll:.3f}  "
                f"{time.perf_counter() - started:.0f} s", flush=True,
            )  # fmt: skip
            _write(given.json, scale, runs)
    rows = summarise({arm: runs[arm] for arm in given.arms if arm in runs}, KLS)
    print(f"\nAt equal steps ({scale.num_steps}), 95 % intervals over {given.seeds} seeds; gain over {BASELINE}:\n")
    print(markdown_table(rows, ["gold", "gain", "best gold", "kl", "chosen_nll", "length"]))
    print(f"\nAt equal KL (nats per answer); gain over {BASELINE}, paired by seed; — where a seed never gets there:\n")
    print(markdown_table(rows, [f"{name} at KL {kl:g}" for kl in KLS for name in ("gold", "gain", "chosen_nll")]))


def _read(path: Path | None, scale: Scale) -> dict[str, dict[int, list[Checkpoint]]]:
    if path is None or not path.exists():
        return {}
    kept = json.loads(path.read_text())
    if kept["scale"] != asdict(scale):
        raise SystemExit(f"{path} holds runs of another scale — name another file")
    return {
        arm: {int(seed): [Checkpoint(**one) for one in checkpoints] for seed, checkpoints in by_seed.items()}
        for arm, by_seed in kept["runs"].items()
    }


def _write(path: Path | None, scale: Scale, runs: dict[str, dict[int, list[Checkpoint]]]) -> None:
    if path is None:
        return
    plain: dict[str, Any] = {
        arm: {seed: [asdict(one) for one in checkpoints] for seed, checkpoints in by_seed.items()}
        for arm, by_seed in runs.items()
    }
    path.write_text(json.dumps({"scale": asdict(scale), "runs": plain}))


if __name__ == "__main__":
    main()
