"""What texts and tables stand for as agents."""

import pytest

from textgym.agents.agent_specs import make_agent
from textgym.agents.baselines import AlwaysAbstain, BestOfN, CausalLMAgent, RandomAgent
from textgym.errors import ConfigurationError
from textgym.rendering import load_tokenizer


@pytest.mark.parametrize(("spec", "kind"), [("random", RandomAgent), ({"type": "abstain"}, AlwaysAbstain)])
def test_agents_by_name(spec, kind):
    assert type(make_agent(spec)) is kind


def test_a_models_folder_is_a_path_or_a_text(tmp_path):
    agent = CausalLMAgent()
    agent.model.save_pretrained(tmp_path)
    load_tokenizer(None).save_pretrained(tmp_path)
    assert repr(make_agent(tmp_path)) == repr(make_agent(str(tmp_path)))


@pytest.mark.parametrize(
    ("agent", "deterministic"),
    [("builtin", False), ({"type": "model"}, False), ({"type": "model", "deterministic": True}, True)],
)
def test_the_best_of_several_are_sampled_unless_it_is_said_otherwise(agent, deterministic):
    best = make_agent({"type": "best-of-n", "n": 2, "agent": agent})
    assert isinstance(best, BestOfN)
    assert best.agent.deterministic is deterministic
    assert (repr(best) == repr(make_agent("best-of-2:builtin"))) is not deterministic


@pytest.mark.parametrize("spec", [3, None, ["random"], {"type": ["random"]}, {"type": "modell"}, {}])
def test_what_stands_for_no_agent_is_refused(spec):
    with pytest.raises(ConfigurationError):
        make_agent(spec)


def test_a_module_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_agents.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot import the module of the agent 'broken_agents:Agent'"):
        make_agent("broken_agents:Agent")
