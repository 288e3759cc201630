"""The text that the built-in model is trained on: facts, invented entities, and simple English, all made here."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from textgym.envs.invention import CITIES, DAYS, PEOPLE, TOWNS
from textgym.envs.knowledge_qa import Fact, Relation, question_prompt
from textgym.envs.word_problems import OPERATIONS

_WORD = re.compile(r"\w+", re.UNICODE)


class NameMaker:
    """Makes names that look like given ones: real skeletons, whose words are swapped or spelt anew.

    Args:
        names: The names to imitate.
        forbidden: Names never to make, beside the given ones.
    """

    order = 3

    def __init__(self, names: Sequence[str], forbidden: Iterable[str] = ()) -> None:
        self.names = list(names)
        self.forbidden = {name.casefold() for name in [*names, *forbidden]}
        counts = Counter(word for name in self.names for word in set(_WORD.findall(name)))
        common = max(3, len(self.names) // 60)
        self.kept = {word for word, count in counts.items() if count >= common and not word.isdigit()}
        self.words: dict[str, list[str]] = defaultdict(list)
        self.letters: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            for word in _WORD.findall(name):
                self.words[_shape(word)].append(word)
                self._learn(word)

    def _learn(self, word: str) -> None:
        padded = "^" * self.order + word + "$"
        for i in range(self.order, len(padded)):
            self.letters[padded[i - self.order : i]].append(padded[i])

    def make(self, rng: random.Random) -> str | None:
        """A new name, or None if none was found in a few hundred tries."""
        for _ in range(300):
            skeleton = rng.choice(self.names)
            single = len(_WORD.findall(skeleton)) == 1
            name = _WORD.sub(lambda match, single=single: self._word(match.group(), single, rng), skeleton)
            if name.casefold() not in self.forbidden and "$" not in name:
                self.forbidden.add(name.casefold())
                return name
        return None

    def _word(self, word: str, single: bool, rng: random.Random) -> str:
        if word.isdigit():
            return "".join(rng.choice("123456789" if i == 0 else "0123456789") for i in range(len(word)))
        if word.isupper() and len(word) <= 4:
            return "".join(
                rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") if c.isalpha() else rng.choice("0123456789") for c in word
            )
        if not single and (word in self.kept or len(word) <= 3):
            return word
        if not single and rng.random() < 0.6:
            return rng.choice(self.words[_shape(word)])
        return self._spelt(word, rng)

    def _spelt(self, like: str, rng: random.Random) -> str:
        for _ in range(30):
            state, word = "^" * self.order, ""
            while len(word) <= len(like) + 4:
                letter = rng.choice(self.letters[state])
                if letter == "$":
                    break
                word, state = word + letter, state[1:] + letter
            if abs(len(word) - len(like)) <= 3 and _shape(word) == _shape(like) and len(word) >= 2:
                return word
        return rng.choice(self.words[_shape(like)])


def _shape(word: str) -> str:
    if word.isdigit():
        return "digits"
    if word.isupper() and len(word) > 1:
        return "capitals"
    return "Title" if word[:1].isupper() else "lower"


class FactMaker:
    """Makes invented facts of the real ones' relations.

    Subjects imitate all real subjects, known or not, so that no word tells them apart; values are drawn from the known
    facts, and for relations with almost as many values as facts half of them are spelt anew.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.relations = sorted({fact.relation for fact in facts})
        by_relation = {r: [fact for fact in facts if fact.relation == r] for r in self.relations}
        self.counts = {r: len(by_relation[r]) for r in self.relations}
        self.subjects = {r: NameMaker([f.subject for f in by_relation[r]]) for r in self.relations}
        self.values = {r: [f.values[0] for f in by_relation[r] if f.known] for r in self.relations}
        self.new_values = {
            r: NameMaker([f.values[0] for f in by_relation[r]])
            for r in self.relations
            if len(set(self.values[r])) > 0.6 * len(self.values[r])
            and not any(c.isdigit() for c in "".join(self.values[r][:9]))
        }

    def make(self, relation: str, rng: random.Random) -> Fact | None:
        """A new invented fact of the relation, None if its names are used up."""
        subject = self.subjects[relation].make(rng)
        if subject is None:
            return None
        value = rng.choice(self.values[relation])
        if relation in self.new_values and rng.random() < 0.5:
            value = self.new_values[relation].make(rng) or value
        return Fact(relation, subject, (value,))

    def make_many(self, count: int, rng: random.Random) -> list[Fact]:
        """About ``count`` facts, as many of a relation, in proportion, as there are real ones."""
        total = sum(self.counts.values())
        made = [self.make(r, rng) for r in self.relations for _ in range(round(count * self.counts[r] / total))]
        return [fact for fact in made if fact is not None]


