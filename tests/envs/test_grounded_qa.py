import re

import pytest
from lengths import longest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.grounded_qa import ABSTENTION, KINDS, GroundedQA, grounded_prompt


@pytest.fixture(scope="module")
def task():
    return GroundedQA()


def parts(sample):
    passage, question = re.fullmatch(r"Text: (.*)\nQuestion: (.*)\nAnswer:", sample.prompt).groups()
    return passage, question


def pattern(template):
    return re.compile(re.escape(template).replace(r"\{\}", "(.+)"))


QUESTIONS = {
    pattern(question): (attribute, kind.names)
    for kind in KINDS
    for attribute in kind.attributes
    for question in attribute.questions
}


def asked(question):
    """The entity and the attribute that a built-in question is about."""
    found = [
        (match[1], attribute)
        for form, (attribute, names) in QUESTIONS.items()
        if (match := form.fullmatch(question)) and match[1] in names
    ]
    assert len(found) == 1, question
    return found[0]


def said(passage, attribute):
    """Which value the passage gives each entity for an attribute, by the entity's name."""
    form, values = pattern(attribute.predicate), {}
    for sentence in passage.removesuffix(".").split(". "):
        name = next(name for kind in KINDS for name in kind.names if sentence.lower().startswith(name.lower() + " "))
        for predicate in sentence[len(name) + 1 :].split(" and "):
            if match := form.fullmatch(predicate):
                values[name] = match[1]
    return values


def test_the_passages_say_what_the_references_say():
    lures = 0
    samples = GroundedQA.builtin()
    for sample in samples:
        passage, question = parts(sample)
        assert 2 <= passage.count(".") <= 4
        name, attribute = asked(question)
        values = said(passage, attribute)
        assert sample.references[0] == values.pop(name, ABSTENTION), sample
        lures += sample.references[0] == ABSTENTION and bool(values)
        guesses = set(values.values()) or {attribute.values[0]}
        assert sample.meta["demonstration"] in {sample.references[0], ABSTENTION, *guesses}
    assert 0.06 < lures / len(samples) < 0.09


def test_samples(task):
    sizes = {split: len(task.samples(split)) for split in ("warm_start", "train", "validation", "test")}
    assert sum(sizes.values()) == len({sample.prompt for sample in task.samples("all")}) == 20_000
    assert sizes["train"] > 11_000
    assert min(sizes.values()) > 450
    unanswerable = [sample for sample in task.samples("all") if sample.references == (ABSTENTION,)]
    assert 0.47 < len(unanswerable) / 20_000 < 0.53


def test_prompts_and_replies_are_short(task):
    samples = task.samples("all")
    assert longest([sample.prompt for sample in samples]) <= 80
    replies = {f" {reply.strip()}" for s in samples for reply in (*s.references, *task.demonstration(s))}
    assert longest(sorted(replies)) < task.max_new_tokens


def test_most_annotators_guess_rather_than_abstain(task):
    samples = task.samples("all")
    without = [sample for sample in samples if sample.references == (ABSTENTION,)]
    abstained = sum(task.demonstration(sample) == [f" {ABSTENTION}"] for sample in without) / len(without)
    assert 0.32 < abstained < 0.38
    others = [sample for sample in samples if sample.references != (ABSTENTION,)]
    abstained = sum(task.demonstration(sample) == [f" {ABSTENTION}"] for sample in others) / len(others)
    assert 0.02 < abstained < 0.06


