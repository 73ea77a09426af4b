"""The only owner of files in a run folder: what a run writes is either complete or not there.

    runs/NAME/
      config.yaml  manifest.json  log.txt      settings as resolved; versions, hashes, status; what was said
      metrics.jsonl  tensorboard/              one line per report; the same numbers as event files
      rows/train-000010.parquet                per-example rows, one part per flush
      checkpoints/step-000010/  model/         sealed by an index.json with the size and SHA-256 of every file
      bad_batch/  plan.json  data_report.json  the batch of a non-finite loss; what was said before training
      bad_rows.jsonl                           rows that could not be read: file, line, reason
      summary.json  report.html                what is left to read

Weights are written by `policy` and `train` into the folders handed out here, so nothing in this file needs torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.durable import (
    append_whole,
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
    dump_json,
    find_damage,
    find_free_name,
    format_bytes,
    hash_file,
    is_full_disk,
    lock_folder,
    read_json_file,
    remove,
    replace_folder,
    seal_folder,
    store_error,
    storing,
    time_stamp,
    to_plain,
)
from accord.environment import describe_environment
from accord.errors import StoreError

__all__ = ["Checkpoint", "RejectedCheckpoint", "RunFolder", "hash_file"]

FILES = ("config.yaml", "manifest.json", "log.txt", "metrics.jsonl", "plan.json", "data_report.json", "bad_rows.jsonl")
RESULTS = ("summary.json", "report.html")
FOLDERS = ("rows", "rollouts", "checkpoints", "model", "bad_batch", "tensorboard", "wandb")


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedCheckpoint:
    """A checkpoint that was passed over, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The newest checkpoint whose every file has the size and hash of its index."""

    step: int
    path: Path
    rejected: tuple[RejectedCheckpoint, ...] = ()

    def __str__(self) -> str:
        passed_over = "".join(f"; passed over {bad.path.name}: {bad.reason}" for bad in self.rejected)
        return f"checkpoint of step {self.step}{passed_over}"


class RunFolder:
    """A run's folder. `create` it to write (one process at a time), `open` it to read."""

    def __init__(self, path: Path, *, is_resumed: bool = False) -> None:
        self.path = path
        self.is_resumed = is_resumed
        self._known: dict[Path, bool] = {}  # checkpoints written or read through by this process: whole or damaged

    # -- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, *, resume: bool = False, overwrite: bool = False, needed_bytes: int = 0
    ) -> RunFolder:
        """Make or take over a run folder and lock it for this process.

        An existing non-empty folder is refused, unless `resume` (it must be a run's; everything is kept) or `overwrite`
        (it must be a run's; Accord's own files are removed, others stay). `resume` on a missing or empty folder starts
        a new run, told apart by `is_resumed`. Raises StoreError also when the folder cannot be written, when it has
        less than `needed_bytes` free, or when another process is running in it.
        """
        assert not (resume and overwrite), "resume keeps a run, overwrite removes it"
        path = Path(path).absolute()
        with storing("a run folder", path):
            path.mkdir(parents=True, exist_ok=True)
        is_run = check_vacant(path, run_is_fine=resume or overwrite)
        check_writable(path)
        lock_folder(path)
        run = cls(path, is_resumed=is_run and resume)
        run._remove_leftovers()
        run.check_free_space(needed_bytes)
        if overwrite:
            run._remove_everything()
        if not run.is_resumed:
            run.update_manifest(**describe_environment(), status="running", started_at=time_stamp(), command=sys.argv)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run for reading. Raises StoreError when `path` is not a run folder."""
        path = Path(path).absolute()
        if not (path / "manifest.json").is_file():
            found = _some(sorted(entry.name for entry in path.iterdir())) if path.is_dir() else "no such folder"
            raise StoreError(
                f"got {path} ({found}) — expected a run folder with a manifest.json — "
                "give the folder that `accord align` or `accord demo` wrote"
            )
        return cls(path)

    def check_free_space(self, needed_bytes: int) -> None:
        """Raise StoreError when the disk has less than `needed_bytes` free."""
        free = shutil.disk_usage(self.path).free
        if free < needed_bytes:
            raise StoreError(
                f"got {format_bytes(free)} free at {self.path} — expected at least {format_bytes(needed_bytes)} — "
                "free some space, choose another output folder or keep fewer checkpoints"
            )

    # -- documents ----------------------------------------------------------------------------------------------

    def write_config(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Write `config.yaml`; a resumed run's earlier, different settings stay as `config-N.yaml`.

        Returns the dotted names of the settings that differ from the earlier ones.
        """
        import yaml

        path = self.path / "config.yaml"
        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=110)
        changed: tuple[str, ...] = ()
        if path.exists():
            before, after = _flatten(self.read_config()), _flatten(yaml.safe_load(text))
            keys = sorted(before.keys() | after.keys())
            changed = tuple(key for key in keys if before.get(key, _MISSING) != after.get(key, _MISSING))
            if not changed:
                return ()
            with storing("the earlier settings", path):
                os.rename(path, find_free_name(self.path / "config-1.yaml"))
        atomic_write_text(path, text)
        return changed

    def read_config(self) -> dict[str, Any]:
        """Return the resolved settings, {} when there are none yet."""
        import yaml

        path = self.path / "config.yaml"
        return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}

    def update_manifest(self, **fields: Any) -> None:
        """Merge fields into `manifest.json` (data_hash, weights_hash, seed, command, status, …)."""
        self.write_json("manifest", {**self.read_json("manifest"), **fields})

    def finish(self, status: str) -> None:
        """Record how the run ended: "finished" or "stopped"."""
        assert status in {"finished", "stopped"}, status
        self.update_manifest(status=status, ended_at=time_stamp())

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write `NAME.json` (manifest, plan, data_report, summary) atomically; non-finite numbers become null."""
        assert f"{name}.json" in FILES + RESULTS, f"{name}.json is not part of a run folder's layout"
        path = self.path / f"{name}.json"
        atomic_write_text(path, dump_json(value, indent=2) + "\n")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Return `NAME.json`, {} when it does not exist. Raises StoreError when it cannot be read."""
        path = self.path / f"{name}.json"
        return read_json_file(path) if path.exists() else {}

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write `summary.json`: the run's final numbers (see `evaluation.report` for the keys it shows)."""
        return self.write_json("summary", summary)

    def write_bad_rows(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write the rows that could not be read, one JSON line each: file, line, reason."""
        path = self.path / "bad_rows.jsonl"
        atomic_write_text(path, "".join(dump_json(row) + "\n" for row in rows))
        return path

    def append_log(self, text: str) -> None:
        """Append lines with a time stamp to `log.txt`."""
        append_whole(self.path / "log.txt", "".join(f"{time_stamp()} {line}\n" for line in text.splitlines()).encode())

    def write_bad_batch(self, step: int, batch: Mapping[str, Any]) -> Path:
        """Keep the batch of a non-finite loss as JSON (here nan and inf stay visible, as strings)."""
        folder = self._folder("bad_batch")
        path = find_free_name(folder / f"{_step_name(step)}.json")
        atomic_write_text(path, dump_json(batch, indent=1, non_finite=str) + "\n")
        return path

    # -- metrics and rows ---------------------------------------------------------------------------------------

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; non-finite numbers become null."""
        append_whole(self.path / "metrics.jsonl", (dump_json({"step": int(step), **metrics}) + "\n").encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return every line of `metrics.jsonl`; a last line cut by a kill is left out.

        Raises StoreError for a malformed line elsewhere, with its number.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        records = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never completed
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StoreError(f"got {line[:80]!r} ({path}, line {number}) — expected JSON — {error}") from error
            records.append(record)
        return records

    def write_rows(self, split: str, step: int, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Write per-example rows as one part of `rows/`, None when there are none; rows without a `step` get this."""
        import pyarrow as pa

        if not rows:
            return None
        path = find_free_name(self._folder("rows") / f"{split}-{step:06d}.parquet")
        _write_table(path, pa.Table.from_pylist([to_plain({"step": step, **row}) for row in rows]))
        return path

    def write_rollout(self, step: int, write: Callable[[Path], Any]) -> Path:
        """Keep what `write` makes, a Parquet file: the rollout that the steps after `step` are trained on."""
        path = self._folder("rollouts") / f"{_step_name(step)}.parquet"
        part = self.path / f".{path.stem}.tmp-{os.getpid()}.parquet"  # not in the folder, which readers take whole
        try:
            with storing("a rollout", path):
                write(part)
                atomic_write_bytes(path, part.read_bytes())
        finally:
            remove(part)
        return path

    def read_rows(self, split: str | None = None) -> Any:
        """Return the rows of one split (None = all) as one `pyarrow.Table`, parts in the order of their steps."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = [pq.read_table(path) for path in self._parts(split)]
        return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})

    def rewind(self, step: int, *, keep_evaluation: bool = True) -> int:
        """Drop metrics, rows and rollouts after `step` (−1 = all): a resumed run tells its story once; return how many.

        Without `keep_evaluation`, drop the evaluation after `step` too: its checkpoint was written before it.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        records = self.read_metrics()
        kept = [
            record
            for record in records
            if record["step"] < step + (keep_evaluation or not any(key.startswith("eval/") for key in record))
        ]
        atomic_write_text(self.path / "metrics.jsonl", "".join(dump_json(record) + "\n" for record in kept))
        num_dropped = len(records) - len(kept)
        for path in self._parts(None):
            split, last, _ = _part_name(path)
            end = step + (keep_evaluation or split == "train")
            if last < end:
                continue
            table = pq.read_table(path)
            early = table.filter(pc.field("step") < end)
            num_dropped += len(table) - len(early)
            if len(early):
                _write_table(path, early)
            else:
                path.unlink()
        for path in (self.path / "rollouts").glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) >= max(step, 0):  # drawn after the checkpoint
                path.unlink()
                num_dropped += 1
        return num_dropped

    # -- checkpoints and the model ------------------------------------------------------------------------------

    @contextmanager
    def new_checkpoint(self, step: int, *, needed_bytes: int = 0) -> Iterator[Path]:
        """Hand out a folder to write a checkpoint into; on leaving, it is hashed, synced and renamed as one step.

        When the body raises, nothing remains. Raises StoreError when the disk is full (saying what is kept), or when a
        good checkpoint of this step exists; a damaged one is moved aside as `rejected-step-…`.
        """
        final = self._folder("checkpoints") / _step_name(step)
        if final.exists():
            damage = find_damage(final)
            if damage is None:
                raise StoreError(f"got a second checkpoint of step {step} — expected none at {final} — it was kept")
            with storing("a damaged checkpoint aside", final):
                os.rename(final, find_free_name(final.with_name(f"rejected-{final.name}")))
        self.check_free_space(needed_bytes)
        with self._new_folder(final, what=f"the checkpoint of step {step}", facts={"step": step}) as folder:
            yield folder
        self._known[final] = True

    @contextmanager
    def new_model(self) -> Iterator[Path]:
        """Hand out a folder for the final model, sealed like a checkpoint; only a resumed run may replace `model/`."""
        final = self.path / "model"
        if final.exists() and not self.is_resumed:
            raise StoreError(f"got a second final model — expected none at {final} — it was kept")
        with self._new_folder(final, what="the final model", facts={}) as folder:
            yield folder

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Return the steps that have a whole checkpoint, oldest first, as far as can be told without reading them."""
        return tuple(sorted(step for step, path in self._checkpoints() if self._is_whole(path)))

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.path / "checkpoints" / _step_name(step)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, with those passed over; None when none was ever completed.

        Raises StoreError when there are checkpoints and every one is damaged.
        """
        rejected: list[RejectedCheckpoint] = []
        for step, path in sorted(self._checkpoints(), reverse=True):
            damage = find_damage(path)
            self._known[path] = damage is None
            if damage is None:
                return Checkpoint(step=step, path=path, rejected=tuple(rejected))
            rejected.append(RejectedCheckpoint(path=path, reason=damage))
        if rejected:
            reasons = "; ".join(f"{bad.path.name}: {bad.reason}" for bad in rejected)
            raise StoreError(
                f"got only damaged checkpoints in {self.path / 'checkpoints'} ({reasons}) — expected a whole one — "
                "restore a copy of one, or start again in another folder"
            )
        return None

    def prune(self, *, keep_last: int, best_step: int | None = None) -> tuple[int, ...]:
        """Remove old checkpoints but for the newest `keep_last` whole ones and that of `best_step`; return the steps.

        Raises StoreError when one cannot be removed.
        """
        assert keep_last >= 1, keep_last
        removed = []
        num_kept = 0
        for step, path in sorted(self._checkpoints(), reverse=True):
            num_kept += self._is_whole(path)
            if step == best_step or num_kept <= keep_last:
                continue
            with storing("the removal of an old checkpoint", path):
                # renamed first: a kill half-way through must not leave something that looks like a checkpoint
                doomed = path.with_name(f".{path.name}.removed")
                os.rename(path, doomed)
                shutil.rmtree(doomed)
            removed.append(step)
        return tuple(reversed(removed))

    # -- inside -------------------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        with storing(f"the folder {name}", folder):
            folder.mkdir(exist_ok=True)
        return folder

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = [(_STEP.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("step-*")]
        return [(int(match[1]), path) for match, path in found if match]

    def _is_whole(self, path: Path) -> bool:
        return self._known[path] if path in self._known else find_damage(path, read_files=False) is None

    def _parts(self, split: str | None) -> list[Path]:
        parts = [path for path in (self.path / "rows").glob("*.parquet") if split in (None, _part_name(path)[0])]
        return sorted(parts, key=lambda path: (*_part_name(path)[1:], path.name))

    @contextmanager
    def _new_folder(self, final: Path, *, what: str, facts: Mapping[str, Any]) -> Iterator[Path]:
        temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
        try:
            temporary.mkdir()
            yield temporary
            seal_folder(temporary, facts)
            replace_folder(temporary, final)
        except BaseException as error:
            is_ours = isinstance(error, OSError) or is_full_disk(error)
            told = store_error(error, what, final, self._what_is_kept()) if is_ours else None  # while it is still full
            shutil.rmtree(temporary, ignore_errors=True)
            if told is not None:
                raise told from error
            raise

    def _what_is_kept(self) -> str:
        steps = self.checkpoint_steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no earlier checkpoint exists"
        return f"; the unfinished one was removed, {kept}"

    def _remove_leftovers(self) -> None:
        """Clear what a killed process left half-written (the lock is held: nobody else is writing)."""
        with storing("the removal of unfinished files", self.path):
            replaced = self.path / ".model.replaced"
            if replaced.exists() and not (self.path / "model").exists():  # killed between the two renames
                os.rename(replaced, self.path / "model")
            for folder in (self.path, *(self.path / name for name in ("rows", "checkpoints", "bad_batch"))):
                for pattern in (".*.tmp-*", ".*.removed", ".*.replaced"):
                    for leftover in folder.glob(pattern):
                        remove(leftover)

    def _remove_everything(self) -> None:
        with storing("the removal of an earlier run", self.path):
            for name in (*FOLDERS, *RESULTS, *FILES):
                remove(self.path / name)
            for earlier in self.path.glob("config-*.yaml"):
                remove(earlier)


def check_vacant(path: str | Path, *, run_is_fine: bool = False) -> bool:
    """Return whether `path` holds a run; raise StoreError when it holds anything else, or a run that is not fine."""
    path = Path(path).absolute()
    found = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []
    is_run = "manifest.json" in found
    if found and not is_run:
        raise StoreError(
            f"got a folder that is not empty and not a run of Accord: {path} (holds {_some(found)}) — "
            "expected a new or empty folder — choose another output folder"
        )
    if is_run and not run_is_fine:
        raise StoreError(
            f"got a folder that already holds a run: {path} (holds {_some(found)}) — expected a new or empty "
            "folder — choose another output folder, or continue this run with --resume; nothing was changed"
        )
    return is_run


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


_MISSING = object()
_STEP = re.compile(r"step-(\d+)")
_PART = re.compile(r"(.+?)-(\d+)(?:-(\d+))?")


def _write_table(path: Path, table: Any) -> None:
    import io

    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    atomic_write_bytes(path, buffer.getvalue())


def _step_name(step: int) -> str:
    return f"step-{step:06d}"


def _part_name(path: Path) -> tuple[str, int, int]:
    """Return the split, the step and, for a part written again after a resume, its count."""
    match = _PART.fullmatch(path.stem)
    if match is None:
        raise StoreError(f"got {path} — expected rows named SPLIT-STEP.parquet — move it out of the run folder")
    return match[1], int(match[2]), int(match[3] or 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