def fact_texts(fact: Fact, relations: dict[str, Relation]) -> list[str]:
    """Every form of a fact: its questions with the answer, and its statement."""
    relation = relations[fact.relation]
    questions = [f"{question_prompt(q.format(fact.subject))} {fact.values[0]}" for q in relation.questions]
    return [*questions, relation.statement.format(subject=fact.subject, value=fact.values[0])]


NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
]
THINGS = [
    "apple",
    "book",
    "chair",
    "clock",
    "coat",
    "cup",
    "door",
    "garden",
    "house",
    "lamp",
    "letter",
    "map",
    "picture",
    "river",
    "shoe",
    "stone",
    "table",
    "train",
    "tree",
    "window",
]
PLACES = [
    "the market",
    "the school",
    "the station",
    "the library",
    "the beach",
    "the park",
    "the kitchen",
    "the office",
    "the museum",
    "the farm",
]
GOOD = [
    "wonderful",
    "charming",
    "brilliant",
    "funny",
    "moving",
    "delightful",
    "clever",
    "beautiful",
    "warm",
    "gripping",
]
BAD = ["boring", "dull", "awful", "clumsy", "tiresome", "silly", "weak", "ugly", "cold", "empty"]
WORKS = ["film", "book", "play", "song", "story", "concert", "show", "novel"]
ADJECTIVES = ["old", "new", "red", "blue", "small", "large", "green", "heavy", "bright", "quiet"]
VERBS = [("went to", "go to"), ("walked to", "walk to"), ("drove to", "drive to"), ("ran to", "run to")]


def story(rng: random.Random) -> str:
    """Two or three sentences."""
    name, friend = rng.sample(NAMES, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    went, go = rng.choice(VERBS)
    adjective = rng.choice(ADJECTIVES)
    return rng.choice(
        [
            f"On {rng.choice(DAYS)} {name} {went} {place}. There {name} saw {friend}, who had a {adjective} {thing}.",
            f"{name} wanted to {go} {place}, but first the {adjective} {thing} had to be found. {friend} helped.",
            f"The {thing} was {adjective}. {name} gave it to {friend}, and {friend} was happy.",
            f"{name} and {friend} {went} {place}. They bought a {adjective} {thing} and took it home.",
        ]
    )


def arithmetic(rng: random.Random) -> str:
    """A sum, a difference or a product, as question and answer."""
    a, b = rng.randrange(21), rng.randrange(21)
    kind = rng.randrange(3)
    if kind == 0:
        question, answer = f"What is {a} + {b}?", a + b
    elif kind == 1:
        question, answer = f"What is {a + b} - {b}?", a
    else:
        a, b = a % 11, b % 11
        question, answer = f"What is {a} * {b}?", a * b
    return f"{question_prompt(question)} {answer}"


def word_problem(rng: random.Random) -> str:
    """A sum in a story."""
    name, friend = rng.sample(NAMES, 2)
    thing, a, b = rng.choice(THINGS), rng.randrange(1, 15), rng.randrange(1, 15)
    question = f"{name} has {a} {thing}s and gets {b} more from {friend}. How many {thing}s does {name} have now?"
    return f"{question_prompt(question)} {a + b}"


def sentiment(rng: random.Random) -> str:
    """A short review and what it thinks."""
    positive = rng.random() < 0.5
    words = rng.sample(GOOD if positive else BAD, 2)
    work = rng.choice(WORKS)
    review = rng.choice(
        [
            f"The {work} was {words[0]} and {words[1]}.",
            f"A {words[0]} {work}.",
            f"What a {words[0]}, {words[1]} {work}!",
        ]
    )
    return f"Review: {review}\nSentiment: {'positive' if positive else 'negative'}"


def dialogue(rng: random.Random) -> str:
    """A few lines between a user and an assistant."""
    name, thing, place, day = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    lines = rng.choice(
        [
            [
                f"Hello, I am {name}.",
                f"Hello {name}, how can I help you?",
                f"Where is the {thing}?",
                f"The {thing} is in {place}.",
            ],
            [
                f"Can you help me to find {place}?",
                "Yes, of course. Go straight on and turn left.",
                "Thank you!",
                "You are welcome.",
            ],
            [
                f"I want to buy a {thing}.",
                f"Which {thing} would you like?",
                f"The {rng.choice(ADJECTIVES)} one.",
                "Here you are.",
            ],
            [
                f"When does {place[4:]} open?",
                f"It opens on {day} at {rng.randrange(7, 12)}.",
                "Thanks.",
                "You are welcome.",
            ],
        ]
    )
    return "\n".join(f"{('user', 'assistant')[i % 2]}: {line}" for i, line in enumerate(lines))


def summary(rng: random.Random) -> str:
    """A text and the sentence that sums it up."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    adjective, day = rng.choice(ADJECTIVES), rng.choice(DAYS)
    filler = rng.choice(["The weather was fine.", "It was late.", "Nobody else was there.", "It took an hour."])
    text = f"On {day} {name} went to {place}. {filler} {name} found a {adjective} {thing} there and brought it home."
    return f"Text: {text}\nSummary: {name} found a {adjective} {thing} in {place}."


_GERMAN = dict(
    zip(
        THINGS,
        [
            "Apfel",
            "Buch",
            "Stuhl",
            "Uhr",
            "Mantel",
            "Tasse",
            "Tür",
            "Garten",
            "Haus",
            "Lampe",
            "Brief",
            "Karte",
            "Bild",
            "Fluss",
            "Schuh",
            "Stein",
            "Tisch",
            "Zug",
            "Baum",
            "Fenster",
        ],
        strict=True,
    )
)


def translation(rng: random.Random) -> str:
    """A word or a short phrase in English and German."""
    thing, name = rng.choice(THINGS), rng.choice(NAMES)
    english, german = rng.choice(
        [
            (f"{thing}", _GERMAN[thing]),
            (f"{name} is here.", f"{name} ist hier."),
            (f"Thank you, {name}.", f"Danke, {name}."),
        ]
    )
    return f"English: {english}\nGerman: {german}"


def opinion(rng: random.Random) -> str:
    """Someone who does not know, so that the words are there."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    return rng.choice(
        [
            f'"Where is the {thing}?" asked {name}. "I don\'t know," said {rng.choice(NAMES)}.',
            f"user: Did {name} go to {place}?\nassistant: I don't know.",
            f'"I know {place}," said {name}, "but I don\'t know where the {thing} is."',
        ]
    )


