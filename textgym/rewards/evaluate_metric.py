"""The bridge to the ``evaluate`` library: its metrics as rewards, and rewards as its metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from textgym.episode import Episode, Prompt, Sample, Turn
from textgym.errors import RewardError
from textgym.rewards.core import Reward, Score, as_reward

if TYPE_CHECKING:
    from evaluate import EvaluationModule

__all__ = ["Evaluate", "as_metric"]


class Evaluate(Reward):
    """A metric of the ``evaluate`` library as a reward.

    The metric gets the stripped replies as ``predictions`` and the samples' references as ``references``: all of them
    where it takes a list for each prediction, else the first, preferred one. If it takes references, a sample that has
    none is not scored. Logged under the metric's name, followed by the key.

    Args:
        metric: A metric object, best made with ``keep_in_memory=True``, which spares a file for each call. Or the path
            of one's own: a script, or a folder with a script of the folder's name; loading it runs its code. Or a name
            on the hub, with ``trust_remote_code``.
        key: Which value of the metric's result is the reward, where the result has several.
        per_episode: One ``compute`` an episode, as a metric needs whose value is about all of its predictions at once;
            each costs some ten milliseconds of overhead. If False, one ``compute`` a batch, of a metric whose value is
            a list with a number for each prediction.
        arguments: Further arguments of ``compute``, such as ``{"lang": "en"}``.
        trust_remote_code: Whether a metric may be loaded from the hub: this downloads and runs code of others.

    Raises:
        RewardError: There is no such metric, it must not be loaded, or it takes more than predictions and references.
    """

    def __init__(
        self,
        metric: EvaluationModule | str | os.PathLike[str],
        key: str | None = None,
        *,
        per_episode: bool = True,
        arguments: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.metric = _loaded(metric, trust_remote_code)
        self.key, self.per_episode, self.arguments = key, per_episode, dict(arguments or {})
        self.name = self.metric.name if key in (None, self.metric.name) else f"{self.metric.name}_{key}"
        self.takes_references, self.takes_several = _references_taken(self.metric)

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """The metric's value for each episode; no value where a reference is missing.

        Raises:
            RewardError: The result has no value that is a number an episode, or several and no key is given.
        """
        is_ready = [bool(episode.sample.references) or not self.takes_references for episode in episodes]
        ready = list(compress(episodes, is_ready))
        batches = [[episode] for episode in ready] if self.per_episode else [ready] * bool(ready)
        values = iter([value for batch in batches for value in self._values(batch)])
        return [
            Score(next(values))
            if scored
            else Score(None, status=f"{self.name}: needs a reference; sample {episode.sample.id!r} has none")
            for episode, scored in zip(episodes, is_ready, strict=True)
        ]

    def _values(self, episodes: Sequence[Episode]) -> list[float]:
        inputs: dict[str, Any] = {"predictions": [episode.response.strip() for episode in episodes]}
        if self.takes_references:
            references = [episode.sample.references for episode in episodes]
            inputs["references"] = [list(texts) if self.takes_several else texts[0] for texts in references]
        result = self.metric.compute(**inputs, **self.arguments)
        return self._chosen(result if isinstance(result, Mapping) else {self.metric.name: result}, len(episodes))

    def _chosen(self, result: Mapping[str, Any], n: int) -> list[float]:
        keys = ", ".join(map(repr, result))
        if self.key is not None and self.key not in result:
            raise RewardError(f"{self.metric.name} returns no {self.key!r}; choose a key of {keys}.")
        wanted = result if self.key is None else {self.key: result[self.key]}
        usable = [values for values in map(_numbers, wanted.values()) if values is not None and len(values) == n]
        if not usable:
            raise RewardError(f"{self.metric.name} returns nothing of {n} number(s) for {n} prediction(s): {wanted!r}.")
        if len(usable) > 1:
            raise RewardError(f"{self.metric.name} returns several values; choose one with key=, of {keys}.")
        return usable[0]


def as_metric(reward: Reward | Callable[..., Any]) -> EvaluationModule:
    """A reward, or a plain function that can be one, as a metric of the ``evaluate`` library.

    Its ``compute(predictions=..., references=...)`` takes replies, and for each a reference, a list of them, or nothing
    at all (``references`` left out). A reward that looks at prompts or at ``Sample.meta`` gets them by ``prompts=...``
    and ``metas=...``, one each; a prompt that is not given is empty. The result has the mean ``"reward"`` and the mean
    of every part (``"reward/rougeL"``) over the replies that could be scored, left out if none could, and
    ``"unscored"``, the number of the others.

    Raises:
        RewardError: It is no reward.
    """
    import datasets
    import evaluate

    scorer = 1.0 * as_reward(reward)  # a combination catches what its terms raise, and asks at all of their moments
    text = datasets.Value("string")

    class RewardMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"The textgym reward {reward!r}.",
                citation="",
                inputs_description="",
                features=[
                    datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                    datasets.Features({"predictions": text, "references": text}),
                ],
            )

        def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
            """Adds replies, with or without references."""
            if references is None:
                references = [[] for _ in predictions]
            super().add_batch(predictions=predictions, references=references, **inputs)

        def _compute(
            self,
            *,
            predictions: Any,
            references: Any,
            prompts: list[Prompt] | None = None,
            metas: list[Mapping[str, Any]] | None = None,
        ) -> dict[str, float]:
            columns = zip(
                predictions,
                references,
                [""] * len(predictions) if prompts is None else prompts,
                [{}] * len(predictions) if metas is None else metas,
                strict=True,
            )
            episodes = [_episode(str(i), *column) for i, column in enumerate(columns)]
            return _means(scorer.score(episodes))

    return RewardMetric(keep_in_memory=True)


def _episode(name: str, response: str, references: str | list[str], prompt: Prompt, meta: Mapping[str, Any]) -> Episode:
    texts = (references,) if isinstance(references, str) else tuple(references)
    return Episode(Sample(name, prompt, texts, meta), [Turn("assistant", response)], stop_reason="eos")


def _means(scores: Sequence[Score]) -> dict[str, float]:
    values = [score.value for score in scores if score.value is not None]
    parts: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.parts.items() if score.value is not None else ():
            parts.setdefault(f"reward/{name}", []).append(value)
    means = {name: fmean(column) for name, column in ({"reward": values} | parts).items() if column}
    return means | {"unscored": len(scores) - len(values)}


def _loaded(metric: Any, trust_remote_code: bool) -> EvaluationModule:
    import evaluate

    if isinstance(metric, evaluate.EvaluationModule):
        return metric
    if not isinstance(metric, (str, os.PathLike)):
        raise RewardError(f"a metric is an evaluate.EvaluationModule or a path, not {metric!r}.")
    path = os.fspath(metric)
    if not _is_script(Path(path)) and not trust_remote_code:
        raise RewardError(
            f"there is no metric at {path!r}, neither a script nor a folder with a script of its name. A metric of the "
            "hub is loaded with trust_remote_code=True only, since that runs its code."
        )
    return evaluate.load(path, keep_in_memory=True)


def _is_script(path: Path) -> bool:
    return (path if path.suffix == ".py" else path / f"{path.name}.py").is_file()


def _references_taken(metric: EvaluationModule) -> tuple[bool, bool]:
    """Whether the metric takes references, and whether several for each prediction."""
    options = metric.features if isinstance(metric.features, list) else [metric.features]
    inputs = set().union(*options)
    if "predictions" not in inputs or inputs - {"predictions", "references"}:
        raise RewardError(
            f"{metric.name} takes {', '.join(sorted(inputs))}; a reward gives predictions and references only."
        )
    columns = [option["references"] for option in options if "references" in option]
    return bool(columns), any(isinstance(column, list) or hasattr(column, "feature") for column in columns)


def _numbers(value: Any) -> list[float] | None:
    """The numbers of a number, list or array; None if it is anything else."""
    plain = value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's
    items = plain if isinstance(plain, (list, tuple)) else [plain]
    return [float(item) for item in items] if all(isinstance(item, Real) for item in items) else None
