"""Creative writing: a very short story in which some given words occur, that ends and does not repeat itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.invention import Chance, capitalised
from textgym.envs.recipe import COMMON
from textgym.envs.report import LENGTH, mean_scores
from textgym.episode import Episode, Sample
from textgym.rendering import load_tokenizer
from textgym.rewards.core import Reward, gate, reward
from textgym.rewards.lexical import Contains, DistinctN
from textgym.rewards.models import Fluency

__all__ = ["CreativeWriting", "Story", "ended", "story", "story_prompt"]

STORY_MODEL = Path(__file__).parent / "data" / "stories"
N_SAMPLES = 5000
SEED = (2026, 11, 1)
N_WORDS = 3
OUTLINE_SHARE = 0.6  # of the demonstrations

# nouns with the pronoun for a second mention
HEROES = (
    ("fox", "it"), ("sailor", "he"), ("baker", "she"), ("dragon", "it"), ("farmer", "he"), ("queen", "she"),
    ("thief", "he"), ("teacher", "she"), ("robot", "it"), ("pilot", "she"), ("monk", "he"), ("nurse", "she"),
    ("cat", "it"), ("king", "he"), ("painter", "she"), ("horse", "it"), ("soldier", "he"), ("witch", "she"),
    ("crow", "it"), ("boy", "he"), ("girl", "she"), ("giant", "he"), ("mouse", "it"), ("singer", "she"),
    ("doctor", "she"), ("hunter", "he"), ("bear", "it"), ("poet", "he"), ("judge", "she"), ("clown", "he"),
)  # fmt: skip
ADJECTIVES = (
    "old", "tired", "brave", "clever", "lonely", "hungry", "happy", "quiet", "proud", "lazy", "young", "kind",
    "angry", "rich", "poor", "shy", "lucky", "strange", "careful", "gentle",
)  # fmt: skip
OBJECTS = (
    "key", "letter", "lamp", "map", "ring", "book", "coin", "mirror", "drum", "rope", "sword", "apple", "clock",
    "basket", "candle", "bell", "feather", "hammer", "hat", "kite", "mask", "pearl", "shoe", "spoon", "stone",
    "blanket", "bottle", "crown", "needle", "violin",
)  # fmt: skip
QUALITIES = (
    "silver", "broken", "wooden", "golden", "tiny", "heavy", "magic", "rusty", "red", "blue", "secret", "shiny",
    "ancient", "soft", "green",
)  # fmt: skip
PLACES = (
    "river", "forest", "castle", "market", "bridge", "garden", "tower", "harbour", "mountain", "village", "school",
    "island", "desert", "station", "mill", "church", "valley", "cave", "beach", "library", "palace", "well", "field",
    "lake", "temple",
)  # fmt: skip
FINDING = ("found", "lost", "saw", "hid", "bought", "dropped", "carried", "made", "left", "dug up")
PREPOSITIONS = ("near the", "behind the", "by the", "on the way to the", "far from the")
ENDINGS = (
    "Then {pronoun} gave it to {other}, and both of them laughed.",
    "That night {other} came and took it away.",
    "In the end {pronoun} sold it to {other} for a song.",
    "{other} saw it and wanted it too, so they shared it.",
    "Only {other} knew what it was for.",
    "Years later {pronoun} showed it to {other}.",
)


def story_prompt(words: Sequence[str]) -> str:
    """The prompt that asks for a story with these words; the story follows after a blank."""
    return f"Words: {', '.join(words)}\nStory:"


@cache
def _stories() -> tuple[Sample, ...]:
    chance = Chance(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        invented = story(chance)
        words = chance.some_of(invented.words, N_WORDS)
        prompt = story_prompt(words)
        told = invented.outline if chance.happens(OUTLINE_SHARE) else invented.text
        meta = {"words": words, "demonstration": told}
        samples.setdefault(prompt, Sample(", ".join(words), prompt, (invented.text,), meta))
    return tuple(samples.values())


class Story(NamedTuple):
    """A story's text, its outline, which says less, and the words that one may ask for."""

    text: str
    outline: str
    words: list[str]


