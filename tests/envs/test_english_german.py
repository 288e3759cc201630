import re

import pytest

from textgym.envs.english_german import (
    CAN,
    MUST,
    NAMES,
    PRONOUNS,
    WANT,
    Being,
    Clause,
    ClauseMaker,
    Doing,
    NounPhrase,
    Style,
    nouns,
    phrases_of,
    verbs,
)

KINDS = ("person", "animal", "food", "drink", "reading", "thing", "fixture", "time", "frequency", "place")
NOUN = {noun.singular: noun for noun in nouns()}
VERB = {verb.base: verb for verb in verbs()}
PHRASE = {phrase.english: phrase for phrase in phrases_of(frozenset(KINDS))}
WHO = {phrase.noun.singular: phrase for phrase in PRONOUNS + NAMES}


def a(noun, adjective=None, determiner="a", plural=False):
    return NounPhrase(NOUN[noun], determiner, PHRASE.get(adjective), "plural" if plural else "third")


def the(noun, adjective=None, **kwargs):
    return a(noun, adjective, "the", **kwargs)


def my(noun, adjective=None, **kwargs):
    return a(noun, adjective, "my", **kwargs)


def do(subject, verb, object=None, modal=None, **kwargs):
    kwargs = {name: PHRASE.get(value, value) if name != "kind" else value for name, value in kwargs.items()}
    return Clause(subject, Doing(VERB[verb], modal), object, **kwargs)


CLAUSES = [
    (
        do(the("king", "old"), "see", a("dog", "small"), time="today", time_first=True),
        "Today the old king sees a small dog.",
        "Heute sieht der alte König einen kleinen Hund.",
        "Heute der alte König sieht ein kleine Hund.",
    ),
    (
        do(my("queen"), "invite", the("student", plural=True), time="on Monday"),
        "My queen invites the students on Monday.",
        "Meine Königin lädt am Montag die Studenten ein.",
        "Mein Königin lädt ein die Studenten am Montag.",
    ),
    (
        do(WHO["I"], "invite", the("neighbour")),
        "I invite the neighbour.",
        "Ich lade den Nachbarn ein.",
        "Ich lade ein der Nachbar.",
    ),
    (
        do(the("girl"), "read", a("book", "new"), modal=WANT, place="in the kitchen"),
        "The girl wants to read a new book in the kitchen.",
        "Das Mädchen will ein neues Buch in der Küche lesen.",
        "Der Mädchen will lesen ein neue Buch in der Küche.",
    ),
    (
        do(WHO["we"], "buy", a("orange"), kind="negation"),
        "We do not buy an orange.",
        "Wir kaufen keine Orange.",
        "Wir kaufen nicht ein Orange.",
    ),
    (
        do(WHO["Paul"], "find", a("shoe", "black", plural=True), kind="negation"),
        "Paul does not find black shoes.",
        "Paul findet keine schwarzen Schuhe.",
        "Paul findet nicht schwarze Schuhe.",
    ),
    (
        do(a("child", "happy"), "close", my("window"), modal=CAN, kind="negation", time="now"),
        "A happy child cannot close my window now.",
        "Ein glückliches Kind kann jetzt mein Fenster nicht schließen.",
        "Ein glückliche Kind kann nicht schließen mein Fenster jetzt.",
    ),
    (
        do(the("cow", plural=True), "sleep", kind="question", place="in the garden", time="in the evening"),
        "Do the cows sleep in the garden in the evening?",
        "Schlafen die Kühe am Abend im Garten?",
        "Schlafen die Kühe im Garten am Abend?",
    ),
    (
        do(WHO["she"], "look for", the("key"), modal=WANT, kind="question"),
        "Does she want to look for the key?",
        "Will sie den Schlüssel suchen?",
        "Will sie suchen der Schlüssel?",
    ),
    (
        do(WHO["they"], "work", modal=MUST, place="at home"),
        "They must work at home.",
        "Sie müssen zu Hause arbeiten.",
        "Sie müssen arbeiten zu Hause.",
    ),
    (
        do(the("bird"), "drink", the("milk", "fresh"), frequency="often"),
        "The bird often drinks the fresh milk.",
        "Der Vogel trinkt oft die frische Milch.",
        "Der Vogel oft trinkt der frische Milch.",
    ),
    (
        Clause(WHO["I"], Being(PHRASE["sad"]), kind="negation"),
        "I am not sad.",
        "Ich bin nicht traurig.",
        "Ich bin nicht traurig.",
    ),
    (
        Clause(the("house"), Being(PHRASE["old"]), kind="question"),
        "Is the house old?",
        "Ist das Haus alt?",
        "Ist der Haus alt?",
    ),
]


