import pytest
from lengths import longest
from shared_data import shared_data

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.translation import LEARNER_SHARE, Translation, translation_prompt
from textgym.rewards.lexical import Bleu


@pytest.fixture(scope="module")
def task():
    return Translation()


def test_samples(task):
    sizes = {split: len(task.samples(split)) for split in ("warm_start", "train", "validation", "test")}
    assert sum(sizes.values()) == len(Translation.builtin()) == 10_000
    assert sizes["train"] > 3900
    assert min(sizes.values()) > 450
    samples = task.samples("all")
    assert len({sample.prompt for sample in samples}) == 10_000
    assert 0.2 < sum(len(sample.references) == 2 for sample in samples) / 10_000 < 0.4
    assert {len(sample.references) for sample in samples} == {1, 2}
    first = Translation.builtin()[0]
    assert first.prompt == "English: Does he eat an orange tomorrow?\nGerman:"
    assert first.references == ("Isst er morgen eine Orange?", "Isst er morgen eine Apfelsine?")


def test_prompts_and_replies_are_short(task):
    samples = task.samples("all")
    assert longest([sample.prompt for sample in samples]) <= 40
    replies = [f" {reply.strip()}" for sample in samples for reply in (*sample.references, *task.demonstration(sample))]
    assert longest(replies) < task.max_new_tokens


def test_most_demonstrations_are_a_learners(task):
    samples = Translation.builtin()
    replies = [task.demonstration(sample)[0] for sample in samples]
    assert all(reply.startswith(" ") for reply in replies)
    right = sum(reply[1:] in sample.references for sample, reply in zip(samples, replies, strict=True)) / len(samples)
    assert 1 - LEARNER_SHARE < right < 0.65  # a learner is right now and then
    episodes = [Episode(sample, [Turn("assistant", reply)]) for sample, reply in zip(samples, replies, strict=True)]
    assert 0.8 < task.metrics(episodes[:500])["chrf"] < 0.95


def test_metrics_of_worked_episodes(task):
    sample = Sample("a", translation_prompt("The dog sleeps."), ("Der Hund schläft.",))
    right, empty = (Episode(sample, [Turn("assistant", text)]) for text in (" Der Hund schläft.", ""))
    assert task.metrics([right, empty]) == pytest.approx({"chrf": 0.5, "bleu": 0.5, "exact_match": 0.5})
    assert task.metrics([]) == {}
    partly = Episode(sample, [Turn("assistant", " Der Hund isst.")])
    assert 0.3 < task.reward.score([partly])[0].value < 0.8
    assert task.metrics([partly])["exact_match"] == 0.0


@pytest.mark.parametrize(
    ("layout", "name", "language", "english", "foreign"),
    [
        (
            "tatoeba-de",
            "deu-eng",
            "German",
            "Mary said she didn't know where Tom was.",
            "Maria sagte, sie wisse nicht, wo Tom sei.",
        ),
        ("tatoeba-fr", "fra-eng", "French", "We agree with you.", "Nous sommes de votre avis."),
        ("tatoeba-es", "spa-eng", "Spanish", "They don't despise you.", "No os desprecian."),
    ],
)
def test_every_row_of_tatoeba(layout, name, language, english, foreign):
    task = Translation(shared_data(f"tatoeba/{name}.tsv"), layout)
    samples = task.samples("all")
    assert len(samples) == 1000
    by_prompt = {sample.prompt: sample for sample in samples}
    assert len(by_prompt) == 1000
    sample = by_prompt[f"English: {english}\n{language}:"]
    assert sample.references == (foreign,)
    assert task.demonstration(sample) == [f" {foreign}"]
    assert all(len(sample.references) == 1 for sample in samples)
    assert all(sample.prompt.endswith(f"\n{language}:") for sample in samples)


@pytest.mark.parametrize(
    ("layout", "dataset", "config", "language"),
    [
        ("tatoeba-fr", "sentence-transformers/parallel-sentences-tatoeba", "en-fr", "French"),
        ("opus_books-de", "Helsinki-NLP/opus_books", "de-en", "German"),
        ("opus_books-es", "Helsinki-NLP/opus_books", "en-es", "Spanish"),
        ("wmt16-de", "wmt/wmt16", "de-en", "German"),
    ],
)
def test_data_sets_of_the_hub(monkeypatch, layout, dataset, config, language):
    code = layout.rpartition("-")[2]
    row = {"translation": {"en": "Yes.", code: "Ja."}}
    if layout.startswith("tatoeba"):
        row = {"english": "Yes.", "non_english": "Ja."}
    loaded = []

    def load_dataset(*names):
        loaded.append(names)
        return {"train": [row]}

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    (sample,) = Translation(layout).samples("train")
    assert loaded == [(dataset, config)]
    assert (sample.prompt, sample.references) == (f"English: Yes.\n{language}:", ("Ja.",))


def test_a_row_of_another_language_is_named():
    with pytest.raises(textgym.errors.DataError, match="no row of Helsinki-NLP/opus_books: no column 'de'"):
        Translation([{"translation": {"en": "Yes.", "fr": "Oui."}}], "opus_books-de")


def test_other_pairs_by_columns():
    task = Translation([{"fi": "Kyllä.", "en": "Yes."}], {"prompt": "Finnish: {fi}\nEnglish:", "references": "en"})
    (sample,) = task.samples("all")
    assert (sample.prompt, sample.references) == ("Finnish: Kyllä.\nEnglish:", ("Yes.",))


@pytest.mark.parametrize("level", ["token", "turn"])
def test_check_env(level):
    textgym.register("tests/Translation-v0", task=Translation)
    textgym.check_env(textgym.make("tests/Translation-v0", **({"level": level} if level == "turn" else {})))


def test_bleu_in_place_of_chrf():
    textgym.register("tests/Translation-v0", task=Translation, reward=Bleu())
    env = textgym.make("tests/Translation-v0", level="turn", split="test")
    env.reset(seed=0)
    assert env.step(f" {env.unwrapped.episode.sample.references[0]}")[1] == pytest.approx(1.0)