def story(chance: Chance) -> Story:
    """A random story."""
    one = chance.one_of
    first, second = chance.rng.choice(len(HEROES), 2, replace=False)
    (hero, pronoun), (other, _) = HEROES[first], HEROES[second]
    adjective, quality, thing, place = one(ADJECTIVES), one(QUALITIES), one(OBJECTS), one(PLACES)
    finding, ending, preposition = one(FINDING), one(ENDINGS), one(PREPOSITIONS)
    opening = f"{_with_article(f'{adjective} {hero}')} {finding} {_with_article(f'{quality} {thing}')}"
    text = f"{capitalised(opening)} {preposition} {place}."
    text += " " + capitalised(ending.format(pronoun=pronoun, other=_with_article(other)))
    outline = f"{capitalised(_with_article(hero))} {finding} {_with_article(thing)} {preposition} {place}."
    return Story(text, outline, [hero, other, adjective, quality, thing, place])


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _instructions(row: Row) -> Iterator[Row]:
    """The instances of an instruction; the words that must occur are its longest ones."""
    words = sorted(set(re.findall(r"[A-Za-z]{4,}", row["instruction"].lower())), key=lambda word: (-len(word), word))
    for number, instance in enumerate(row["instances"]):
        parts = [row["instruction"].strip(), instance["input"].strip()]
        yield {
            "id": f"{row['id']}/{number}",
            "prompt": "\n".join(filter(None, parts)) + "\nReply:",
            "references": instance["output"],
            "words": words[:N_WORDS] or [row["instruction"].split()[0]],
        }


@reward
def ended(episode: Episode) -> float:
    """1 for a reply that ended of itself, 0 for one that ran out of its budget."""
    return float(episode.stop_reason not in ("length", "context"))


COVERAGE = Contains(meta="words", name="coverage")
METRICS = {
    "coverage": COVERAGE,
    "all_words": gate(COVERAGE, reward(lambda: 1.0), threshold=1.0),
    "distinct_2": DistinctN(2),
    "ended": ended,
    "length": LENGTH,
}


class CreativeWriting(BuiltinTask):
    """A very short story with some given words.

    Most of the built-in demonstrations are mere outlines of a story, in which some of the words may be missing.

    The default reward is a product, so that no part of it can be traded away: the share of the words that occur, the
    fluency (the mean probability of a token under a small language model of such stories) and the share of distinct
    pairs of words; and 0 for a text that does not end within its budget. For data of one's own, of which that model has
    never seen the like, the fluency is left out: with a model that has, say ``reward=gate(ended, Contains(meta="words",
    name="coverage") * Fluency(...) * DistinctN(2))``.

    Args:
        data: Prompts of one's own, see :class:`~textgym.data.BuiltinTask`; ``meta["words"]`` of each is a list of
            words that must occur.
        columns: Which column is which, or the name of a layout.
    """

    stop = ("\n",)
    max_new_tokens = 56
    recipe = MappingProxyType({**COMMON, "total_timesteps": 80_000})
    headline_metrics = ("coverage", "all_words", "distinct_2", "ended")
    layouts = MappingProxyType({"self_instruct": Layout("yizhongw/self_instruct", rows=_instructions)})

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """Three words of a story, and the story."""
        return _stories()

    @cached_property
    def reward(self) -> Reward:  # type: ignore[override]  # made when it is asked for: it holds a model
        """Coverage x fluency x distinctness of a text that ends."""
        if not self.has_own_samples:
            return gate(ended, COVERAGE * DistinctN(2))
        fluency = Fluency(
            STORY_MODEL, load_tokenizer(None), given_prompt=False, activation="probability", truncate=True
        )
        return gate(ended, COVERAGE * fluency * DistinctN(2))

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Shares of the given words, of replies with all of them, of distinct pairs of words, of replies that end.

        And the mean ``length`` in words.
        """
        return mean_scores(episodes, METRICS)
