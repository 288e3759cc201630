"""What a training run does beside PPO: figures, evaluation, model selection, logging in a file that goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from textgym.evaluation import Estimate
from textgym.monitor import Monitor

__all__ = ["AppendingCSV", "EpisodeMetrics", "LiveFigures", "ModelSelection"]

Summary = dict[str, Estimate]


class EpisodeMetrics(BaseCallback):
    """Logs the means of the task's metrics (``rollout/``) and of the rewards' parts (``reward/``) over each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    def _on_rollout_start(self) -> None:
        self.values = {}

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode_record" in info and info["score_status"] == "ok":
                named = {f"rollout/{name}": value for name, value in info["metrics"].items()}
                named |= {f"reward/{name}": value for name, value in info["reward_parts"].items()}
                for name, value in named.items():
                    self.values.setdefault(name, []).append(value)
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self.values.items():
            self.logger.record(name, float(np.mean(values)))


class ModelSelection(BaseCallback):
    """Evaluates now and then between two iterations, keeps the weights that did best, and restores them at the end.

    Each iteration is seeded by its number of steps, so that a run that goes on from a checkpoint is the run that was
    never interrupted.

    Args:
        evaluate: Gives a summary of the policy as it stands.
        metric: The figure of the summary that should be high.
        every: Steps between two evaluations.
        seed: Of the iterations.
        on_evaluation: Called with the number of steps, the summary, and whether it is the best so far.
        on_iteration: Called before every iteration with the number of steps.
        best: The figure and the number of steps of the best weights so far, where the run goes on.
        weights: Those weights.
        evaluated_at: The number of steps of the last evaluation, where the run goes on.
    """

    def __init__(
        self,
        evaluate: Callable[[], Summary],
        *,
        metric: str = "reward",
        every: int,
        seed: int = 0,
        on_evaluation: Callable[[int, Summary, bool], object] = lambda steps, summary, is_best: None,
        on_iteration: Callable[[int], object] = lambda steps: None,
        best: tuple[float, int] = (-np.inf, 0),
        weights: Mapping[str, Tensor] | None = None,
        evaluated_at: int | None = None,
    ) -> None:
        super().__init__()
        self.evaluate, self.metric, self.every, self.seed = evaluate, metric, every, seed
        self.on_evaluation, self.on_iteration = on_evaluation, on_iteration
        self.best, self.weights, self.evaluated_at = best, dict(weights or {}), evaluated_at

    def _on_rollout_start(self) -> None:
        if self.evaluated_at is None or self.num_timesteps - self.evaluated_at >= self.every:
            self._evaluate()
        self.on_iteration(self.num_timesteps)
        self._seed_iteration()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.evaluated_at != self.num_timesteps:
            self._evaluate()
        self.model.policy.load_state_dict(self.weights)

    def _evaluate(self) -> None:
        summary = self.evaluate()
        self.evaluated_at = self.num_timesteps
        value = summary.get(self.metric, {}).get("value", -np.inf)
        is_best = value > self.best[0] or not self.weights
        if is_best:
            self.best = (value, self.num_timesteps)
            self.weights = {
                name: tensor.detach().cpu().clone() for name, tensor in self.model.policy.state_dict().items()
            }
        for name, estimate in summary.items():
            self.logger.record(f"validation/{name}", estimate["value"])
        self.on_evaluation(self.num_timesteps, summary, is_best)

    def _seed_iteration(self) -> None:
        agent: Any = self.model
        numbers = np.random.SeedSequence((self.seed, self.num_timesteps)).generate_state(2)
        set_random_seed(int(numbers[0]), using_cuda=agent.device.type == "cuda")
        agent.env.seed(int(numbers[1]))
        agent._last_obs = agent.env.reset()
        agent._last_episode_starts = np.ones(agent.n_envs, dtype=bool)


class LiveFigures(BaseCallback):
    """Tells the monitor how training goes."""

    def __init__(self, monitor: Monitor, total: int, selection: ModelSelection) -> None:
        super().__init__()
        self.monitor, self.total, self.selection = monitor, total, selection
        self.figures: dict[str, float] = {}

    def _on_step(self) -> bool:
        self.monitor.progress(min(self.num_timesteps, self.total), self.total, self.figures)
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.ep_info_buffer or ()  # type: ignore[union-attr]
        if buffer:
            self.figures["reward"] = float(np.mean([info["r"] for info in buffer]))
        if np.isfinite(self.selection.best[0]):
            self.figures["best"] = self.selection.best[0]
        for name in ("rollout/kl", "train/approx_kl"):
            value = self.logger.name_to_value.get(name)
            if value is not None:
                self.figures[name.partition("/")[2]] = float(value)


class AppendingCSV(CSVOutputFormat):
    """SB3's, which goes on in a file that is there."""

    def __init__(self, filename: str) -> None:
        path = Path(filename)
        header = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
        self.file = path.open("r+" if header else "w+", encoding="utf-8")
        self.file.seek(0, 2)
        self.keys = header.split(",") if header else []
        self.separator, self.quotechar = ",", '"'
