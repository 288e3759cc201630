"""Translation: one sentence into another language.

The built-in sentences are English with correct German translations, see :mod:`textgym.envs.english_german`; its lexicon
of some 150 words gives far more of them than are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import MappingProxyType

from textgym.data import BuiltinTask, Layout, Row
from textgym.envs.english_german import ClauseMaker, Style
from textgym.envs.invention import prompted
from textgym.envs.recipe import COMMON
from textgym.envs.report import mean_scores
from textgym.episode import Episode, Sample
from textgym.rewards.lexical import Bleu, ChrF, ExactMatch

__all__ = ["Translation", "translation_prompt"]

N_SAMPLES = 10_000
SEED = (2026, 3, 1)
LEARNER_SHARE = 0.6  # of the demonstrations
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French"}


@cache
def _samples() -> tuple[Sample, ...]:
    maker = ClauseMaker(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        clause = maker.clause()
        prompt = translation_prompt(clause.english())
        references = dict.fromkeys(clause.german(Style(synonym)) for synonym in (0, 1))
        translator = Style(maker.between(0, 1), learner=maker.happens(LEARNER_SHARE))
        samples[prompt] = prompted(prompt, tuple(references), demonstration=clause.german(translator))
    return tuple(samples.values())


def translation_prompt(text: str, source: str = "English", target: str = "German") -> str:
    """The prompt for a text; the translation follows after a blank."""
    return f"{source}: {text}\n{target}:"


def _sentence_pairs(language: str, code: str) -> Layout:
    """Two columns; as a file, without a header."""
    columns = {"prompt": translation_prompt("{english}", target=language), "references": "non_english"}
    name = "sentence-transformers/parallel-sentences-tatoeba"
    return Layout(name, f"en-{code}", columns, header=("english", "non_english"))


def _translation_columns(dataset: str, language: str, code: str) -> Layout:
    """One column, "translation", that holds both texts by their languages' codes."""

    def rows(row: Row) -> list[Row]:
        texts = row["translation"]
        return [{"prompt": translation_prompt(texts["en"], target=language), "references": texts[code]}]

    return Layout(dataset, "-".join(sorted((code, "en"))), rows=rows)


LAYOUTS = {
    **{f"tatoeba-{code}": _sentence_pairs(language, code) for code, language in LANGUAGES.items()},
    **{
        f"opus_books-{code}": _translation_columns("Helsinki-NLP/opus_books", language, code)
        for code, language in LANGUAGES.items()
    },
    "wmt16-de": _translation_columns("wmt/wmt16", "German", "de"),
}
METRICS = {"chrf": ChrF(), "bleu": Bleu(), "exact_match": ExactMatch()}


class Translation(BuiltinTask):
    """One sentence to translate into another language.

    The built-in one is English to German. Its demonstrations are of mixed quality, as text from the web is: most of
    them are by a learner of German, see :class:`~textgym.envs.english_german.Style`; the references are right.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`.
        columns: Likewise; for other languages say ``{"prompt": "English: {en}\\nDutch:", "references": "nl"}``.
    """

    reward = ChrF()
    stop = ("\n",)
    max_new_tokens = 40
    recipe = MappingProxyType({**COMMON, "total_timesteps": 80_000, "warm_start.epochs": 8})
    headline_metrics = ("chrf", "exact_match")
    layouts = MappingProxyType(LAYOUTS)

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """Sentences of the grammar, most with one reference, some with a second one of synonyms."""
        return _samples()

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means of chrF, BLEU and exact match."""
        return mean_scores(episodes, METRICS)
