"""The pipeline behind ``textgym train``: teaching, warm start and PPO, an evaluation after each; resumable."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import get_device, set_random_seed
from transformers import AutoConfig

import textgym
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.ppo import PPO
from textgym.agents.teaching import mark_known, probe, taught_samples
from textgym.agents.validation import EpisodeMetrics, ModelSelection
from textgym.agents.warm_start import demonstrations, imitate
from textgym.episode import Episode
from textgym.errors import ConfigurationError, ModelError
from textgym.evaluation import Estimate, play, summarise
from textgym.monitor import EpisodeCounter, Monitor
from textgym.plotting import headline, plot_curves
from textgym.rewards import as_reward
from textgym.run_folder import EPISODES, PROGRESS, RESULTS, VALIDATION, RunFolder, versions
from textgym.setting import MAX_CONTEXT
from textgym.task import Task
from textgym.token_env import TokenEnv
from textgym.vector_env import TokenVectorEnv

__all__ = ["DEFAULTS", "Settings", "Training", "evaluate_policy_on", "load_policy", "load_reward", "make_env"]

DEFAULTS: dict[str, Any] = {
    "total_timesteps": 100_000,
    "env.num_envs": 64,
    "teach.share": 0.0,
    "teach.epochs": 60,
    "teach.batch_size": 32,
    "teach.learning_rate": 5e-4,
    "teach.probes": 10,
    "teach.metric": "accuracy",
    "warm_start.epochs": 3,
    "warm_start.batch_size": 32,
    "warm_start.learning_rate": 1e-5,
    "ppo.n_episodes": 256,
    "ppo.batch_size": 512,
    "ppo.n_epochs": 2,
    "ppo.learning_rate": 1e-5,
    "ppo.learning_rate_decay": True,
    "ppo.gamma": 1.0,
    "ppo.kl_coef": 0.05,
    "validation.evaluations": 20,
    "validation.episodes": 512,
    "validation.metric": "reward",
    "test.examples": 100,
}
"""For a language model of any size; a task's ``recipe`` has what suits the built-in one."""

