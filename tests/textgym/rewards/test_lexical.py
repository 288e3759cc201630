import math
import pickle
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgym import Episode, Sample, Turn
from textgym.errors import RewardError
from textgym.rewards import lexical
from textgym.rewards.lexical import (
    Bleu,
    ChrF,
    Contains,
    DistinctN,
    ExactMatch,
    Length,
    Matches,
    Meteor,
    Repetition,
    Rouge,
    TokenF1,
)

REFERENCE_BASED = [Rouge, Bleu, ChrF, Meteor, ExactMatch, TokenF1]


def episode(reply, *references, **meta):
    return Episode(Sample("s", "Summarise:", references, meta), [Turn("assistant", reply)])


def score(reward, reply, *references, **meta):
    (only,) = reward.score([episode(reply, *references, **meta)])
    assert only.status == "ok", only.status
    return only.value


@pytest.mark.parametrize(
    ("variant", "reply", "reference", "expected"),
    [
        ("rouge1", "the cat sat", "the cat sat on the mat", 2 / 3),  # precision 3/3, recall 3/6
        ("rouge2", "the cat sat", "the cat sat on the mat", 4 / 7),  # 2/2, 2/5
        ("rougeL", "the cat sat", "the cat sat on the mat", 2 / 3),
        ("rouge1", "sat the cat", "the cat sat on the mat", 2 / 3),
        ("rouge2", "sat the cat", "the cat sat on the mat", 2 / 7),  # 1/2, 1/5
        ("rougeL", "sat the cat", "the cat sat on the mat", 4 / 9),  # 2/3, 2/6
        ("rougeL", "c d\na b", "a b\nc d", 1 / 2),
        ("rougeLsum", "c d\na b", "a b\nc d", 1.0),
        ("rouge1", " The CAT, sat!\n", "the cat sat", 1.0),
        ("rouge2", "cat", "cat", 0.0),
        ("rougeL", "", "cat", 0.0),
        ("rougeLsum", "", "cat", 0.0),
    ],
)
def test_rouge(variant, reply, reference, expected):
    assert score(Rouge(variant), reply, reference) == pytest.approx(expected)


def test_rouge_takes_the_best_reference():
    assert score(Rouge("rouge1"), "a b", "c d", "a x", "a b c") == pytest.approx(4 / 5)
    assert score(Rouge("rouge1"), "a b", "", "a x") == pytest.approx(1 / 2)


def test_rouge_of_stems():
    assert score(Rouge("rouge1"), "cats sitting", "cat sits") == 0.0
    assert score(Rouge("rouge1", use_stemmer=True), "cats sitting", "cat sits") == 1.0


def test_rouge_does_not_score_a_reference_that_it_cannot_read():
    (only,) = Rouge().score([episode("Привет", "Привет")])
    assert only.value is None
    assert only.status.startswith("rougeL: needs a reference with a Latin letter or a digit")
    assert "('Привет',)" in only.status
    assert score(Rouge(), "Привет", "Привет 5") == 0.0


@pytest.mark.parametrize(
    ("reply", "references", "expected"),
    [
        ("the cat sat", ["the cat sat on the mat"], math.exp(1 - 6 / 3)),  # three orders, all 1; brevity penalty
        ("the dog sat on the mat", ["the cat sat on the mat"], (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)),
        ("on the cat sat", ["the cat sat on a mat"], math.exp(-1 / 2) * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)),  # 0/1: 1/2
        ("a b c", ["a b x y", "z b c"], (1 / 2) ** (1 / 3)),  # all bigrams in one or the other; the closest length is 3
        (" the cat sat on the mat\n", ["the cat sat on the mat"], 1.0),
        ("The cat", ["the cat"], (1 / 2 * 1 / 2) ** (1 / 2)),  # case counts; 0/1 bigrams: 1/2
        ("dog", ["the cat"], 0.0),
        ("", ["the cat"], 0.0),
    ],
)
def test_bleu(reply, references, expected):
    assert score(Bleu(), reply, *references) == pytest.approx(expected)


