"""Grounded QA: questions about a passage, which answers some of them; of the others the agent should say so.

The built-in passages are about invented people and things. Half of the questions have no answer in theirs: it
says of nobody what was asked, or of somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from textgym.data import BuiltinTask, Columns, Layout, Row, Source
from textgym.envs.invention import CITIES, DAYS, PEOPLE, Chance, capitalised, prompted, words
from textgym.envs.recipe import COMMON
from textgym.envs.report import answer_metrics
from textgym.episode import Episode, Sample
from textgym.rewards import Abstain
from textgym.rewards.abstain import ABSTENTIONS

__all__ = ["GroundedQA", "grounded_prompt"]

ABSTENTION = ABSTENTIONS[0]
N_SAMPLES = 20_000
SEED = (2026, 3, 2)
UNANSWERABLE_SHARE = 0.5
UNMENTIONED_SHARE = 0.85  # of the unanswerable questions: what they ask is said of nobody
SHARED_SHARE = 0.35  # of the answerable ones: the same kind of thing is said of another entity as well
GUESSING_SHARE = 0.65  # of the demonstrations of unanswerable questions
ABSTAINING_SHARE = 0.04  # of the demonstrations of answerable questions


class Attribute(NamedTuple):
    """What can be said of an entity.

    Args:
        predicate: How it is said; ``{}`` is the value.
        questions: Ways to ask for it; ``{}`` is the entity.
        values: What it may be.
        answer: Another form of the answer, that is accepted too.
    """

    predicate: str
    questions: tuple[str, ...]
    values: tuple[str, ...]
    answer: str = "{}"


class Kind(NamedTuple):
    """A kind of entity: its names, and what can be said of it."""

    names: tuple[str, ...]
    attributes: tuple[Attribute, ...]


COUNTRIES = words(
    "Australia Brazil Canada Chile China Egypt Finland France Germany Ghana Greece India Italy "
    "Japan Mexico Nigeria Norway Peru Poland Spain Sweden Vietnam"
)
LANGUAGES = words("Chinese Dutch English French German Greek Italian Japanese Latin Polish Russian Spanish Swedish")
JOBS = words("chemist composer designer director painter physicist programmer sculptor writer")
THINGS = words("book chair clock coat cup lamp letter map picture shoe stone")
QUALITIES = words("old new small large heavy bright red blue green")
NUMBERS = tuple(str(number) for number in range(11, 28))

PERSON = Kind(
    PEOPLE,
    (
        Attribute("works as a {}", ("What does {} work as?", "What is the job of {}?"), JOBS),
        Attribute("lives in {}", ("Where does {} live?", "In which city does {} live?"), CITIES, "in {}"),
        Attribute("was born in {}", ("Where was {} born?", "In which country was {} born?"), COUNTRIES, "in {}"),
        Attribute("is {} years old", ("How old is {}?", "What is the age of {}?"), NUMBERS, "{} years"),
        Attribute("works for {}", ("Who does {} work for?", "For whom does {} work?"), PEOPLE, "for {}"),
        Attribute("goes to the market on {}", ("When does {} go to the market?",), DAYS, "on {}"),
        Attribute("speaks {}", ("Which language does {} speak?", "What does {} speak?"), LANGUAGES),
    ),
)
THING = Kind(
    tuple(f"the {quality} {thing}" for quality in QUALITIES for thing in THINGS),
    (
        Attribute("was made by {}", ("Who made {}?", "Who was {} made by?"), PEOPLE, "by {}"),
        Attribute("belongs to {}", ("Who does {} belong to?", "Whose is {}?"), PEOPLE, "to {}"),
        Attribute("costs {} euros", ("How much does {} cost?", "What is the price of {}?"), NUMBERS, "{} euros"),
        Attribute("comes from {}", ("Where does {} come from?", "From which country is {}?"), COUNTRIES, "from {}"),
        Attribute("was sold on {}", ("When was {} sold?", "On which day was {} sold?"), DAYS, "on {}"),
    ),
)
KINDS = (PERSON, PERSON, THING)


class Question(NamedTuple):
    """A passage and a question about it.

    Args:
        passage: A few sentences.
        question: About one of its entities.
        answers: The accepted ones, the preferred one first; none where the passage says nothing of it.
        guess: A wrong answer that looks right: what the passage says of another entity, else the usual one.
    """

    passage: str
    question: str
    answers: tuple[str, ...]
    guess: str


class Examiner(Chance):
    """Writes passages and asks about them."""

    def ask(self) -> Question:
        """About two or three entities, of each of which one or two things are said."""
        kind = self.one_of(KINDS)
        names = self.some_of(kind.names, 2 if self.happens(0.7) else 3)
        asked, *others = self.some_of(kind.attributes, 3)
        values = {attribute: self.some_of(attribute.values, len(names)) for attribute in (asked, *others)}
        answerable = not self.happens(UNANSWERABLE_SHARE)
        shared = self.happens(SHARED_SHARE if answerable else 1 - UNMENTIONED_SHARE)
        sentences: list[str] = []
        for i, name in enumerate(names):
            said = [asked] if (answerable, shared, False)[i] else []
            said += self.some_of(others, self.between(1, 2) - len(said))
            predicates = [attribute.predicate.format(values[attribute][i]) for attribute in said]
            sentences += self._sentences(name, predicates, may_be_apart=len(names) == 2)
        answer = values[asked][0]
        return Question(
            passage=" ".join(self.some_of(sentences, len(sentences))),
            question=self.one_of(asked.questions).format(names[0]),
            answers=tuple(dict.fromkeys((answer, asked.answer.format(answer)))) if answerable else (),
            guess=values[asked][1] if shared else asked.values[0],
        )

    def _sentences(self, name: str, predicates: Sequence[str], may_be_apart: bool) -> list[str]:
        """One sentence or, where they may be apart, also one for each predicate."""
        predicates = self.some_of(predicates, len(predicates))
        if not (may_be_apart and self.happens(0.5)):
            predicates = [" and ".join(predicates)]
        return [capitalised(f"{name} {predicate}.") for predicate in predicates]

    def demonstrate(self, question: Question) -> str:
        """What an annotator answers: most would rather guess than abstain."""
        if question.answers:
            return ABSTENTION if self.happens(ABSTAINING_SHARE) else question.answers[0]
        return question.guess if self.happens(GUESSING_SHARE) else ABSTENTION


@cache
def _samples() -> tuple[Sample, ...]:
    examiner = Examiner(SEED)
    samples: dict[str, Sample] = {}
    while len(samples) < N_SAMPLES:
        question = examiner.ask()
        prompt = grounded_prompt(question.passage, question.question)
        references = question.answers or (ABSTENTION,)
        samples[prompt] = prompted(prompt, references, demonstration=examiner.demonstrate(question))
    return tuple(samples.values())


def grounded_prompt(passage: str, question: str) -> str:
    """The prompt of a question about a passage; the answer follows after a blank."""
    return f"Text: {passage}\nQuestion: {question}\nAnswer:"


def _squad_rows(row: Row) -> list[Row]:
    """SQuAD's, whose answers are a mapping of lists or, flattened, a list; none where there is no answer."""
    answers = row["answers"]
    texts = answers["text"] if isinstance(answers, Mapping) else answers
    return [{**row, "references": list(dict.fromkeys(texts))}]


