"""What a training run does beside PPO: figures, evaluation, model selection, a limit for failed scores, a log file."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from textgym.errors import ConfigurationError, RewardError
from textgym.evaluation import Estimate
from textgym.monitor import Monitor

__all__ = [
    "SHOWN_FAILURES",
    "AppendingCSV",
    "EpisodeMetrics",
    "FailureLimit",
    "LiveFigures",
    "ModelSelection",
    "failure_text",
    "start_values_at",
    "too_many_failures",
]

Summary = dict[str, Estimate]

SHOWN_FAILURES = 3
"""How many of a run's failed scores are shown with their episodes."""
SHOWN_CHARACTERS = 300


def start_values_at(policy: Any, mean: float) -> None:
    """Lets a value head that is all zeros, and so knows nothing, say the mean reward of an episode.

    It would else learn this constant through its weights, in steps that make it say noise.
    """
    head = policy.value_head
    if not any(parameter.any() for parameter in head.parameters()):
        nn.init.constant_(head.bias, mean)


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


class FailureLimit(BaseCallback):
    """Counts the episodes that could not be scored, shows the first ones, and stops training where they are too many.

    It looks at the episodes that ended in a rollout, before the update: one with too many failures is neither trained
    on nor counted. ``num_timesteps`` goes back to what it was before that rollout, so that a saved agent goes on there.
    Logs ``rollout/failed`` and ``rollout/failed_share``. Works with any of SB3's algorithms: ``agent.learn(100_000,
    callback=FailureLimit(0.1, on_stop=lambda message: agent.save("agent")))``.

    Args:
        max_share: The share of failed episodes that is still borne, in [0, 1].
        min_episodes: Rollouts are taken together until this many episodes have ended in them; for the algorithms whose
            rollout is a few steps, such as DQN.
        show: Is told of failures: the first three in full (reason, sample, prompt, reply), then a line a rollout.
        on_stop: Called with the error's message before it is raised: saves.

    Raises:
        ConfigurationError: ``max_share`` is no share, or ``min_episodes`` no positive number.
        RewardError: In training: the share of failures in a rollout is above ``max_share``.
    """

    def __init__(
        self,
        max_share: float = 0.1,
        *,
        min_episodes: int = 1,
        show: Callable[[str], object] = print,
        on_stop: Callable[[str], object] = lambda message: None,
    ) -> None:
        super().__init__()
        if not 0 <= max_share <= 1:
            raise ConfigurationError(f"max_share={max_share}; it is the share of failed scores, in [0, 1].")
        if min_episodes < 1:
            raise ConfigurationError(f"min_episodes={min_episodes}; it is at least 1.")
        self.max_share, self.min_episodes, self.show, self.on_stop = max_share, min_episodes, show, on_stop
        self.statuses: list[str] = []  # of the episodes not yet judged
        self.n_shown = 0
        self._before: tuple[int, deque[Any] | None] = (0, None)

    def _on_training_start(self) -> None:
        self.statuses = []

    def _on_rollout_start(self) -> None:
        buffer = self.model.ep_info_buffer
        self._before = self.model.num_timesteps, None if buffer is None else buffer.copy()

    def _on_step(self) -> bool:
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done:
                self.statuses.append(info.get("score_status", "ok"))
                self._show_first(self.statuses[-1], info.get("episode_record"))
        return True

    def _show_first(self, status: str, record: Mapping[str, Any] | None) -> None:
        if status != "ok" and self.n_shown < SHOWN_FAILURES:
            self.n_shown += 1
            self.show(failure_text(status, record))

    def _on_rollout_end(self) -> None:
        if len(self.statuses) < self.min_episodes:
            return
        statuses, self.statuses = self.statuses, []
        message = too_many_failures(statuses, self.max_share)
        if message is not None:
            self.model.num_timesteps, self.model.ep_info_buffer = self._before
            self.on_stop(message)
            raise RewardError(message)
        failed = [status for status in statuses if status != "ok"]
        self.logger.record("rollout/failed", len(failed))
        self.logger.record("rollout/failed_share", len(failed) / len(statuses))
        if failed:
            self.show(f"  {len(failed)} of {len(statuses)} episodes have no score, such as: {failed[0]}")


def too_many_failures(statuses: Sequence[str], max_share: float) -> str | None:
    """What to say where more than a share of these episodes could not be scored; None where not.

    Args:
        statuses: The score status of each episode.
        max_share: In [0, 1].
    """
    reasons = Counter(status for status in statuses if status != "ok")
    n_failed = reasons.total()
    if n_failed <= max_share * len(statuses):
        return None
    (reason, count), *_ = reasons.most_common(1)
    return (
        f"{n_failed} of {len(statuses)} episodes ({n_failed / len(statuses):.0%}) could not be scored, and the limit "
        f"is {max_share:.0%}; the reason of {'all' if count == n_failed else count} of them: {reason}"
    )


def failure_text(status: str, record: Mapping[str, Any] | None) -> str:
    """A failed score for people to read: its reason and, as far as there is a record of it, its episode."""
    lines = [f"  no score: {status}"]
    if record is not None:
        prompt = record["prompt"]
        if not isinstance(prompt, str):
            prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        replies = [turn["text"] for turn in record["turns"] if turn["role"] == "assistant"]
        lines += [f"    sample {record['id']!r}", f"    prompt {_short(prompt)}", f"    reply {_short(replies[-1])}"]
    return "\n".join(lines)


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ...")


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