@pytest.mark.parametrize(("clause", "english", "german", "learner"), CLAUSES, ids=[case[1] for case in CLAUSES])
def test_sentences(clause, english, german, learner):
    assert clause.english() == english
    assert clause.german(Style()) == german
    assert clause.german(Style(learner=True)) == learner


def test_synonyms_keep_their_gender_and_their_form():
    clause = do(the("doctor"), "open", a("car", "beautiful"))
    assert clause.german(Style(0)) == "Der Arzt öffnet ein schönes Auto."
    assert clause.german(Style(1)) == "Der Doktor macht einen schönen Wagen auf."
    assert clause.german(Style(7)) == clause.german(Style(1))


DETERMINERS = {
    "m": {"der", "ein", "mein", "den", "einen", "meinen", "keinen"},
    "f": {"die", "eine", "meine", "keine"},
    "n": {"das", "ein", "mein", "kein"},
    "plural": {"die", "meine", "keine"},
}
ALL_DETERMINERS = set().union(*DETERMINERS.values())


def determiners_by_form():
    """Which determiners may stand before each form of each German noun."""
    allowed = {}
    for noun in nouns():
        for german in noun.german:
            for form in (german.nominative, german.accusative):
                allowed.setdefault(form, set()).update(DETERMINERS[german.gender])
            if german.plural:
                allowed.setdefault(german.plural, set()).update(DETERMINERS["plural"])
    return allowed


def test_determiners_agree_with_their_nouns():
    allowed, maker, seen = determiners_by_form(), ClauseMaker((1,)), 0
    for _ in range(2000):
        clause = maker.clause()
        for style in (Style(0), Style(1)):
            text = clause.german(style)
            for determiner, _, noun in re.findall(r"(?i)\b([dekm]\w+) ([a-zäöüß]+ )?((?-i:[A-ZÄÖÜ])\w+)", text):
                if determiner.lower() in ALL_DETERMINERS and noun in allowed:
                    assert determiner.lower() in allowed[noun], text
                    seen += 1
    assert seen > 4000


def test_the_finite_verb_comes_second_or_first_in_questions():
    maker = ClauseMaker((2,))
    for _ in range(1000):
        clause = maker.clause()
        finite = clause.predicate.german(clause.subject.person, Style())[0]
        subject = clause.subject.german(Style())
        german = clause.german(Style()).rstrip(".?")
        first = clause.time.german[0] if clause.time_first else subject
        start = f"{finite} {subject}" if clause.kind == "question" else f"{first} {finite}"
        assert german.lower().startswith(start.lower()), german


def test_every_word_of_the_lexicon_is_used():
    maker = ClauseMaker((3,))
    text = " ".join(clause.english() for clause in (maker.clause() for _ in range(5000)))
    words = {*NOUN, *(noun.plural for noun in nouns()), *VERB, *(verb.third for verb in verbs()), *PHRASE, *WHO}
    assert {word for word in words if not re.search(rf"(?i)\b{word}\b", text)} == set()


def test_the_lexicon_is_complete():
    assert len(nouns()) + len(verbs()) + len(PHRASE) > 140
    for noun in nouns():
        assert phrases_of(noun.kinds), noun
        for german in noun.german:
            assert german.gender in ("m", "f", "n"), german
            assert bool(german.plural) == bool(noun.plural), german
    for verb in verbs():
        assert verb.subjects <= set(KINDS), verb
        for german in verb.german:
            assert german.infinitive.startswith(german.particle), german
            assert german.infinitive.endswith("en"), german
