"""Summarization: one to three sentences that say what matters in a passage.

The built-in passages are short reports of what happened in invented towns. A few facts matter (who, what, where, when,
how many), and stand among weather, quotes and background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.invention import DAYS, PEOPLE, TOWNS, Chance, capitalised, prompted, words
from textgym.envs.recipe import COMMON
from textgym.envs.report import LENGTH, mean_scores
from textgym.episode import Episode, Sample
from textgym.rewards import Reward, Score
from textgym.rewards.lexical import Contains, Length, Rouge

__all__ = ["KeyFactCoverage", "Summarization", "summary_prompt"]

N_SAMPLES = 10_000
SEED = (2026, 3, 3)
EXTRACT_SHARE = 0.65  # of the demonstrations: the beginning of the passage
LONG_SHARE = 0.3  # of these: two sentences, not one
MAX_WORDS = 25
KEY_FACTS = "key_facts"


class Event(NamedTuple):
    """What may happen, in templates whose slots a :class:`Reporter` fills.

    Args:
        leads: Ways to begin the report.
        details: What it says later, in order, each in several ways.
        summaries: What matters, in a sentence, the preferred one first.
        key_facts: What of it a summary has to name.
    """

    leads: tuple[str, ...]
    details: tuple[tuple[str, ...], ...]
    summaries: tuple[str, ...]
    key_facts: tuple[str, ...]


EVENTS = (
    Event(
        ("{town} played against {town2} on {day}.", "On {day} {town2} met {town} for a game."),
        (
            ("{town} won {score}.", "At the end it was {score} for {town}."),
            ("{name} was the best player.", "{name} played well."),
        ),
        ("{town} won {score} against {town2} on {day}.", "{town} beat {town2} {score} on {day}."),
        ("{town}", "{town2}", "{score}", "{day}"),
    ),
    Event(
        ("A storm came to {town} on {day}.", "There was a storm in {town} on {day}."),
        (("It broke {n} trees.", "The wind broke {n} trees."), ("The streets were empty.", "It went on for hours.")),
        ("A storm broke {n} trees in {town} on {day}.", "On {day} a storm in {town} broke {n} trees."),
        ("storm", "{n} trees", "{town}", "{day}"),
    ),
    Event(
        ("There is a new {shop} in {town}.", "{town} has a new {shop}."),
        (("{name} opened it on {day}.", "On {day} {name} opened the doors."), ("{n} people came.", "{name2} helped.")),
        ("{name} opened a {shop} in {town} on {day}.", "On {day} {name} opened a {shop} in {town}."),
        ("{name}", "{shop}", "{town}", "{day}"),
    ),
    Event(
        ("The people of {town} chose a mayor on {day}.", "On {day} {town} chose a mayor."),
        (("{name} got {n} votes.", "{n} votes went to {name}."), ("{name2} got only {few}.", "{few} went to {name2}.")),
        ("{name} is the mayor of {town} with {n} votes.", "{town} chose {name} as mayor with {n} votes."),
        ("{name}", "mayor", "{town}", "{n} votes"),
    ),
    Event(
        ("There was a fire in {town} on {day}.", "On {day} there was a fire in {town}."),
        (("{place} burned for {few} hours.", "For {few} hours {place} burned."), ("{n} people left their houses.",)),
        ("In {town} {place} burned for {few} hours on {day}.", "On {day} {place} in {town} burned for {few} hours."),
        ("{place}", "{town}", "{few} hours", "{day}"),
    ),
    Event(
        ("There was a present for {place} in {town}.", "{place} in {town} got a present."),
        (("{name} brought {n} books on {day}.", "On {day} {name} came with {n} books."), ("{name2} said thank you.",)),
        ("{name} gave {n} books to {place} in {town}.", "{place} in {town} got {n} books from {name}."),
        ("{name}", "{n} books", "{place}", "{town}"),
    ),
    Event(
        ("Many people ran through {town} on {day}.", "On {day} there was a run through {town}."),
        (("{name} was the first of {n} runners.", "Of {n} runners, {name} was the first."), ("{name2} was the last.",)),
        ("{name} was the first of {n} runners in {town} on {day}.", "{name} won the run of {n} runners in {town}."),
        ("{name}", "{n} runners", "{town}"),
    ),
    Event(
        ("{name} lost a {animal} in {town} on {day}.", "On {day} {name} could not find a {animal} in {town}."),
        (("{name2} found it in {place}.", "It was in {place}, where {name2} found it."), ("{name} was happy.",)),
        (
            "{name2} found the {animal} of {name} in {place}.",
            "{name} lost a {animal}, and {name2} found it in {place}.",
        ),
        ("{name}", "{name2}", "{animal}", "{place}"),
    ),
    Event(
        ("{name} gave a concert in {town} on {day}.", "On {day} there was a concert by {name} in {town}."),
        (("{n} people came to {place}.", "It was in {place}, and {n} people came."), ("{name2} played, too.",)),
        ("{n} people came to a concert by {name} in {town}.", "{name} gave a concert for {n} people in {town}."),
        ("{name}", "concert", "{n} people", "{town}"),
    ),
    Event(
        ("The museum of {town} has a new picture.", "There is a new picture in the museum of {town}."),
        (("It is by {name} and cost {n} euros.", "It cost {n} euros and is by {name}."), ("{name2} wanted it, too.",)),
        (
            "The museum of {town} bought a picture by {name} for {n} euros.",
            "For {n} euros the museum of {town} bought a picture by {name}.",
        ),
        ("museum", "{town}", "{name}", "{n} euros"),
    ),
)
FILLERS = (
    "The weather was {weather}.",
    "It was a {weather} day.",
    "It was late.",
    "Many people were there.",
    "{name3} took pictures.",
    "{town} is known for its {sight}.",
    "{town} lies on a river.",
    "Last year it was different.",
    '"It was a day to remember," said {name3}.',
    '"I saw it all," said {name3}.',
    '"What a day," said {name3}.',
)
CHOICES = {
    "day": DAYS,
    "place": ("the church", "the library", "the museum", "the office", "the park", "the school", "the station"),
    "shop": ("book shop", "flower shop", "garden market", "library", "music school", "museum", "shoe shop"),
    "animal": words("bird cat dog horse pig"),
    "weather": words("bright cold fine quiet warm"),
    "sight": words("bridge garden lake market park"),
}


class Reporter(Chance):
    """Writes reports and sums them up."""

    def report(self) -> tuple[list[str], list[str], list[str]]:
        """The sentences of a passage, its summaries, and its key facts."""
        event, slots = self.one_of(EVENTS), self._slots()
        sentences = [self.one_of(details) for details in event.details[: self.between(1, 2)]]
        for filler in self.some_of(FILLERS, self.between(1, 2)):
            sentences.insert(self.between(0, len(sentences)), filler)
        sentences.insert(0, self.one_of(event.leads))
        templates = (sentences, event.summaries, event.key_facts)
        texts, summaries, facts = ([template.format_map(slots) for template in group] for group in templates)
        return [*map(capitalised, texts)], [*map(capitalised, summaries)], facts

    def summarise(self, sentences: Sequence[str], summaries: Sequence[str]) -> str:
        """What somebody takes for a summary: the first sentence or two, or a good one."""
        if self.happens(EXTRACT_SHARE):
            return " ".join(sentences[: 2 if self.happens(LONG_SHARE) else 1])
        return self.one_of(summaries)

    def _slots(self) -> dict[str, str]:
        """A value for every slot; two of a kind are different."""
        slots = {name: self.one_of(choices) for name, choices in CHOICES.items()}
        slots["name"], slots["name2"], slots["name3"] = self.some_of(PEOPLE, 3)
        slots["town"], slots["town2"] = self.some_of(TOWNS, 2)
        goals = self.between(0, 3)
        return {
            **slots,
            "score": f"{goals + self.between(1, 3)} to {goals}",
            "few": str(self.between(2, 9)),
            "n": str(self.between(11, 99)),
        }


@cache
def _samples() -> tuple[Sample, ...]:
    reporter = Reporter(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        sentences, summaries, key_facts = reporter.report()
        prompt = summary_prompt(" ".join(sentences))
        demonstration = reporter.summarise(sentences, summaries)
        samples[prompt] = prompted(prompt, summaries, key_facts=key_facts, demonstration=demonstration)
    return tuple(samples.values())


def summary_prompt(text: str) -> str:
    """The prompt for a text; the summary follows after a blank."""
    return f"Text: {text}\nSummary:"


class KeyFactCoverage(Reward):
    """The share of a sample's key facts, the phrases ``meta["key_facts"]``, that a summary names.

    Args:
        otherwise: What scores a summary of a sample that tells no key facts.
    """

    name = "coverage"

    def __init__(self, otherwise: Reward) -> None:
        self.coverage, self.otherwise = Contains(meta=KEY_FACTS, name=self.name), otherwise

    def score(self, episodes: Sequence[Episode]) -> list[Score]:
        """Of each episode; the parts tell which of the two it is."""
        return [self._reward(episode).score_at(self.when, [episode])[0] for episode in episodes]

    def _reward(self, episode: Episode) -> Reward:
        return self.coverage if episode.sample.meta.get(KEY_FACTS) else self.otherwise


ROUGE_1, ROUGE_L = Rouge("rouge1"), Rouge("rougeL")
METRICS = {
    "rouge1": ROUGE_1,
    "rougeL": ROUGE_L,
    "coverage": Contains(meta=KEY_FACTS),
    "length": LENGTH,
}


def _scitldr_rows(row: Row) -> list[Row]:
    """SciTLDR's, whose source is a list of sentences or, joined, a text."""
    source = row["source"]
    text = source if isinstance(source, str) else " ".join(source)
    return [{"prompt": summary_prompt(text), "references": list(row["target"]), "paper_id": row["paper_id"]}]


