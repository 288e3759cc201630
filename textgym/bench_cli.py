"""The command line of the benchmark: ``textgym bench``, ``textgym bench compare``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markdown import Markdown
from rich.text import Text

from textgym.errors import ConfigurationError

__all__ = ["bench_app"]

bench_app = typer.Typer(invoke_without_command=True, help="Plays agents on tasks, and compares them.")
DEFAULTS: dict[str, Any] = {"episodes": 200, "seeds": 3, "split": "test", "batch": 64}


@bench_app.callback()
def bench(
    context: typer.Context,
    agents: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas, NAME=AGENT or AGENT: random, abstain, reference, builtin, a model's folder or "
            "name, best-of-8:AGENT, openai:MODEL@http://localhost:8000/v1, module:name. With {task} in it, such as "
            "ppo=runs/{task}/agent, it is one by task (Math of textgym/Math-v0).",
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Ids of environments, separated by commas, or all.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Samples of each task; 200 if left out.", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="How often each is played; 3 if left out.", min=1)] = None,
    split: Annotated[str | None, typer.Option(help="Which of the data; test if left out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Conversations side by side; 64 if left out.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; the same command again goes on in it.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with these settings; options override it.")] = None,
    rescore: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Score stored replies anew; needs --reward.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="module:function, for --rescore.")] = None,
) -> None:
    """Plays every agent on every task, with the same samples and seeds; shows rewards with 95% intervals."""
    if context.invoked_subcommand is not None:
        return
    from textgym.cli import errors_as_lines, make_screen

    with errors_as_lines():
        screen = make_screen()
        numbers = {"episodes": episodes, "seeds": seeds, "split": split, "batch": batch, "out": out}
        lists = {"agents": agents and _named(agents), "tasks": tasks and _listed(tasks)}
        given = {name: value for name, value in {**numbers, **lists}.items() if value is not None}
        if rescore is not None:
            folder = _rescore(rescore, reward, [*given, *(["config"] if config is not None else [])], screen)
        elif reward is not None:
            raise ConfigurationError(
                f"--reward {reward} is for --rescore DIR; tasks are played with their own rewards."
            )
        else:
            folder = _benchmark(DEFAULTS | _read(config) | given, screen)
        screen.console.print(Markdown((folder / "table.md").read_text(encoding="utf-8")))
        screen.console.print(Text(f"Everything is in {folder}."))


@bench_app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A benchmark's folder.")],
    second: Annotated[Path, typer.Argument(help="Another one's, on the same samples.")],
) -> None:
    """By how much the agents of the first earn more than those of the same name in the second, paired."""
    from textgym.cli import errors_as_lines, make_screen

    with errors_as_lines():
        from textgym.benchmarking import compare as compared

        screen = make_screen()
        for agent, by_task in compared(first, second).items():
            for task, found in by_task.items():
                interval = f"[{found['low']:.3f}, {found['high']:.3f}], p = {found['p']:.4f}, n = {found['n']:.0f}"
                screen.console.print(Text(f"{agent}, {task}: {found['value']:+.3f} {interval}"))


def _benchmark(settings: dict[str, Any], screen: Any) -> Path:
    missing = [name for name in ("agents", "tasks", "out") if not settings.get(name)]
    if missing:
        raise ConfigurationError(f"a benchmark needs {', '.join(f'--{name}' for name in missing)}.")
    unknown = settings.keys() - {*DEFAULTS, "agents", "tasks", "out"}
    if unknown:
        raise ConfigurationError(f"there is no setting {', '.join(map(repr, sorted(unknown)))} of a benchmark.")
    from textgym.benchmarking import benchmark

    if not isinstance(settings["out"], (str, Path)):
        raise ConfigurationError(f"out={settings['out']!r}; it is the name of a folder.")
    tasks = settings["tasks"] if isinstance(settings["tasks"], (list, dict)) else ()  # what else it is, is said below
    agents = {name: _agent(spec, tasks) for name, spec in _specs(settings.pop("agents")).items()}
    folder = Path(settings.pop("out"))
    with screen, _stoppable(screen, "Stopped. The same command goes on."):
        benchmark(agents, out=folder, monitor=screen, **settings)
    return folder


@contextmanager
def _stoppable(screen: Any, message: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        screen.console.print(Text(message, style="yellow"))
        raise typer.Exit(130) from None


def _agent(spec: Any, tasks: Iterable[str]) -> Any:
    """What a text or table stands for: an agent, or one by task where there is a {task} in a text."""
    from textgym.benchmark_report import short_name
    from textgym.cli import agent_of

    if isinstance(spec, str) and "{task}" in spec:
        return {task: agent_of(spec.replace("{task}", short_name(task))) for task in tasks}
    return agent_of(spec)


def _rescore(folder: Path, reward: str | None, beside: list[str], screen: Any) -> Path:
    if beside:
        raise ConfigurationError(f"--rescore plays nothing; leave out {', '.join(f'--{name}' for name in beside)}.")
    if reward is None:
        raise ConfigurationError("--rescore needs the new reward: --reward module:function.")
    from textgym.benchmarking import rescore
    from textgym.cli import reward_of

    name = reward.replace(":", ".")
    with screen, _stoppable(screen, "Stopped. Nothing was changed."):
        rescore(folder, reward_of(reward), name, screen)
    return folder / "rescored" / name


def _specs(agents: Any) -> dict[str, Any]:
    """Agents by name; in a list each is named by its text."""
    if isinstance(agents, Mapping):
        return dict(agents)
    if not isinstance(agents, list) or not all(isinstance(agent, str) for agent in agents):
        raise ConfigurationError(f"agents are a table by name or a list of texts, not {agents!r}.")
    return _by_name((agent, agent) for agent in agents)


def _by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, spec in pairs:
        if not name or not spec:
            raise ConfigurationError(f"an agent is given as AGENT or NAME=AGENT, not {f'{name}={spec}'!r}.")
        if name in found:
            raise ConfigurationError(f"there are two agents of the name {name!r}; name them: NAME=AGENT.")
        found[name] = spec
    return found


def _named(text: str) -> dict[str, str]:
    """``"a,b=best-of-4:c"`` by name."""

    def pair(part: str) -> tuple[str, str]:
        name, equals, spec = part.partition("=")
        return (name, spec) if equals and "/" not in name and ":" not in name else (part, part)

    return _by_name(map(pair, _parts(text)))


def _listed(text: str) -> list[str]:
    import textgym

    return textgym.registered_ids() if text == "all" else _parts(text)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
