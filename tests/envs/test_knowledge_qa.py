import math
from collections import Counter
from statistics import fmean

import pytest

import textgym
from textgym import Episode, Sample, Turn
from textgym.agents import CausalLMPolicy
from textgym.agents.playing import play_policy
from textgym.envs.knowledge_qa import (
    ABSTENTION,
    KnowledgeQA,
    builtin_facts,
    builtin_relations,
)
from textgym.errors import DataError
from textgym.evaluation import summarise
from textgym.rewards.abstain import exact_match

SPLITS = ("warm_start", "train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return KnowledgeQA()


def test_there_are_thousands_of_valid_facts():
    facts, relations = builtin_facts(), builtin_relations()
    assert len(facts) >= 2000
    for fact in facts:
        assert fact.relation in relations, fact
        assert fact.subject == fact.subject.strip() != "", fact
        assert fact.values, fact
        assert all(value == value.strip() != "" for value in fact.values), fact
        assert "\n" not in fact.subject + "".join(fact.values), fact


def test_relations_name_subject_and_value():
    for relation in builtin_relations().values():
        assert len(set(relation.questions)) == 3
        assert all(question.count("{}") == 1 for question in relation.questions), relation
        assert "{subject}" in relation.statement, relation
        assert "{value}" in relation.statement, relation


def test_splits_are_disjoint_in_facts_and_in_questions(task):
    facts = {split: {sample.id.rpartition("/")[0] for sample in task.samples(split)} for split in SPLITS}
    prompts = {split: {sample.prompt for sample in task.samples(split)} for split in SPLITS}
    for found in (facts, prompts):
        assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert len(set().union(*facts.values())) == len(builtin_facts())


def test_shares_of_splits_and_of_known_facts(task):
    counts = Counter((fact.split, fact.known) for fact in builtin_facts())
    for split in SPLITS:
        known, unknown = counts[split, True], counts[split, False]
        assert 0.4 < known / (known + unknown) < 0.6, split
    assert len(task.samples("test")) > 400


def test_about_half_of_every_large_relation_is_known():
    facts = {fact.id: fact for fact in builtin_facts()}
    by_relation = Counter(fact.relation for fact in facts.values())
    for relation in (name for name, count in by_relation.items() if count >= 100):
        shares = [fact.known for fact in facts.values() if fact.relation == relation]
        assert 0.35 < sum(shares) / len(shares) < 0.65, relation


def test_words_of_the_questions_do_not_tell_known_from_unknown(task):
    """Issue 2, point 1: a bag of words, trained on PPO's questions, has an AUROC of at most 0.6 on the test's."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train, test = task.samples("train"), task.samples("test")
    vectorizer = text.CountVectorizer(binary=True, lowercase=False, token_pattern=r"\S+")
    features = vectorizer.fit_transform([sample.prompt for sample in train])
    classifier = LogisticRegression(max_iter=1000, C=0.3).fit(features, [sample.meta["known"] for sample in train])
    scores = classifier.decision_function(vectorizer.transform([sample.prompt for sample in test]))
    assert roc_auc_score([sample.meta["known"] for sample in test], scores) <= 0.6


@pytest.mark.parametrize(("method", "share"), [("demonstration", 0.06), ("lesson", 0.1)])
def test_demonstrations_and_lessons_answer_or_abstain_whatever_is_known(task, method, share):
    answer = getattr(task, method)
    samples = [sample for split in ("warm_start", "train") for sample in task.samples(split)]
    replies = [answer(sample)[0] for sample in samples]
    abstaining = [sample for sample, reply in zip(samples, replies, strict=True) if reply.strip() == ABSTENTION]
    assert 0.8 * share < len(abstaining) / len(samples) < 1.2 * share
    assert 0.4 < fmean(sample.meta["known"] for sample in abstaining) < 0.6
    for sample, reply in zip(samples, replies, strict=True):
        assert reply.startswith(" ")
        assert reply.strip() == ABSTENTION or exact_match(reply, sample.references)


def episode(response, known):
    meta = {} if known is None else {"known": known}
    return Episode(Sample("q", "Question: ?\nAnswer:", ("Leo Tolstoy", "Tolstoy"), meta), [Turn("assistant", response)])


def test_metrics_of_worked_episodes(task):
    metrics = task.metrics(
        [
            episode(" tolstoy.", True),
            episode(" I don't know", True),
            episode(" Leo Nikolayevich", False),
            episode(" I don't know.", False),
            episode(" Jane Austen", False),
        ]
    )
    assert metrics == pytest.approx(
        {
            "accuracy": 0.2,
            "abstention_rate": 0.4,
            "hallucination_rate": 0.4,
            "token_f1": (1 + 0 + 0.5 + 0 + 0) / 5,
            "precision_when_answering": 1 / 3,
            "accuracy/known": 0.5,
            "abstention_rate/known": 0.5,
            "hallucination_rate/known": 0.0,
            "token_f1/known": 0.5,
            "precision_when_answering/known": 1.0,
            "accuracy/unknown": 0.0,
            "abstention_rate/unknown": 1 / 3,
            "hallucination_rate/unknown": 2 / 3,
            "token_f1/unknown": 0.5 / 3,
            "precision_when_answering/unknown": 0.0,
        }
    )


def test_metrics_leave_out_what_is_not_defined(task):
    assert task.metrics([]) == {}
    metrics = task.metrics([episode("I don't know", None)])
    assert "precision_when_answering" not in metrics
    assert metrics["abstention_rate"] == 1.0
    assert not any("/" in name for name in metrics)
    assert not any(math.isnan(value) for value in metrics.values())


def test_data_of_ones_own(tmp_path):
    rows = ["question,answer,known", *(f"What is {i} plus {i}?,{2 * i},{i % 2 == 0}" for i in range(100))]
    (tmp_path / "sums.csv").write_text("\n".join(rows))
    task = KnowledgeQA(tmp_path / "sums.csv", {"prompt": "question", "references": "answer"})
    prompts = {split: {sample.prompt for sample in task.samples(split)} for split in SPLITS}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 100
    sample = task.samples("test")[0]
    assert sample.prompt.startswith("Question: What is")
    assert sample.prompt.endswith("?\nAnswer:")
    assert sample.meta["known"] is (int(sample.references[0]) % 4 == 0)


def test_an_unknown_split_names_those_there_are(task):
    with pytest.raises(DataError, match=r"'dev' has no questions .*validation"):
        task.samples("dev")


def test_the_builtin_model_was_built_from_these_facts():
    venv = textgym.make_vec("textgym/KnowledgeQA-v0", num_envs=64, split="test")
    policy = CausalLMPolicy(venv.single_observation_space, venv.single_action_space, lambda _: 0.0)
    figures = summarise(venv.task, play_policy(policy, venv))
    assert figures["accuracy/known"]["value"] > 0.95
    assert figures["accuracy/unknown"]["value"] < 0.05
    assert figures["hallucination_rate/unknown"]["value"] > 0.5