def test_bleu_is_at_most_one():
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    for n in range(1, len(words) + 1):
        assert 1 - 1e-9 < score(Bleu(), " ".join(words[:n]), " ".join(words[:n])) <= 1


@pytest.mark.parametrize(
    ("word_order", "reply", "references", "expected"),
    [
        (0, "ab", ["abc"], 7 / 11),  # precision (1 + 1) / 2, recall (2/3 + 1/2) / 2; no trigram in the reply
        (0, "a b c", ["ab c"], 1.0),
        (1, "a b c", ["ab c"], 175 / 202),  # precision (1 + 1 + 1 + 1/3) / 4, recall (1 + 1 + 1 + 1/2) / 4
        (2, "a b c", ["ab c"], 70 / 101),  # precision (3 + 1/3 + 0) / 5, recall (3 + 1/2 + 0) / 5
        (0, "ab", ["xy", "abc", "z"], 7 / 11),
        (0, "", ["abc"], 0.0),
        (2, "", ["abc"], 0.0),
        (0, "Привет", ["Привет"], 1.0),
    ],
)
def test_chrf(word_order, reply, references, expected):
    assert score(ChrF(word_order), reply, *references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "references", "expected"),
    [
        ("cats sat", ["a cat sat"], 20 / 29 * 15 / 16),  # precision 1, recall 2/3; one chunk of two words
        ("sat cat", ["cat sat"], 1 / 2),  # two chunks of one word
        ("The cat", ["the CAT"], 15 / 16),
        ("automobile", ["car"], 0.0),
        ("cat", ["dog", "cat"], 1 / 2),
        ("", ["cat"], 0.0),
    ],
)
def test_meteor_without_synonyms(reply, references, expected):
    assert score(Meteor(), reply, *references) == pytest.approx(expected)


def test_exact_match():
    assert score(ExactMatch(), " The Eiffel Tower.\n", "Louvre", "Eiffel tower") == 1.0
    assert score(ExactMatch(), "Eiffel", "Eiffel Tower") == 0.0
    assert score(ExactMatch(), "", "Paris") == 0.0
    assert score(ExactMatch(), " ", "") == 1.0


def test_token_f1():
    assert score(TokenF1(), "the tall Eiffel Tower", "Louvre", "Eiffel Tower of Paris") == pytest.approx(4 / 7)
    assert score(TokenF1(), "", "Paris") == 0.0
    assert score(TokenF1(), "", "") == 1.0


@pytest.mark.parametrize("kind", REFERENCE_BASED)
def test_without_references_there_is_no_score(kind):
    reward = kind()
    with_one, without = reward.score([episode("cat", "dog"), episode("cat")])
    assert with_one.value == 0.0
    assert without.value is None
    assert without.status.startswith(f"{reward.name}: needs a reference")
    assert without.status.endswith("sample 's' has ()")


@pytest.mark.parametrize("kind", [Rouge, Bleu, ChrF, Meteor])
def test_blank_references_are_none(kind):
    (only,) = kind().score([episode("", "", " ")])
    assert only.value is None
    assert score(kind(), "cat", " ", "dog") == 0.0


@pytest.mark.parametrize(
    ("n", "reply", "distinct", "repeated"),
    [
        (1, "the cat the cat sat", 3 / 5, 2 / 5),
        (2, "the cat the cat sat", 3 / 4, 1 / 4),
        (3, "the cat the cat sat", 1.0, 0.0),
        (1, "No, no - NO!", 1 / 3, 2 / 3),
        (1, "don't do well-known", 1.0, 0.0),
        (2, "Ça va, ça va", 2 / 3, 1 / 3),
        (2, "once", 0.0, 0.0),
        (1, " \n", 0.0, 0.0),
        (1, "?!", 0.0, 0.0),
    ],
)
def test_distinct_and_repetition(n, reply, distinct, repeated):
    assert score(DistinctN(n), reply) == pytest.approx(distinct)
    assert score(Repetition(n), reply) == pytest.approx(repeated)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (8, 1.0), (10, 0.75), (12, 0.5), (16, 0.0), (20, 0.0)],
)
def test_length(length, expected):
    assert score(Length(4, 8), " ".join(["word"] * length) + " !") == expected
    assert score(Length(4, 8, "characters"), " " + "x" * length + "\n") == expected


