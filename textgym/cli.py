"""The command line: ``textgym list``, ``textgym train``, ``textgym evaluate``, ``textgym bench``."""

from __future__ import annotations

import ast
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import textgym
from textgym.bench_cli import bench_app
from textgym.errors import ConfigurationError, TextGymError
from textgym.monitor import EpisodeCounter, Monitor

if TYPE_CHECKING:
    from textgym.agents.run_settings import Settings
    from textgym.evaluation import Estimate

__all__ = ["app"]

app = typer.Typer(
    help="Language tasks as Gymnasium environments, and language models trained on them with PPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(bench_app, name="bench")
STAGE_TITLES = {"base": "base model", "sft": "warm start", "ppo": "PPO"}

Env = Annotated[str, typer.Argument(metavar="ENV", help="The environment's id; `textgym list` shows them.")]
Model = Annotated[
    str | None, typer.Option(help="Name or path of a causal language model; the built-in one if left out.")
]
Data = Annotated[str | None, typer.Option(help="A JSONL, CSV, TSV or Parquet file, or a data set's name.")]
ColumnTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        help="Which column is which: 'prompt=question,references=answer', or the name of a layout that the task knows. "
        "With braces a template over columns: "
        "'prompt=What is the capital of {Country}?,references=Capital'. Repeat it for several questions a row.",
    ),
]
RewardName = Annotated[str | None, typer.Option("--reward", help="module:function, in place of the task's own.")]
Seed = Annotated[int, typer.Option(help="Of everything.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16: compute under autocast.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting, such as ppo.learning_rate=3e-5. Repeatable."),
]


@app.command("list")
def list_environments(
    rewards: Annotated[bool, typer.Option("--rewards", help="The rewards of textgym.rewards instead.")] = False,
) -> None:
    """Shows the environments."""
    if not rewards:
        for id in textgym.registered_ids():
            typer.echo(id)
        return
    table = Table("reward", "what it is worth", box=None, pad_edge=False)
    for name in textgym.rewards.__all__:
        found = getattr(textgym.rewards, name)
        if isinstance(found, type) and issubclass(found, textgym.Reward) and found is not textgym.Reward:
            table.add_row(escape(name), escape((found.__doc__ or "").strip().partition("\n")[0].replace("``", "")))
    Console(width=max(100, Console().width)).print(table)


@app.command()
def train(
    context: typer.Context,
    env: Annotated[str | None, typer.Argument(metavar="ENV", help="The environment's id.")] = None,
    model: Model = None,
    data: Data = None,
    columns: ColumnTexts = None,
    reward: RewardName = None,
    total_timesteps: Annotated[int | None, typer.Option(help="Tokens of the agent in PPO.", min=1)] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="A new folder for everything; runs/NAME-0 and so on.")] = None,
    warm_start: Annotated[bool, typer.Option(help="Imitate the task's demonstrations first.")] = True,
    teach: Annotated[
        float | None, typer.Option(help="First teach the model this share of the facts, and probe what it knows.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder.")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    options: Options = None,
) -> None:
    """Evaluates a model, warm-starts it on demonstrations, trains it with PPO, and shows what changed."""
    with errors_as_lines():
        from textgym.agents.run_settings import Settings
        from textgym.agents.training import Training

        screen = _Screen()
        if resume is not None:
            _refuse_beside_resume(context)
            training = Training.resume(resume, screen)
        elif env is None:
            raise ConfigurationError("which environment? Give its id (`textgym list` shows them), or --resume DIR.")
        else:
            given: dict[str, Any] = dict(map(_option, options or ()))
            given |= {"total_timesteps": total_timesteps} if total_timesteps is not None else {}
            given |= {"teach.share": teach} if teach is not None else {}
            settings = Settings(
                env=env,
                model=model,
                data=_absolute(data),
                columns=_columns(columns),
                reward=reward,
                seed=seed,
                device=device,
                dtype=dtype,
                warm_start=warm_start,
                options=given,
            )
            training = Training.start(settings, out or _free_folder(env), screen)
        _run(training, screen)


def _run(training: Any, screen: _Screen) -> None:
    path = training.folder.path
    try:
        with screen:
            stages = training.run()
    except KeyboardInterrupt:
        screen.console.print(Text(f"Stopped, and saved. Go on with: textgym train --resume {path}", style="yellow"))
        raise typer.Exit(130) from None
    screen.console.print(results_table(stages, f"{training.settings.env}, test split"))
    screen.console.print(Text(f"Everything is in {path}: look at {path / 'curves.png'}."))


@app.command()
def evaluate(
    env: Env,
    model: Model = None,
    data: Data = None,
    columns: ColumnTexts = None,
    reward: RewardName = None,
    split: Annotated[str, typer.Option(help="Which of the data.")] = "test",
    sample: Annotated[bool, typer.Option("--sample", help="Sample the replies; greedy decoding if left out.")] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    options: Options = None,
) -> None:
    """Plays every sample of a split once, and shows the reward and the task's metrics with 95% intervals."""
    with errors_as_lines():
        from textgym.agents.run_settings import Settings

        settings = Settings(
            env=env, model=model, data=data, columns=_columns(columns), reward=reward, seed=seed, device=device,
            dtype=dtype, options=dict(map(_option, options or ())),
        )  # fmt: skip
        screen = _Screen()
        if out is not None:  # what cannot be written is found before the work is done
            out.parent.mkdir(parents=True, exist_ok=True)
            out.open("a").close()
        with screen:
            summary = _evaluate(settings, split, sample, screen)
        screen.console.print(
            results_table({Path(model).name if model else "built-in model": summary}, f"{env}, {split}")
        )
        if out is not None:
            content = {"env": env, "model": model, "split": split, "sample": sample, "seed": seed, "metrics": summary}
            out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _evaluate(settings: Settings, split: str, sample: bool, screen: _Screen) -> dict[str, Estimate]:
    from stable_baselines3.common.utils import set_random_seed

    from textgym.agents.playing import play_policy
    from textgym.agents.run_settings import load_policy, make_env
    from textgym.agents.training_callbacks import SHOWN_FAILURES, failure_text
    from textgym.evaluation import summarise

    venv = make_env(settings, split)
    settings = settings.complete(venv.task)
    policy = load_policy(settings, venv)
    set_random_seed(settings.seed)
    screen.stage("evaluate", f"{len(venv.samples)} episodes")
    counter = EpisodeCounter(screen, len(venv.samples))
    episodes = play_policy(policy, venv, deterministic=not sample, seed=settings.seed, on_episode=counter)
    for episode in [episode for episode in episodes if episode.score_status != "ok"][:SHOWN_FAILURES]:
        screen.note(failure_text(episode.score_status, episode.record()))
    return summarise(venv.task, episodes, seed=settings.seed)


