"""Texts that can be compared, in this process and the next."""

import re
import subprocess
import sys
from functools import partial
from types import MappingProxyType

import pytest
import torch

from textgym.texts import described, excerpt, plain, whole


def function():
    """Stands for itself."""


class Anything:
    pass


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": (1, 2.5, None, True)}, {"a": [1, 2.5, None, True]}),
        (MappingProxyType({1: "a", "b": {3, 1, 2}}), {"1": "a", "b": [1, 2, 3]}),
        ("caf\ud800", "caf?"),
        (function, "<function function>"),
        ([partial(function, wrong=-4)], ["functools.partial(<function function>, wrong=-4)"]),
    ],
)
def test_values_become_what_json_holds(value, found):
    assert plain(value) == found


def test_objects_have_no_address():
    assert " at 0x" not in described({"of": [Anything(), function]})


def test_a_pattern_is_described_to_its_end():
    assert described(re.compile("a" * 300)) != described(re.compile("a" * 300 + "b"))


def test_models_are_told_apart_by_their_weights():
    model = torch.nn.Linear(3, 3)
    before = described(model)
    assert before == described(model)
    with torch.no_grad():
        model.bias += 1
    assert described(model) != before


def test_sets_are_in_the_same_order_in_every_process():
    script = "from textgym.texts import described; print(described({'tags': {'alpha', 'beta', 'gamma', 'delta'}}))"
    found = {subprocess.check_output([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}) for seed in "12"}
    assert len(found) == 1


def test_an_excerpt_is_one_line_that_a_terminal_does_not_obey():
    assert excerpt("a\n b\x1b[31m\u202e") == "a b [31m"
    assert len(excerpt("x" * 1000)) == 201
    assert whole("é😀") == "é😀"