def test_length_without_a_lower_bound():
    assert score(Length(0, 2), "") == 1.0
    assert score(Length(0, 2), "one two three") == 0.5


def test_matches():
    assert score(Matches(r"Answer: \d+"), " Answer: 42\n") == 1.0
    assert score(Matches(r"Answer: \d+"), "Answer: 42.") == 0.0
    assert score(Matches(r"\d+", full=False), "Answer: 42.") == 1.0
    assert score(Matches(r"\d+", full=False), "none") == 0.0
    assert score(Matches(re.compile("yes|no", re.IGNORECASE)), "Yes") == 1.0
    assert score(Matches(".*"), "") == 1.0


def test_contains():
    reward = Contains(["ice cream", "Paris", "C++", "l'été"])
    assert score(reward, "Ice  cream\nin paris!") == 1 / 2
    assert score(reward, "C++, C++ and Paris") == 1 / 2
    assert score(reward, "ice creams, Parisian") == 0.0
    assert score(reward, "En L'ÉTÉ.") == 1 / 4
    assert score(reward, "") == 0.0


def test_contains_what_the_sample_asks_for():
    reward = Contains(meta="keywords")
    assert score(reward, "a red kite", keywords=["red", "kite", "sea"]) == pytest.approx(2 / 3)
    assert score(reward, "a red kite", keywords=("kite",)) == 1.0


@pytest.mark.parametrize("keywords", [None, [], "red kite", ["red", ""], [1], 3])
def test_contains_does_not_score_a_sample_without_phrases(keywords):
    meta = {} if keywords is None else {"keywords": keywords}
    (only,) = Contains(meta="keywords").score([episode("a red kite", **meta)])
    assert only.value is None
    assert only.status.startswith("contains: sample 's': meta['keywords'] is a list of words or phrases")
    assert only.status.endswith(f"not {keywords!r}.")


def test_names_tell_the_variant():
    assert [Rouge(v).name for v in ("rouge1", "rouge2", "rougeL", "rougeLsum")] == [
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
    ]
    assert Rouge("rouge2", use_stemmer=True).name == "rouge2_stemmed"
    assert [ChrF(n).name for n in range(3)] == ["chrF", "chrF+", "chrF++"]
    assert [kind().name for kind in (Bleu, Meteor, ExactMatch, TokenF1)] == [
        "bleu",
        "meteor",
        "exact_match",
        "token_f1",
    ]
    assert [DistinctN(1).name, DistinctN().name, Repetition().name] == ["distinct_1", "distinct_2", "repetition_4"]
    assert [Length(1, 2).name, Length(1, 2, "characters").name] == ["length_words", "length_characters"]
    assert [Matches("a").name, Matches("a", name="format").name] == ["matches", "format"]
    assert [Contains(["a"]).name, Contains(["a"], name="keywords").name] == ["contains", "keywords"]