def results_table(stages: Mapping[str, Mapping[str, Estimate]], title: str) -> Table:
    """Stages as columns, metrics as rows; each value with its interval."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for stage in stages:
        table.add_column(Text(STAGE_TITLES.get(stage, stage)), justify="right")
    for name in _grouped(name for metrics in stages.values() for name in metrics):
        cells = [metrics.get(name) for metrics in stages.values()]
        if name != "unscored":
            parent, _, group = name.partition("/")
            table.add_row(Text(f"  {group}" if group else parent), *map(_cell, cells))
        elif any(cell and cell["value"] for cell in cells):
            table.add_row(Text("unscored episodes"), *(Text(f"{cell['value']:.0f}" if cell else "") for cell in cells))
    return table


def _grouped(names: Iterable[str]) -> list[str]:
    """Each name once, ``accuracy/known`` after ``accuracy``."""
    found = list(dict.fromkeys(names))
    parents = list(dict.fromkeys(name.partition("/")[0] for name in found))
    return [name for parent in parents for name in found if name.partition("/")[0] == parent]


def _cell(estimate: Estimate | None) -> Text:
    if estimate is None:
        return Text("–", style="dim")
    interval = f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return Text.assemble((f"{estimate['value']:.3f}", "bold"), (interval, "dim"))


class _Screen(Monitor):
    """Progress bars and the figures that matter, on a terminal; else a line for each part."""

    def __init__(self) -> None:
        self.console = _console()
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.current: Any = None
        self.shown = 0.0

    def __enter__(self) -> _Screen:
        self.bars.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.bars.stop()

    def stage(self, name: str, what: str) -> None:
        """A part of the run begins."""
        self.current = self.bars.add_task(escape(name), total=None, figures="")
        self.console.print(Text.assemble((f"{name}: ", "bold cyan"), what))

    def progress(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Moves the current bar, at most ten times a second."""
        now = time.monotonic()
        if done < total and now - self.shown < 0.1:
            return
        self.shown = now
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self.bars.update(self.current, completed=done, total=total, figures=text)

    def note(self, text: str) -> None:
        """A line."""
        self.console.print(Text(text))

    def result(self, name: str, summary: Mapping[str, Estimate]) -> None:
        """A line with a stage's reward."""
        if "reward" in summary:
            self.console.print(Text.assemble("  test reward ", _cell(summary["reward"])))


def agent_of(spec: str | Mapping[str, Any]) -> Any:
    """The agent that a text or a table of a file stands for."""
    from textgym.agents.agent_specs import make_agent

    return make_agent(spec)


def reward_of(name: str) -> Any:
    """The reward that ``"module:function"`` names."""
    from textgym.agents.run_settings import load_reward

    return load_reward(name)


def make_screen() -> _Screen:
    """A screen for a command."""
    return _Screen()


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 110))


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """What textgym raises on purpose, or for a file that cannot be read or written: one red line and exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # else each best epoch's weights come with a warning of their tied head
        yield
    except (TextGymError, OSError) as error:
        line = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("Error: ", "bold red"), (line, "red")))
        raise typer.Exit(2) from None


def _refuse_beside_resume(context: typer.Context) -> None:
    given = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else str(parameter.metavar)
        for parameter in context.command.params
        if parameter.name not in (None, "resume")
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise ConfigurationError(f"--resume goes on with the settings of the run; leave out {', '.join(given)}.")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"--set takes NAME=VALUE, such as ppo.learning_rate=3e-5, not {text!r}.")
    constants = {"true": True, "false": False, "none": None}
    try:
        return name.strip(), constants[value.lower()] if value.lower() in constants else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value


def _columns(texts: list[str] | None) -> dict[str, str] | list[dict[str, str]] | str | None:
    """One mapping for one text, a list for several; a word alone names a layout.

    A comma divides where a name and ``=`` follow it.
    """
    if texts is not None and len(texts) == 1 and re.fullmatch(r"[\w.-]+", texts[0]):
        return texts[0]
    mappings = []
    for text in texts or ():
        pairs = [pair.partition("=") for pair in re.split(r",(?=\s*\w+\s*=)", text)]
        if not all(name.strip() and equals and value for name, equals, value in pairs):
            raise ConfigurationError(f"--columns takes 'prompt=question,references=answer', not {text!r}.")
        mappings.append({name.strip(): value.strip() for name, _, value in pairs})
    return mappings[0] if len(mappings) == 1 else mappings or None


def _absolute(data: str | None) -> str | None:
    """A file's whole path, since a run may be gone on with from elsewhere."""
    return str(Path(data).resolve()) if data is not None and Path(data).exists() else data


def _free_folder(env: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", env.rpartition("/")[2])
    number = 0
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


if __name__ == "__main__":
    app()