STAGES = {"base": "the model as it is", "sft": "after the warm start", "ppo": "after PPO"}
TAUGHT, WARM_STARTED, AGENT, AGENT_ZIP, BEST = "taught", "warm_started", "agent", "agent.zip", "best.pt"
KNOWN = "known.json"


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on.

    Args:
        env: The environment's id.
        model: A name or path; None: the built-in model.
        data: A file or data set in place of the task's own.
        columns: How to read it, see :func:`textgym.load_samples`.
        reward: ``"module:function"``, or a reward's, in place of the task's own.
        seed: Of everything.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        dtype: ``"bfloat16"``: compute under autocast.
        warm_start: Whether there is one.
        options: By ``"section.name"``: ``total_timesteps``; ``env.``: arguments of the environment; ``teach.``: of the
            teaching; ``warm_start.``: of :func:`~textgym.agents.warm_start.imitate`; ``ppo.``: of
            :class:`~textgym.agents.PPO`; ``policy.``: of :class:`~textgym.agents.CausalLMPolicy`; ``validation.``:
            of the model selection. What is left out comes from the task's recipe, where the model is the built-in one,
            and from ``DEFAULTS``.
    """

    env: str
    model: str | None = None
    data: str | None = None
    columns: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None
    reward: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    warm_start: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def complete(self, task: Task) -> Settings:
        """With every option that was left out.

        Raises:
            ConfigurationError: There is no such option, or its value is of the wrong kind.
        """
        recipe = dict(task.recipe) if self.model is None else {}
        options = {**DEFAULTS, **recipe, **self.options}
        for name, value in options.items():
            _check_option(name, value)
        return replace(self, options=options)

    def section(self, name: str) -> dict[str, Any]:
        """The options of a section, without its name."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.options.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class LinearDecay:
    """A schedule of SB3's form that falls to zero at the end of training."""

    initial: float

    def __call__(self, progress_remaining: float) -> float:
        """The value at this progress, which goes from 1 to 0."""
        return self.initial * progress_remaining


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
        self.test = make_env(settings, "test")
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
        config = {
            **asdict(settings),
            "data_sha256": _sha256(settings.data),
            "versions": versions(),
            "command": sys.argv,
        }
        RunFolder.create(path, config)
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
        """Whatever is still to do. The summary of each stage on the test split, by name."""
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
        samples = {sample.id: sample for sample in self._all_samples()}
        taught = taught_samples(samples.values(), options["share"])
        self.monitor.stage("teach", f"teaching {len(taught)} of {len(samples)} facts")
        self._imitate("teach", taught, self.task.lesson, ("epochs", "batch_size", "learning_rate", "weight_decay"))
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

    def _all_samples(self) -> Iterator[Any]:
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
        names = ("epochs", "batch_size", "learning_rate", "weight_decay")
        self._imitate("warm_start", samples, self.task.demonstration, names)
        self.policy.save_pretrained(self.folder / WARM_STARTED)

    def _imitate(self, section: str, samples: Any, replies_of: Any, names: Sequence[str]) -> None:
        options = self.settings.section(section)
        examples = demonstrations(self._playground(), samples, replies_of)
        imitate(
            self.policy,
            examples,
            seed=self.settings.seed,
            on_step=lambda step, steps, loss: self.monitor.progress(step, steps, {"loss": loss}),
            **{name: options[name] for name in names if name in options},
        )

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
        episodes = evaluate_policy_on(self.policy, self.test, on_episode=on_episode)
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
        selection = self._model_selection(agent, total)
        agent.set_logger(self._logger(agent.num_timesteps))
        self.monitor.stage("ppo", f"PPO for {total} steps, selected on {self._n_validation} validation episodes")
        live = _LiveFigures(self.monitor, total, selection)
        try:
            with deferred_interrupt(self.monitor) as self._stop_wanted:
                agent.learn(
                    max(0, total - agent.num_timesteps),
                    callback=CallbackList([EpisodeMetrics(), selection, live]),
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
        if options.pop("learning_rate_decay"):
            options["learning_rate"] = LinearDecay(options["learning_rate"])
        policy_kwargs = {
            **self.settings.section("policy"),
            "model": self.policy.model,
            "dtype": self.settings.dtype,
        }
        return PPO(
            "CausalLMPolicy",
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
            lambda: self._validate(agent.policy),
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
        self.folder.update_state(ppo={"best": selection.best, "evaluated_at": selection.evaluated_at})

    def _save_agent(self, agent: PPO) -> None:
        self.folder.replace(AGENT_ZIP, agent.save)

    def _validate(self, policy: Any) -> dict[str, Estimate]:
        indices = evenly_spaced(len(self.validation.samples), self.settings.options["validation.episodes"])
        episodes = evaluate_policy_on(policy, self.validation, indices)
        return summarise(self.task, episodes, seed=self.settings.seed)

    @property
    def _n_validation(self) -> int:
        return min(len(self.validation.samples), self.settings.options["validation.episodes"])

    def _logger(self, timesteps: int) -> Logger:
        self.folder.cut_progress(timesteps)
        folder = str(self.folder.path)
        return Logger(folder, [_AppendingCSV(str(self.folder / PROGRESS)), TensorBoardOutputFormat(folder)])

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
        return make_env(self.settings, "train")

    @cached_property
    def validation(self) -> TokenVectorEnv:
        """Environments about the validation split."""
        return make_env(self.settings, "validation")


def make_env(settings: Settings, split: str) -> TokenVectorEnv:
    """The environments of a run about one split, with the tokenizer of its model.

    Raises:
        TextGymError: They cannot be made.
    """
    options: dict[str, Any] = {"num_envs": DEFAULTS["env.num_envs"], **settings.section("env")}
    for name, value in (("data", settings.data), ("columns", settings.columns), ("tokenizer", settings.model)):
        if value is not None:
            options.setdefault(name, value)
    if settings.model is not None:
        options.setdefault("max_context", _max_context(settings.model))
    if settings.reward is not None:
        options["reward"] = load_reward(settings.reward)
    venv = textgym.make_vec(settings.env, split=split, **options)
    if not isinstance(venv.unwrapped, TokenVectorEnv):
        raise ConfigurationError(f"{settings.env!r} is no environment of textgym's; see `textgym list`.")
    return venv.unwrapped


def _max_context(model: str) -> int:
    """What the model has positions for, and at most the environments' own default."""
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"there is no model {model!r}: no folder of this name holds one, and none could be had from the hub "
            f"({str(error).splitlines()[0]})."
        ) from error
    return min(MAX_CONTEXT, getattr(config.get_text_config(decoder=True), "max_position_embeddings", MAX_CONTEXT))


def load_policy(settings: Settings, venv: TokenVectorEnv, saved: Path | None = None) -> CausalLMPolicy:
    """The run's model, or the one saved in a folder, as a policy for the environments."""
    policy = CausalLMPolicy(
        venv.single_observation_space,
        venv.single_action_space,
        lambda _: 0.0,
        model=settings.model if saved is None else saved,
        dtype=settings.dtype,
        **settings.section("policy"),
    )
    policy.tokenizer = venv.tokenizer
    return policy.to(get_device(settings.device))


def load_reward(name: str) -> Any:
    """The reward that ``"module:function"`` names; modules are also looked for in the current folder.

    Raises:
        ConfigurationError: There is none of that name.
        RewardError: It is no reward.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f"a reward is named as 'module:function', not {name!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
    except ImportError as error:
        raise ConfigurationError(f"cannot import the module of the reward {name!r}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"the module {module!r} has no {attribute!r}.")
        found = getattr(found, part)
    return as_reward(found)


def evaluate_policy_on(
    policy: CausalLMPolicy,
    venv: TokenVectorEnv,
    indices: Sequence[int] | None = None,
    *,
    deterministic: bool = True,
    seed: int = 0,
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> list[Episode]:
    """Plays each sample once, with the likeliest tokens or, where not ``deterministic``, with sampled ones."""
    with policy.incremental_decoding(venv.num_envs):
        return play(
            venv,
            lambda observation: policy.predict(observation, deterministic=deterministic)[0],  # type: ignore[arg-type]
            indices,
            seed=seed,
            on_episode=on_episode,
        )


def _sha256(data: str | None) -> str | None:
    """Of a data file, so that a run can be repeated with the same one."""
    if data is None or not Path(data).is_file():
        return None
    return hashlib.sha256(Path(data).read_bytes()).hexdigest()


def evenly_spaced(n: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers 0 to n - 1."""
    return sorted({int(index) for index in np.linspace(0, n - 1, min(n, wanted)).round()})


@contextmanager
def deferred_interrupt(monitor: Monitor) -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted, and the second one interrupts. Gives what tells whether one was."""
    wanted = False

    def note(signum: int, frame: Any) -> None:
        nonlocal wanted
        if wanted:
            raise KeyboardInterrupt
        wanted = True
        monitor.note("stopping after this iteration; Ctrl-C again stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: wanted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: wanted
    finally:
        signal.signal(signal.SIGINT, before)


class _LiveFigures(BaseCallback):
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


class _AppendingCSV(CSVOutputFormat):
    """SB3's, which goes on in a file that is there."""

    def __init__(self, filename: str) -> None:
        path = Path(filename)
        header = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
        self.file = path.open("r+" if header else "w+", encoding="utf-8")
        self.file.seek(0, 2)
        self.keys = header.split(",") if header else []
        self.separator, self.quotechar = ",", '"'


def _evaluation_line(steps: int, summary: Mapping[str, Estimate], task: Task, is_best: bool) -> str:
    names = [name for name in ("reward", *headline(list(summary), task.headline_metrics)) if name in summary]
    figures = "  ".join(f"{name} {summary[name]['value']:.3f}" for name in names)
    return f"  {steps:>8,} steps, validation: {figures}{'  (best)' if is_best else ''}"


def _record(episode: Episode) -> dict[str, Any]:
    return {**episode.record(), "response": episode.response}


def _check_option(name: str, value: Any) -> None:
    section, dot, _ = name.partition(".")
    known = {default for default in DEFAULTS if default.partition(".")[0] == section}
    functions: dict[str, Any] = {"ppo": PPO, "policy": CausalLMPolicy, "warm_start": imitate, "teach": imitate}
    if section in functions:
        known |= {f"{section}.{parameter}" for parameter in inspect.signature(functions[section]).parameters}
    if name not in known and not (dot and section == "env"):
        close = difflib.get_close_matches(name, {*DEFAULTS, *known}, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ConfigurationError(f"there is no setting {name!r}.{hint}")
    default = DEFAULTS.get(name)
    if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
        raise ConfigurationError(f"the setting {name!r} is a number, such as {default!r}, not {value!r}.")