class Statement(NamedTuple):
    """Something that can be said of people: how, the question that asks for it, and what it may be."""

    predicate: str
    question: str
    values: Sequence[str]


STATEMENTS = (
    Statement(
        "has a {}", "What does {} have?", [f"{adjective} {thing}" for adjective in ADJECTIVES for thing in THINGS]
    ),
    Statement("is {} years old", "How old is {}?", [str(age) for age in range(1, 100)]),
    Statement("was born in {}", "In which year was {} born?", [str(year) for year in range(1900, 2021)]),
    Statement("lives in {}", "Where does {} live?", [*TOWNS, *CITIES]),
    Statement("comes from {}", "Where does {} come from?", CITIES),
    Statement("travels to {}", "Where does {} travel?", [*CITIES, *PLACES]),
    Statement("met {}", "Who did {} meet?", PEOPLE),
    Statement("needs a table for {}", "For how many is the table of {}?", [str(number) for number in range(2, 13)]),
    Statement("gets up at {}", "When does {} get up?", [str(hour) for hour in range(1, 13)]),
    Statement("is away on {}", "On which day is {} away?", DAYS),
)


class Said(NamedTuple):
    """A sentence about somebody, and what it answers."""

    sentence: str
    question: str
    answer: str


def said_of_people(rng: random.Random) -> list[Said]:
    """The same two things of each of a few people, in any order."""
    said = []
    people = rng.sample(PEOPLE, rng.randrange(2, 5))
    for statement in rng.sample(STATEMENTS, 2):
        for name, value in zip(people, rng.sample(statement.values, len(people)), strict=True):
            sentence = f"{name} {statement.predicate.format(value)}."
            said.append(Said(sentence, statement.question.format(name), value))
    return rng.sample(said, rng.randrange(2, len(said) + 1))


def recollection(rng: random.Random) -> str:
    """What is said of a few people, and all of it once more in another order."""
    said = said_of_people(rng)
    return " ".join(one.sentence for one in [*said, *rng.sample(said, len(said))])


def reading(rng: random.Random) -> str:
    """What is said of a few people, and questions about it."""
    said = said_of_people(rng)
    questions = [f"{question_prompt(one.question)} {one.answer}" for one in rng.sample(said, len(said))]
    return "\n".join(["Text: " + " ".join(one.sentence for one in said), *questions])


def calculation(rng: random.Random) -> str:
    """A few sums, differences and products, each of which goes on with what the last one gave."""
    number, lines = rng.randrange(1, 21), []
    for _ in range(rng.randrange(3, 7)):
        operations = [("+", range(1, 21 - number)), ("-", range(1, number)), ("*", range(2, 20 // number + 1))]
        sign, operands = rng.choice([operation for operation in operations if operation[1]])
        operand = rng.choice(operands)
        result = OPERATIONS[sign](number, operand)
        lines.append(f"{number} {sign} {operand} = {result}")
        number = result
    return ", ".join(lines)


EXERCISES = (recollection, recollection, reading, reading, calculation)


def exercise_text(rng: random.Random) -> str:
    """A text that can be foretold from its own beginning: looked up in it, or calculated."""
    return rng.choice(EXERCISES)(rng)


GENERAL: tuple[Callable[[random.Random], str], ...] = (
    story,
    arithmetic,
    word_problem,
    sentiment,
    dialogue,
    summary,
    translation,
    opinion,
)


def general_text(rng: random.Random) -> str:
    """One of the above."""
    return rng.choice(GENERAL)(rng)
