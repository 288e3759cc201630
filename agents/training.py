"""The pipeline behind ``textgym train``: teaching, warm start and PPO, an evaluation after each; resumable."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import set_random_seed

from textgym.agents.playing import play_policy
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO
from textgym.agents.run_settings import LinearDecay, Settings, freeze, load_policy, make_env
from textgym.agents.teaching import mark_known, probe, taught_samples
from textgym.agents.training_callbacks import (
    SHOWN_FAILURES,
    AppendingCSV,
    EpisodeMetrics,
    FailureLimit,
    LiveFigures,
    ModelSelection,
    failure_text,
    start_values_at,
    too_many_failures,
)
from textgym.agents.warm_start import demonstrations, imitate
from textgym.episode import Episode, Sample
from textgym.errors import RewardError
from textgym.evaluation import Estimate, evenly_spaced, summarise
from textgym.monitor import EpisodeCounter, Monitor, deferred_interrupt
from textgym.plotting import headline, plot_curves
from textgym.run_folder import EPISODES, PROGRESS, RESULTS, VALIDATION, RunFolder, data_sha256, versions
from textgym.task import Task
from textgym.token_env import TokenEnv
from textgym.vector_env import TokenVectorEnv

__all__ = ["Settings", "Training"]

STAGES = {"base": "the model as it is", "sft": "after the warm start", "ppo": "after PPO"}
TAUGHT, WARM_STARTED, AGENT, AGENT_ZIP, BEST = "taught", "warm_started", "agent", "agent.zip", "best.pt"
TOKENIZER, KNOWN = "tokenizer", "known.json"


class Training:
    """A run in a folder.

    Args:
        folder: Where its files are.
        settings: Complete ones.
        monitor: Is told how it goes.

    Raises:
        TextGymError: The settings cannot work.
    """

    def __init__(self, folder: RunFolder, settings: Settings, monitor: Monitor | None = None) -> None:
        self.folder, self.settings, self.monitor = folder, settings, monitor or Monitor()
        set_random_seed(settings.seed)
        self.test = self._make_env("test")
        self.task = self.test.task
        self._policy: CausalLMPolicy | None = None

    @classmethod
    def start(cls, settings: Settings, path: str | Path, monitor: Monitor | None = None) -> Training:
        """A new run.

        Raises:
            ConfigurationError: The folder is not empty, or an option is wrong.
            TextGymError: The environment or the model cannot be made; the folder is then not.
        """
        RunFolder.check_free(path)
        settings = settings.complete(make_env(settings, "test").task)
        training = cls(RunFolder(path), settings, monitor)
        for needed in ("policy", "validation", "train"):  # what cannot be made must not leave a folder
            getattr(training, needed)
        training.test.setting.check_prompts(training._samples_in_use())  # else only the one that is drawn ends the run
        config = {
            **asdict(settings),
            "data_sha256": data_sha256(settings.data),
            "versions": versions(),
            "command": sys.argv,
        }
        RunFolder.create(path, config)
        training.test.tokenizer.save_pretrained(training.folder / TOKENIZER)
        return training

    @classmethod
    def resume(cls, path: str | Path, monitor: Monitor | None = None) -> Training:
        """A run to go on with, from its folder.

        Raises:
            ConfigurationError: It holds no run.
        """
        folder = RunFolder.open(path)
        names = Settings.__dataclass_fields__
        settings = Settings(**{name: value for name, value in folder.config.items() if name in names})
        return cls(folder, settings, monitor)

    # ------------------------------------------------------------------ stages

    def run(self) -> dict[str, dict[str, Estimate]]:
        """Whatever is still to do. The summary of each stage on the test split, by name.

        Raises:
            RewardError: More than ``reward.max_failed_share`` of a rollout's or an evaluation's episodes could not be
                scored. The folder is as Ctrl-C leaves it: :meth:`resume` goes on, before that rollout or evaluation.
        """
        if self.settings.options["teach.share"]:
            self._once("taught", self._teach)
            self._mark_known()
        self._once("base", lambda: self._evaluate_stage("base"))
        if self.settings.warm_start:
            self._once("warm_started", self._warm_start)
            self._once("sft", lambda: self._evaluate_stage("sft"))
        self._once("trained", self._train)
        self._once("ppo", lambda: self._evaluate_stage("ppo"))
        self._once("finished", self._finish)
        return self.folder.read_json(RESULTS)["stages"]

    def _once(self, name: str, stage: Callable[[], object]) -> None:
        done = self.folder.state.get("done", [])
        if name not in done:
            stage()
            self.folder.update_state(done=[*done, name])

    def _teach(self) -> None:
        options = self.settings.section("teach")
        samples = {sample.id: sample for sample in self._samples_in_use()}
        taught = taught_samples(samples.values(), options["share"])
        self.monitor.stage("teach", f"teaching {len(taught)} of {len(samples)} facts")
        self._imitate("teach", taught, self.task.lesson)
        known: dict[str, float] = {}
        for venv in (self.validation, self.test):
            total = len(venv.samples) * options["probes"]
            self.monitor.stage("probe", f"asking {len(venv.samples)} questions {options['probes']} times each")
            known |= probe(
                self.policy,
                venv,
                options["probes"],
                metric=options["metric"],
                seed=self.settings.seed,
                on_episode=EpisodeCounter(self.monitor, total),
            )
        self.policy.save_pretrained(self.folder / TAUGHT)
        self.folder.write_json(KNOWN, known)

    def _samples_in_use(self) -> Iterator[Sample]:
        if self.settings.warm_start or self.settings.options["teach.share"]:
            yield from self.task.warm_start_samples()
        for split in ("train", "validation", "test"):
            yield from self.task.samples(split)

    def _mark_known(self) -> None:
        known: dict[str, Any] = self.folder.read_json(KNOWN)
        for venv in (self.validation, self.test):
            mark_known(venv, known)

    def _warm_start(self) -> None:
        samples = self.task.warm_start_samples()
        self.monitor.stage("warm start", f"imitating {len(samples)} demonstrations")
        held_out: list[Sample] = []
        if self.settings.options["warm_start.keep_best"]:
            held_out = [sample for sample in self.validation.samples if self.task.demonstration(sample)]
            if not held_out:
                self.monitor.note("  no validation sample has a demonstration: the warm start ends with the last epoch")
        losses = self._imitate("warm_start", samples, self.task.demonstration, held_out)
        if held_out:
            self.monitor.note(f"  {_warm_start_line(losses)}")
        self.policy.save_pretrained(self.folder / WARM_STARTED)

    def _imitate(self, section: str, samples: Any, replies_of: Any, held_out: Sequence[Sample] = ()) -> list[float]:
        options = self.settings.section(section)
        names = ("epochs", "batch_size", "learning_rate", "weight_decay")
        examples = demonstrations(self._playground(), samples, replies_of)
        held_out = [held_out[i] for i in evenly_spaced(len(held_out), self.settings.options["validation.episodes"])]
        checkpoints = self.folder / f"{section}_checkpoints"
        losses = imitate(
            self.policy,
            examples,
            seed=self.settings.seed,
            validation=demonstrations(self._playground(), held_out, replies_of) if held_out else (),
            folder=checkpoints,
            on_step=lambda step, steps, loss: self.monitor.progress(step, steps, {"loss": loss}),
            **{name: options[name] for name in names if name in options},
        )
        shutil.rmtree(checkpoints)
        return losses

    def _playground(self) -> TokenEnv:
        """An environment for demonstrations; they are not scored."""
        setting = self.test.setting
        return TokenEnv(
            self.task,
            reward=lambda: 0.0,
            split="test",
            tokenizer=setting.tokenizer,
            max_new_tokens=setting.max_new_tokens,
            max_context=setting.max_context,
            format=setting.renderer.format,
        )

    def _evaluate_stage(self, name: str) -> None:
        self.monitor.stage(name, f"evaluating {STAGES[name]} on {len(self.test.samples)} test episodes")
        on_episode = EpisodeCounter(self.monitor, len(self.test.samples))
        episodes = play_policy(self.policy, self.test, on_episode=on_episode)
        for episode in [episode for episode in episodes if episode.score_status != "ok"][:SHOWN_FAILURES]:
            self.monitor.note(failure_text(episode.score_status, episode.record()))
        self._check_scores(episodes)
        summary = summarise(self.task, episodes, seed=self.settings.seed)
        results = self.folder.read_json(RESULTS).get("stages", {})
        self.folder.write_json(RESULTS, {"stages": {**results, name: summary}})
        kept = evenly_spaced(len(episodes), self.settings.options["test.examples"])
        records = [{"stage": name, **_record(episodes[index])} for index in kept]
        others = [record for record in self.folder.read_lines(EPISODES) if record["stage"] != name]
        self.folder.write_lines(EPISODES, [*others, *records])
        self.monitor.result(name, summary)

    # --------------------------------------------------------------------- PPO

    def _train(self) -> None:
        total = int(self.settings.options["total_timesteps"])
        agent = self._make_agent()
        freeze(agent.policy.model, self.settings.options["ppo.freeze"])  # type: ignore[arg-type]
        selection = self._model_selection(agent, total)
        agent.set_logger(self._logger(agent.num_timesteps))
        if agent.num_timesteps:
            for name, value in self.folder.state["ppo"]["figures"].items():  # of the last update, not yet logged
                agent.logger.record(name, value)
        self.monitor.stage("ppo", f"PPO for {total} steps, selected on {self._n_validation} validation episodes")
        limit = FailureLimit(
            self.settings.options["reward.max_failed_share"],
            show=self.monitor.note,
            on_stop=lambda message: self._stop(message, lambda: self._checkpoint(agent, selection)),
        )
        live = LiveFigures(self.monitor, total, selection)
        try:
            with deferred_interrupt(self.monitor) as self._stop_wanted:
                agent.learn(
                    max(0, total - agent.num_timesteps),
                    callback=CallbackList([limit, EpisodeMetrics(), selection, live]),
                    reset_num_timesteps=agent.num_timesteps == 0,
                )
        finally:
            agent.logger.close()
        policy: Any = agent.policy
        self._policy = policy
        policy.save_pretrained(self.folder / AGENT)
        self._save_agent(agent)
        steps = selection.best[1]
        self.monitor.note(f"the best weights on the validation split are those after {steps} steps; they are kept.")

    def _make_agent(self) -> PPO:
        saved = self.folder / AGENT_ZIP
        if saved.is_file():
            return PPO.load(saved, env=self.train, device=self.settings.device)
        options = self.settings.section("ppo")
        options.setdefault("stats_window_size", options["n_episodes"])
        options.pop("freeze")
        if options.pop("learning_rate_decay"):
            options["learning_rate"] = LinearDecay(options["learning_rate"])
        policy_kwargs = {
            **self.settings.section("policy"),
            "model": self.policy.model,
            "dtype": self.settings.dtype,
        }
        return PPO(
            type(self.policy),
            self.train,
            policy_kwargs=policy_kwargs,
            seed=self.settings.seed,
            device=self.settings.device,
            **options,
        )

    def _model_selection(self, agent: PPO, total: int) -> ModelSelection:
        options = self.settings.section("validation")
        progress = self.folder.state.get("ppo", {}) if agent.num_timesteps else {}
        weights = torch.load(self.folder / BEST, weights_only=True) if progress else None

        def on_evaluation(steps: int, summary: Mapping[str, Estimate], is_best: bool) -> None:
            if steps == 0 and "reward" in summary:
                start_values_at(agent.policy, summary["reward"]["value"])
            self.monitor.note(_evaluation_line(steps, summary, self.task, is_best))
            row = {"timesteps": steps, "best": is_best, "metrics": summary}
            earlier = [row for row in self.folder.read_lines(VALIDATION) if row["timesteps"] < steps]
            self.folder.write_lines(VALIDATION, [*earlier, row])
            if is_best:
                self.folder.replace(BEST, lambda path: torch.save(selection.weights, path))
            if steps:
                self._checkpoint(agent, selection)

        def on_iteration(steps: int) -> None:
            if self._stop_wanted():
                self._checkpoint(agent, selection)
                raise KeyboardInterrupt

        selection = ModelSelection(
            lambda: self._validate(agent.policy, lambda: self._checkpoint(agent, selection)),
            metric=options["metric"],
            every=max(1, total // options["evaluations"]),
            seed=self.settings.seed,
            on_evaluation=on_evaluation,
            on_iteration=on_iteration,
            best=tuple(progress.get("best", (-np.inf, 0))),
            weights=weights,
            evaluated_at=progress.get("evaluated_at"),
        )
        return selection

    def _checkpoint(self, agent: PPO, selection: ModelSelection) -> None:
        if agent.num_timesteps == 0:  # starting again from the warm start is the same
            return
        self._save_agent(agent)
        figures = {name: np.asarray(value).item() for name, value in agent.logger.name_to_value.items()}
        self.folder.update_state(
            ppo={"best": selection.best, "evaluated_at": selection.evaluated_at, "figures": figures}
        )

    def _save_agent(self, agent: PPO) -> None:
        self.folder.replace(AGENT_ZIP, agent.save)

    def _validate(self, policy: Any, save: Callable[[], object]) -> dict[str, Estimate]:
        indices = evenly_spaced(len(self.validation.samples), self.settings.options["validation.episodes"])
        episodes = play_policy(policy, self.validation, indices)
        self._check_scores(episodes, save)
        return summarise(self.task, episodes, seed=self.settings.seed)

    def _check_scores(self, episodes: Sequence[Episode], save: Callable[[], object] = lambda: None) -> None:
        statuses = [episode.score_status for episode in episodes]
        message = too_many_failures(statuses, self.settings.options["reward.max_failed_share"])
        if message is not None:
            self._stop(message, save)

    def _stop(self, message: str, save: Callable[[], object]) -> None:
        save()
        path = self.folder.path
        raise RewardError(f"{message}. The run is saved; mend the reward, and go on: textgym train --resume {path}")

    @property
    def _n_validation(self) -> int:
        return min(len(self.validation.samples), self.settings.options["validation.episodes"])

    def _logger(self, timesteps: int) -> Logger:
        self.folder.cut_progress(timesteps)
        folder = str(self.folder.path)
        return Logger(folder, [AppendingCSV(str(self.folder / PROGRESS)), TensorBoardOutputFormat(folder)])

    def _finish(self) -> None:
        plot_curves(self.folder.path, self.task.headline_metrics)
        (self.folder / BEST).unlink(missing_ok=True)

    # -------------------------------------------------------------- ingredients

    @property
    def policy(self) -> CausalLMPolicy:
        """The policy as the last finished stage left it."""
        if self._policy is None:
            done = self.folder.state.get("done", [])
            folders = {"trained": AGENT, "warm_started": WARM_STARTED, "taught": TAUGHT}
            saved = next((self.folder / name for stage, name in folders.items() if stage in done), None)
            self._policy = load_policy(self.settings, self.test, saved)
        return self._policy

    @cached_property
    def train(self) -> TokenVectorEnv:
        """Environments about the train split."""
        return self._make_env("train")

    @cached_property
    def validation(self) -> TokenVectorEnv:
        """Environments about the validation split."""
        return self._make_env("validation")

    def _make_env(self, split: str) -> TokenVectorEnv:
        """With the tokenizer that the run began with, whatever has become of the model since."""
        tokenizer = self.folder / TOKENIZER
        return make_env(self.settings, split, str(tokenizer) if tokenizer.is_dir() else None)


def _warm_start_line(losses: Sequence[float]) -> str:
    best = min(filter(math.isfinite, losses))
    return f"validation loss lowest after epoch {losses.index(best) + 1} of {len(losses)}: {best:.3f}"


def _evaluation_line(steps: int, summary: Mapping[str, Estimate], task: Task, is_best: bool) -> str:
    names = [name for name in ("reward", *headline(list(summary), task.headline_metrics)) if name in summary]
    figures = "  ".join(f"{name} {summary[name]['value']:.3f}" for name in names)
    return f"  {steps:>8,} steps, validation: {figures}{'  (best)' if is_best else ''}"


def _record(episode: Episode) -> dict[str, Any]:
    return {**episode.record(), "response": episode.response}