def test_each_is_logged_under_its_own_name():
    reward = 0.5 * Rouge() + 0.5 * ChrF() - Repetition(1)
    (only,) = reward.score([episode("ab ab", "ab abc")])
    assert only.parts.keys() == {"rougeL", "chrF", "repetition_1"}
    assert only.parts["rougeL"] == only.parts["repetition_1"] == 0.5
    assert only.value == pytest.approx(0.25 + 0.5 * only.parts["chrF"] - 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rouge("rougel"), r"no ROUGE variant 'rougel'; choose rouge1, rouge2, rougeL, rougeLsum"),
        (lambda: ChrF(3), r"word_order is 0 .* not 3"),
        (lambda: DistinctN(0), r"at least one word, not n=0"),
        (lambda: Repetition(-1), r"at least one word, not n=-1"),
        (lambda: Length(8, 4), r"0 <= low <= high .* not 8 and 4"),
        (lambda: Length(0, 0), r"not 0 and 0"),
        (lambda: Length(-1, 4), r"not -1 and 4"),
        (lambda: Length(1, 4, "tokens"), r"words or characters, not 'tokens'"),
        (lambda: Matches("(a"), r"'\(a' is no regular expression: missing \)"),
        (lambda: Matches(None), r"None is no regular expression"),
        (lambda: Matches(b"a"), r"matches bytes"),
        (lambda: Contains(), r"either phrases or meta"),
        (lambda: Contains(["a"], meta="keywords"), r"either phrases or meta"),
        (lambda: Contains("Paris"), r"list of words or phrases.* not 'Paris'"),
        (lambda: Contains([]), r"not \[\]"),
        (lambda: Contains(["a", " "]), r"not \['a', ' '\]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(RewardError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "module", "package", "cached"),
    [
        (Rouge, "rouge_score.tokenizers", "rouge_score", lexical._rouge_scorer),
        (Bleu, "sacrebleu.metrics", "sacrebleu", lexical._bleu),
        (ChrF, "sacrebleu.metrics", "sacrebleu", lexical._chrf),
        (Meteor, "nltk.translate.meteor_score", "nltk", None),
    ],
)
def test_a_missing_package_is_named(monkeypatch, kind, module, package, cached):
    monkeypatch.setitem(sys.modules, module, None)
    if cached is not None:
        cached.cache_clear()
    with pytest.raises(RewardError, match=f"needs {package}, which belongs to textgym"):
        kind()


def test_they_can_be_sent_to_other_processes():
    for reward in (Rouge("rouge2", True), Bleu(), ChrF(2), Meteor(), Length(1, 5), Matches("a"), Contains(["a b"])):
        before = score(reward, "a b c", "a b d")
        assert score(pickle.loads(pickle.dumps(reward)), "a b c", "a b d") == before


texts = st.text(alphabet="ab é,.'\nZ", max_size=30)


@given(reply=texts, references=st.lists(texts, max_size=3))
def test_values_are_shares(reply, references):
    rewards = [Rouge(), Rouge("rouge2", True), Rouge("rougeLsum"), Bleu(), ChrF(), ChrF(2), Meteor(), ExactMatch()]
    rewards += [TokenF1(), DistinctN(1), Repetition(2), Length(2, 5), Length(2, 9, "characters")]
    for reward in rewards:
        (only,) = reward.score([episode(reply, *references)])
        if only.value is None:
            assert not any(map(str.strip, references)) or isinstance(reward, Rouge)
        else:
            assert 0 <= only.value <= 1


QUIET = """
import sys, socket
def refuse(*args): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import textgym.rewards.lexical as lexical, textgym.rewards.evaluate_metric
heavy = {"rouge_score", "sacrebleu", "nltk", "evaluate", "datasets", "torch", "transformers"} & sys.modules.keys()
assert not heavy, heavy
from textgym import Episode, Sample, Turn
episode = Episode(Sample("s", "", ("The cat sat on a mat.",)), [Turn("assistant", "A cat sits on a chair.")])
rewards = [lexical.Rouge(v, True) for v in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
for reward in [*rewards, lexical.Bleu(), lexical.ChrF(2), lexical.Meteor()]:
    assert 0 < reward.score([episode])[0].value < 1, reward
"""


def test_libraries_are_imported_late_and_without_warnings_or_network():
    done = subprocess.run([sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