def _cnn_dailymail_rows(row: Row) -> list[Row]:
    """CNN / Daily Mail's, whose summary has its sentences on lines of their own."""
    return [{"prompt": summary_prompt(row["article"]), "references": " ".join(row["highlights"].split())}]


class Summarization(BuiltinTask):
    """A passage to sum up in one to three sentences.

    The reward is the mean of ROUGE-L and of the share of the key facts that the summary names, times a length budget of
    25 words, beyond which it falls to 0 at 50. Real data tell no key facts; there ROUGE-L stands alone.

    The built-in demonstrations are of mixed quality, as people's summaries are: most copy the beginning of the report.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`. A column ``key_facts`` is a list of phrases.
        columns: Likewise: ``{"prompt": "Text: {article}\\nSummary:", "references": "abstract"}``.
    """

    reward = (0.5 * ROUGE_L + 0.5 * KeyFactCoverage(otherwise=ROUGE_L)) * Length(1, MAX_WORDS)
    stop = ("\n",)
    max_new_tokens = 40
    recipe = MappingProxyType({**COMMON, "total_timesteps": 40_000})
    headline_metrics = ("rougeL", "coverage", "length")
    layouts = MappingProxyType(
        {
            "scitldr": Layout("allenai/scitldr", "Abstract", rows=_scitldr_rows),
            "cnn_dailymail": Layout("abisee/cnn_dailymail", "3.0.0", rows=_cnn_dailymail_rows),
            "xsum": Layout(
                "EdinburghNLP/xsum", columns={"prompt": summary_prompt("{document}"), "references": "summary"}
            ),
        }
    )

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """Reports of events, each with two summaries and three or four key facts."""
        return _samples()

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means of ROUGE-1, ROUGE-L, key-fact coverage and length in words."""
        return mean_scores(episodes, METRICS)