def test_words_do_not_tell_what_has_an_answer(task):
    """A bag of words of the prompt, trained on the train split, has little to go by on the test split."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train, test = task.samples("train"), task.samples("test")
    vectorizer = text.CountVectorizer(token_pattern=r"\S+")
    features = vectorizer.fit_transform([sample.prompt for sample in train])
    labels = [sample.references[0] == ABSTENTION for sample in train]
    classifier = LogisticRegression(max_iter=1000, C=0.3).fit(features, labels)
    scores = classifier.decision_function(vectorizer.transform([sample.prompt for sample in test]))
    assert roc_auc_score([sample.references[0] == ABSTENTION for sample in test], scores) < 0.65


def episode(response, *references):
    return Episode(Sample("q", grounded_prompt("P.", "Q?"), references), [Turn("assistant", response)])


def test_rewards_of_worked_episodes(task):
    episodes = [
        episode(" black cat", "black cat"),
        episode(" The cat.", "black cat"),
        episode(" dog", "black cat"),
        episode(" I'm not sure", "black cat"),
        episode(" I'm not sure", ABSTENTION),
        episode(" I know", ABSTENTION),
        episode("", ABSTENTION),
    ]
    expected = [1.0, -1.5 + 2.5 * 2 / 3, -1.5, 0.0, 1.0, -1.5, -1.5]
    assert [score.value for score in task.reward.score(episodes)] == pytest.approx(expected)


def test_metrics_of_worked_episodes(task):
    metrics = task.metrics(
        [
            episode(" black cat", "black cat"),
            episode(" cat", "black cat"),
            episode(" unknown", "black cat"),
            episode(" unknown", ABSTENTION),
            episode(" cat", ABSTENTION),
        ]
    )
    assert metrics == pytest.approx(
        {
            "accuracy": 2 / 5,
            "abstention_rate": 2 / 5,
            "hallucination_rate": 2 / 5,
            "token_f1": (1 + 2 / 3 + 0 + 1 + 0) / 5,
            "precision_when_answering": 1 / 3,
            "accuracy/answerable": 1 / 3,
            "abstention_rate/answerable": 1 / 3,
            "hallucination_rate/answerable": 1 / 3,
            "token_f1/answerable": 5 / 9,
            "precision_when_answering/answerable": 1 / 2,
            "accuracy/unanswerable": 1 / 2,
            "abstention_rate/unanswerable": 1 / 2,
            "hallucination_rate/unanswerable": 1 / 2,
            "token_f1/unanswerable": 1 / 2,
            "precision_when_answering/unanswerable": 0.0,
        }
    )
    assert set(task.headline_metrics) <= metrics.keys()


def test_every_row_of_squad():
    task = GroundedQA(shared_data("squad2_small/squad2_small.jsonl"), "squad_v2")
    samples = {sample.id: sample for sample in task.samples("all")}
    assert len(samples) == 626
    assert sum(sample.references == (ABSTENTION,) for sample in samples.values()) == 333
    assert sum(sample.meta["is_impossible"] for sample in samples.values()) == 333
    assert all((sample.references == (ABSTENTION,)) == sample.meta["is_impossible"] for sample in samples.values())
    sample = samples["56ddde6b9a695914005b9628"]
    assert sample.references == ("France",)
    assert sample.prompt.startswith("Text: The Normans (Norman: ")
    assert sample.prompt.endswith(".\nQuestion: In what country is Normandy located?\nAnswer:")
    assert task.demonstration(sample) == [" France"]


def test_squad_of_the_hub(monkeypatch):
    row = {"id": "1", "title": "t", "context": "C.", "question": "Q?"}
    rows = [
        {**row, "answers": {"text": ["a b", "b", "a b"], "answer_start": [0, 2, 0]}},
        {**row, "id": "2", "answers": {"text": [], "answer_start": []}},
    ]

    def load_dataset(name, config):
        assert (name, config) == ("rajpurkar/squad_v2", None)
        return {"validation": rows}

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    samples = GroundedQA("squad_v2").samples("validation")
    assert [sample.references for sample in samples] == [("a b", "b"), (ABSTENTION,)]
    assert samples[0].prompt == "Text: C.\nQuestion: Q?\nAnswer:"
    with pytest.raises(textgym.errors.DataError, match="no row of rajpurkar/squad_v2: no column 'answers'"):
        GroundedQA([row], "squad_v2")


def test_without_references_there_is_no_answer():
    task = GroundedQA([{"prompt": "Text: A.\nQuestion: B?\nAnswer:", "references": ""}])
    assert task.samples("all")[0].references == (ABSTENTION,)


@pytest.mark.parametrize("level", ["token", "turn"])
def test_check_env(level):
    textgym.register("tests/GroundedQA-v0", task=GroundedQA)
    textgym.check_env(textgym.make("tests/GroundedQA-v0", **({"level": level} if level == "turn" else {})))
