"""THE loop: score → objective → step → record. It knows no algorithm's name; it asks the objective's row.

One optimisation batch = `batch_size` groups over all processes, split into micro-batches under a token budget. Losses
are summed, gradients divided once by the global count, so neither accumulation nor the number of processes changes
anything beyond rounding.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from accord.config import EvaluateConfig, TrainConfig
from accord.data.tokens import TokenGroup
from accord.errors import FeedbackError, TrainingError
from accord.objectives import ObjectiveSpec
from accord.policy.judgements import Populations
from accord.policy.moving_reference import MovingReference
from accord.policy.policy import Policy
from accord.policy.reference import Reference
from accord.policy.weights.merge import add_l1_gradient
from accord.run.beside import Beside
from accord.run.checkpoint import load_checkpoint, load_weights, write_checkpoint
from accord.run.gradients import Gradients
from accord.run.held_out.evaluation import Evaluation, evaluate
from accord.run.loop_state import LoopResult, LoopState, Passed
from accord.run.metrics import Sums, add_up, means
from accord.run.plan import is_out_of_memory, schedule_factor
from accord.run.scored import Scoring, describe_state
from accord.run.source import FileSource, GroupSource
from accord.store import RunFolder
from accord.tracking import Tracker

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(kw_only=True)
class Loop:
    """Train a policy on groups. `run` and `tracker` are the main process's; other processes pass None."""

    policy: Policy
    groups: Sequence[TokenGroup]
    eval_groups: Sequence[TokenGroup]
    spec: ObjectiveSpec
    objective_settings: dict[str, Any]
    reference: Reference | None
    settings: TrainConfig
    evaluation: EvaluateConfig
    accelerator: Accelerator
    run: RunFolder | None = None
    tracker: Tracker | None = None
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None
    starts_at_reference: bool = False  # or, a reward model, with a head of zeros
    objective_state: dict[str, Tensor] = field(default_factory=dict)  # at the start
    populations: Populations = field(default_factory=Populations)  # judges and strata of all groups
    moving_reference: MovingReference | None = None  # asked in training instead of `reference`, where it began
    critic_lr: float | None = None  # of a critic's weights; None = as the policy's
    beside: Beside | None = None  # demonstrations trained on at every step, too
    source: GroupSource | None = None  # of the groups of each step; None = `groups`, in an order of the seed

    def __post_init__(self) -> None:
        assert self.settings.lr is not None, "a run's settings name the rate that was chosen"
        self.rate = self.settings.lr
        self.state = LoopState(max_batch_tokens=self.settings.max_batch_tokens)
        self._trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=self.rate,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            eps=self.settings.adam_eps,
            fused=True,
        )
        self._module, self._optimizer = self.accelerator.prepare(
            self.policy, optimizer, device_placement=[False, False]
        )  # the policy is where it was asked to be
        self.scoring = Scoring(
            policy=self.policy, spec=self.spec, settings=self.objective_settings, reference=self.reference,
            seed=self.settings.seed, share=(self.accelerator.process_index, self.accelerator.num_processes),
            gather=gather_object, state=self.objective_state, moving_reference=self.moving_reference,
            populations=self.populations, keeps_reference=self.source is None,
        )  # fmt: skip
        self._gradients = Gradients(
            accelerator=self.accelerator, module=self._module, with_statistics=self.settings.statistics,
            gathers_rows=self.settings.write_rows,
        )  # fmt: skip
        self._rows: list[dict[str, Any]] = []
        self._stop_signal: int | None = None
        self._source: GroupSource = self.source or FileSource(self.groups, self.settings)
        self.num_steps = self._source.num_steps
        # a killed process loses a tenth of the run at most
        self.checkpoint_every = self.settings.checkpoint_every or max(1, self.num_steps // 10)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained weights by what is done to them: `lr_share` of the rate, decay for matrices only."""
        found: list[dict[str, Any]] = []
        trained, decay = self.policy.trained(), self.settings.weight_decay
        for is_critic in (False, True):
            share = self.critic_lr / self.rate if is_critic and self.critic_lr is not None else 1.0
            chosen = [p for name, p in trained.items() if name.startswith("critic/") is is_critic]
            for is_matrix in (True, False) if chosen else ():
                part = [p for p in chosen if (p.ndim >= 2) is is_matrix]
                found.append({"params": part, "weight_decay": decay if is_matrix else 0.0, "lr_share": share})
        return found

    # -- running -----------------------------------------------------------------------------------------------------

    def train(self) -> LoopResult:
        """Run to the last step, an early stop or a signal; a signal leaves a checkpoint."""
        before = self._catch_signals()
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._flush_rows()

    def _run(self) -> LoopResult:
        first = last = self._evaluate() if self.evaluation.at_start and self.state.step == 0 else None
        if self.state.step and self._is_due(self.evaluation.every) and self.state.evaluated_step != self.state.step:
            last = self._evaluate()  # the run was paused there: a judge of held-out answers was down
        seconds = 0.0
        while self.state.step < self.num_steps and not self._is_out_of_patience():
            started = time.perf_counter()
            sums = self._step_or_pause()
            seconds = time.perf_counter() - started
            self.state.pending = add_up((self.state.pending, sums))
            if self.state.step % self.settings.log_every == 0:
                self._log(seconds)
            if self._is_due(self.evaluation.every):
                last = self._evaluate()
            if self._is_stopped():
                self.save_checkpoint()
                return self._result(first, last, was_stopped=True)
            if self._is_due(self.checkpoint_every):
                self.save_checkpoint()
        if self.state.pending:
            self._log(seconds)
        self.save_checkpoint()  # before the last evaluation: whatever happens there, the training is kept
        if self._is_out_of_patience() and self._take_best():
            last = self._with_memory_to_spare(self._evaluate_now, self.eval_groups)
            return self._result(first, last, weights_step=self.state.best_step)
        if last is None or self.state.evaluated_step != self.state.step:
            last = self._evaluate()
        if not self._is_finite():
            raise TrainingError(
                "the last step left weights that are not finite — lower train.lr, or raise the precision"
            )
        return self._result(first, last)

    def _result(
        self, first: Evaluation | None, last: Evaluation | None, *,
        was_stopped: bool = False, weights_step: int | None = None,
    ) -> LoopResult:  # fmt: skip
        step = self.state.step if weights_step is None else weights_step
        return LoopResult(state=self.state, was_stopped=was_stopped, first=first, last=last, weights_step=step)

    def _take_best(self) -> bool:
        """After an early stop: put the best checkpoint's weights in place; whether that changed them."""
        best = self.state.best_step
        if best == self.state.step:
            return False
        is_kept = self.run is not None and best in self.run.checkpoint_steps()
        folder = gather_object([str(self.run.checkpoint_path(best)) if self.run is not None and is_kept else None])[0]
        if folder is None:
            log.warning("stopped early, but the checkpoint of the best step %d is gone: the last weights stay", best)
            return False
        load_weights(Path(folder), self.policy)
        return True

    def _is_due(self, every: int | None) -> bool:
        # the last step has a checkpoint and an evaluation of its own, in that order
        return every is not None and self.state.step % every == 0 and self.state.step < self.num_steps

    # -- one step ----------------------------------------------------------------------------------------------------

    def batch_at(self, step: int) -> list[TokenGroup]:
        """Return the groups of an optimiser step."""
        return self._source.batch_at(step)

    def _step_or_pause(self) -> Sums:
        """Take a step; where a judge, verifier or endpoint is down for good, leave a checkpoint and say so."""
        try:
            return self._step()
        except FeedbackError as error:
            raise self._paused(error) from error

    def _paused(self, error: FeedbackError) -> FeedbackError:
        """Leave a checkpoint and return what to raise."""
        self.save_checkpoint()
        return FeedbackError(f"{error} — the run pauses after step {self.state.step}; --resume goes on")

    def _step(self) -> Sums:
        batch = self.batch_at(self.state.step)
        passed = self._with_memory_to_spare(lambda: self._accumulate(batch), batch)
        sums, rows = add_up((passed.sums, self._source.take_sums())), passed.rows
        self._source.check(sums)
        self._check_start(sums, rows)
        self.state.grad_norm = self._finish_gradients(sums, batch, rows)
        if "loss" in sums:  # else no group of the batch has a judgement that the objective reads
            for group in self._optimizer.param_groups:
                factor = schedule_factor(self.state.step, self.num_steps, self.settings)
                group["lr"] = group["lr_share"] * self.rate * factor
            self._optimizer.step()
            self.scoring.advance(passed.state_sums)
        self._optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.scoring.follow(self.state.step)
        self.state.num_tokens += sum(group.num_tokens for group in batch)
        if self.settings.write_rows and self.run is not None:
            self._rows.extend(rows)
            if len(self._rows) >= 4096:
                self._flush_rows()
        return sums

    def _with_memory_to_spare(self, work: Callable[[], T], groups: Sequence[TokenGroup]) -> T:
        """Do some work on groups; when memory runs out, halve the token budget, say so and start it over."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                largest = max(group.num_tokens for group in groups)
                if self.state.max_batch_tokens <= largest or self.accelerator.num_processes > 1:
                    raise TrainingError(
                        f"out of memory with {self.state.max_batch_tokens} tokens per forward pass, at step "
                        f"{self.state.step}, whose longest group has {largest} — set a smaller train.max_batch_tokens "
                        "or data.max_tokens, model.gradient_checkpointing=true or model.lora_rank"
                    ) from error
            self._optimizer.zero_grad(set_to_none=True)
            # a budget beyond all there is would be halved without effect
            self.state.max_batch_tokens = min(self.state.max_batch_tokens, sum(g.num_tokens for g in groups)) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: the token budget is now %d per forward pass", self.state.max_batch_tokens)

    def _accumulate(self, batch: list[TokenGroup]) -> Passed:
        step, budget = self.state.step, self.state.max_batch_tokens
        passed = self._gradients.accumulate(self.scoring, batch, step=step, max_tokens=budget)
        count = passed.sums.get("loss", (0.0, 0.0))[1]
        if self.beside is None or not count:
            return passed
        more = self.beside.batch_at(step)
        scale = self.beside.scale(more, count)
        found = self._gradients.accumulate(self.beside.scoring, more, step=step, max_tokens=budget, weight=scale)
        return passed._replace(sums=passed.sums | {"pretraining/loss": found.sums["loss"]})

    def _finish_gradients(self, sums: Sums, batch: list[TokenGroup], rows: list[dict[str, Any]]) -> float:
        """Divide by the global count and clip, in one pass over the gradients; return the norm before clipping."""
        total, count = sums.get("loss", (0.0, 0.0))
        if not count or all(p.grad is None for p in self._trained):
            return 0.0
        # wrappers for several processes average what each summed
        scale = self.accelerator.num_processes / count
        if self.settings.l1:
            sums["adapters/l1"] = (add_l1_gradient(self.policy, self.settings.l1 / scale), 1.0)
        grads = [p.grad for p in self._trained if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads)) * scale
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._stop_at_bad_batch(batch, rows, f"loss {total / count}, gradient norm {norm}")
        if self.settings.max_grad_norm is not None and norm > self.settings.max_grad_norm:
            scale *= self.settings.max_grad_norm / norm
        if scale != 1.0:
            for grad in grads:
                grad.mul_(scale)
        return norm

    def _stop_at_bad_batch(self, batch: list[TokenGroup], rows: list[dict[str, Any]], what: str) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        decode = self.policy.tokenizer.decode
        texts = [
            {"origin": group.source.origin if group.source else "", "prompt": decode(list(group.prompt_ids)),
             "responses": [decode(list(response.ids)) for response in group.responses]}
            for group in batch
        ]  # fmt: skip
        where = ""
        if self.run is not None:
            path = self.run.write_bad_batch(self.state.step, {"what": what, "groups": texts, "rows": rows})
            where = f" The batch is in {path}."
        self._flush_rows()
        kept = ""
        if self._is_finite():
            self.save_checkpoint()
            kept = " The weights before it are in the last checkpoint."
        raise TrainingError(
            f"step {self.state.step + 1} gave a non-finite number ({what}).{kept}{where} "
            "Look at those rows, lower train.lr, or raise the precision"
        )

    def _check_start(self, sums: Sums, rows: list[dict[str, Any]]) -> None:
        """At the first step, where policy = reference: every log-ratio 0, the loss its known value; else stop."""
        if self.state.step != 0 or not self.starts_at_reference:
            return
        is_low = self.policy.autocast is not None or next(self.policy.parameters()).dtype != torch.float32
        tolerance = 5e-2 if is_low else 1e-3  # nats per token
        for row in rows if self.spec.reference else ():
            for ours, theirs, count in zip(row["policy_logps"], row["reference_logps"], row["num_tokens"], strict=True):
                if abs(ours - theirs) > tolerance * max(1, count):
                    raise TrainingError(
                        "before the first step the policy must equal its reference, but "
                        f"{row['origin'] or row['index']} has log π = {ours:.4f} and log π_ref = {theirs:.4f} — the "
                        "reference is of other weights or was scored under other options; set reference.cache=null"
                    )
        expected = self.spec.initial_loss(**self.objective_settings) if self.spec.initial_loss is not None else None
        loss, count = sums.get("loss", (0.0, 0.0))
        if expected is not None and count and abs(loss / count - expected) > 20 * tolerance * max(1.0, abs(expected)):
            raise TrainingError(
                f"where policy = reference the loss of this objective is {expected:.4f}, but the first batch gave "
                f"{loss / count:.4f} — this is a fault of Accord or of the model's code; please report it"
            )

    # -- recording ---------------------------------------------------------------------------------------------------

    def _log(self, seconds: float) -> None:
        metrics = means(self.state.pending) | {
            "epoch": self.state.step / self._source.steps_per_epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            "grad_norm": self.state.grad_norm,
        }
        metrics |= describe_state(self.spec, self.scoring.state, self.populations)
        if seconds:  # else the step was taken before an interruption
            metrics["time/step_seconds"] = seconds
            metrics["tokens_per_second"] = sum(g.num_tokens for g in self.batch_at(self.state.step - 1)) / seconds
        self.state.pending = {}
        self._track(metrics)
        self.progress(self.state.step, self.num_steps, metrics)

    def _track(self, metrics: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(self.state.step, metrics)

    def _evaluate(self) -> Evaluation | None:
        if not self.eval_groups:
            return None
        try:
            found = self._with_memory_to_spare(self._evaluate_now, self.eval_groups)
        except FeedbackError as error:
            raise self._paused(error) from error
        if self.state.evaluated_step != self.state.step:  # else it was recorded before an interruption
            self.state.evaluated_step = self.state.step
            self._record(found)
        return found

    def _evaluate_now(self) -> Evaluation:
        return evaluate(
            self.scoring, self.eval_groups,
            settings=self.evaluation, max_batch_tokens=self.state.max_batch_tokens, step=self.state.step,
        )  # fmt: skip

    def _record(self, found: Evaluation) -> None:
        self._track({f"eval/{name}": value for name, value in found.metrics.items()})
        if self.run is not None and self.settings.write_rows:
            self.run.write_rows("eval", self.state.step, found.rows)
            self.run.write_rows("samples", self.state.step, found.samples)
        loss = found.metrics.get("loss")
        if loss is None and "reward" in found.metrics:  # answers to prompts: what is best has the highest reward
            loss = -found.metrics["reward"]
        if loss is None:  # no held-out group has a judgement that the objective reads
            return
        if not math.isfinite(loss):
            raise TrainingError(
                f"the held-out loss is {loss} after step {self.state.step} — the weights or a held-out row are not "
                "usable; look at the rows of rows/, lower train.lr, or raise the precision"
            )
        if loss < self.state.best_loss:
            self.state.best_loss, self.state.best_step, self.state.num_worse = loss, self.state.step, 0
            # the best one is kept whatever comes; the start is a model that is there, unless it must be gone back to
            if self._is_due(self.evaluation.every) and (self.state.step or self.evaluation.patience):
                self.save_checkpoint()
        else:
            self.state.num_worse += 1

    def _is_out_of_patience(self) -> bool:
        return self.evaluation.patience is not None and self.state.num_worse >= self.evaluation.patience

    def _flush_rows(self) -> None:
        if self.run is not None and self._rows:
            self.run.write_rows("train", self.state.step, self._rows)
        self._rows = []

    # -- checkpoints and signals -------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write everything that moves, atomically, unless it is not finite; keep the last few and the best."""
        self._flush_rows()
        if self.run is None or self.state.step in self.run.checkpoint_steps() or not self._is_finite():
            return
        moving = self.scoring.what_moves()
        write_checkpoint(
            self.run, self.state.step, self.policy, self._optimizer, asdict(self.state), moving, self._source.state()
        )
        self.run.prune(keep_last=self.settings.keep_last, best_step=self.state.best_step)

    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self._trained)

    def restore(self, folder: Any) -> None:
        """Take up a checkpoint: weights, moments, position, random state."""
        state, moved, source = load_checkpoint(folder, self.policy, self._optimizer)
        self.scoring.take_up(moved)
        self._source.take_up(source)
        self.state = LoopState(**state)

    def _catch_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def remember(number: int, _: FrameType | None) -> None:
            self._stop_signal = number

        return {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}

    def _is_stopped(self) -> bool:
        """Whether any process was told to stop; all stop after the same step."""
        return any(gather_object([self._stop_signal is not None]))
