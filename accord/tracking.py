"""Where the numbers of a run go: `metrics.jsonl` and TensorBoard always, Weights & Biases when asked.

The loop knows one seam, `log(step, metrics)`; writers are opened by `open_tracker` and imported only then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

from accord.errors import ConfigError
from accord.store import RunFolder


class Tracker(Protocol):
    """Something that takes the numbers of a step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of one step."""
        ...

    def close(self) -> None:
        """Write out what is still buffered."""
        ...


def open_tracker(
    run: RunFolder,
    *,
    wandb_project: str | None = None,
    config: Mapping[str, Any] | None = None,
    resumed_step: int | None = None,
) -> Tracker:
    """Open every writer of a run behind one `log`.

    `resumed_step` is the checkpoint's step: TensorBoard then hides what a killed process reported after it (the lines
    of `metrics.jsonl` are dropped by `RunFolder.rewind`). Raises ConfigError when W&B is asked for and not installed.
    """
    trackers: list[Tracker] = [MetricsFile(run), TensorBoard(run, resumed_step=resumed_step)]
    if wandb_project is not None:
        trackers.append(WeightsAndBiases(run, project=wandb_project, config=config or {}))
    return Trackers(trackers)


class Trackers:
    """Several trackers behind one seam, in order: the run folder's own file is written first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class MetricsFile:
    """The run folder's `metrics.jsonl`, from which the report is drawn."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.append_metrics(step, metrics)

    def close(self) -> None:
        """Nothing is buffered: every line is written when it is logged."""


class TensorBoard:
    """Event files in `tensorboard/`, written with TensorBoard's own writer (no torch, no TensorFlow)."""

    def __init__(self, run: RunFolder, *, resumed_step: int | None = None) -> None:
        # protobuf makes these classes at import time, where a type checker cannot see them
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run.path / "tensorboard"))
        if resumed_step is not None:
            restart = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=resumed_step + 1, wall_time=time.time(), session_log=restart))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if isinstance(value, Real) and name != "step"
        ]
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run that a resumed Accord run continues (its id is kept in the manifest)."""

    def __init__(self, run: RunFolder, *, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports] -- an optional extra
        except ModuleNotFoundError as error:
            if error.name != "wandb":  # installed, but broken: its own message says more
                raise
            raise ConfigError(
                f"got a W&B project ({project!r}), but wandb is not installed — expected the extra — "
                "run `pip install 'accord[wandb]'` or leave the project out"
            ) from error
        self._wandb_run = wandb.init(
            project=project,
            name=run.path.name,
            dir=str(run.path),
            config=dict(config),
            id=run.read_json("manifest").get("wandb_id"),
            resume="allow",
        )
        run.update_manifest(wandb_id=self._wandb_run.id)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, Real) and math.isfinite(value)}
        self._wandb_run.log(numbers, step=step)

    def close(self) -> None:
        self._wandb_run.finish()