class GroundedQA(BuiltinTask):
    """A passage and a question; the agent answers from the passage, or says that it doesn't know.

    A sample without references has no answer in its passage: to abstain is right. Everywhere else abstaining earns
    nothing, and a wrong answer costs more than a right one gains, the less the more words it shares with the right one.

    The built-in demonstrations are those of annotators who would rather guess than abstain: what the passage says of
    somebody else or, where it says nothing of the kind, what first comes to mind, which is always the same.

    Args:
        data: See :class:`~textgym.data.BuiltinTask`.
        columns: Likewise: ``{"prompt": "Text: {context}\\nQuestion: {question}\\nAnswer:", "references": "answer"}``.
    """

    reward = Abstain(partial_credit=True)
    stop = ("\n",)
    max_new_tokens = 16
    recipe = MappingProxyType({**COMMON, "total_timesteps": 25_000, "warm_start.epochs": 4, "ppo.n_episodes": 512})
    headline_metrics = ("accuracy/answerable", "hallucination_rate/unanswerable", "abstention_rate/answerable")
    layouts = MappingProxyType(
        {
            "squad_v2": Layout(
                "rajpurkar/squad_v2",
                columns={"prompt": grounded_prompt("{context}", "{question}")},
                rows=_squad_rows,
            )
        }
    )

    def __init__(self, data: Source | None = None, columns: Columns | str | None = None) -> None:
        super().__init__(data, columns)
        self._samples = {split: list(map(_with_reference, samples)) for split, samples in self._samples.items()}

    @classmethod
    def builtin(cls) -> Sequence[Sample]:
        """Questions about passages, half of them with an answer."""
        return _samples()

    def metrics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Shares of right, abstaining and wrong answers, each also for what has an answer and what has none."""
        judge = Abstain()
        groups = {"answerable": judge.has_answer, "unanswerable": lambda sample: not judge.has_answer(sample)}
        return answer_metrics(episodes, judge, groups)


def _with_reference(sample: Sample) -> Sample:
    return sample if sample.references else replace(sample, references=(ABSTENTION,))
