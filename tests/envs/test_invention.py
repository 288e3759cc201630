from collections import Counter

from textgym import Sample
from textgym.envs.invention import Chance, capitalised, prompted


def test_draws_depend_on_the_seed_alone():
    chance = Chance((1, 2))
    drawn = [chance.between(1, 6) for _ in range(600)]
    assert set(drawn) == set(range(1, 7))
    again, other = Chance((1, 2)), Chance((1, 3))
    assert [again.between(1, 6) for _ in range(600)] == drawn
    assert [other.between(1, 6) for _ in range(600)] != drawn


def test_draws():
    chance = Chance((0,))
    counts = Counter(chance.one_of("abc") for _ in range(3000))
    assert all(900 < counts[letter] < 1100 for letter in "abc")
    some = [chance.some_of("abcd", 2) for _ in range(100)]
    assert all(len(set(pair)) == 2 for pair in some)
    assert {letter for pair in some for letter in pair} == set("abcd")
    assert sorted(chance.some_of("ab", 5)) == ["a", "b"]
    assert chance.some_of("ab", 0) == []
    assert 200 < sum(chance.happens(0.25) for _ in range(1000)) < 300


def test_capitals_stay():
    assert capitalised("a river in the Alps") == "A river in the Alps"


def test_samples_have_ids_of_their_prompts():
    sample = prompted("Why?", ["Because."], level=3)
    assert sample == Sample(sample.id, "Why?", ("Because.",), {"level": 3})
    assert sample.id == prompted("Why?", []).id != prompted("Who?", []).id
