"""top_k and top_p: the kept sets are transformers', and the truncated distribution is the policy's everywhere."""

import numpy as np
import pytest
import stable_baselines3
import torch
import transformers
from stable_baselines3.common.vec_env import DummyVecEnv
from test_ppo import Ratios
from toy import CONTEXT, MODELS, VOCABULARY, ToyEnv
from transformers import TopKLogitsWarper, TopPLogitsWarper

from textgym.agents import A2C, GRPO, PPO, REINFORCE, CausalLMPolicy, CausalLMQPolicy, heads
from textgym.agents.heads import token_log_probs, truncate
from textgym.agents.run_settings import Settings
from textgym.errors import ConfigurationError

OPTIONS = [(5, None), (None, 0.7), (8, 0.6), (1, None), (None, 0.01), (1000, 1.0), (20, 0.999)]


def warped(logits, top_k, top_p):
    """transformers' own."""
    if top_k is not None:
        logits = TopKLogitsWarper(top_k)(None, logits)
    return logits if top_p is None else TopPLogitsWarper(top_p)(None, logits)


@pytest.mark.parametrize(("top_k", "top_p"), OPTIONS)
@pytest.mark.parametrize("width", [31, 1000])
def test_the_sets_are_transformers(top_k, top_p, width, monkeypatch):
    monkeypatch.setattr(heads, "FIRST_LOOK", 4)  # so that the nucleus is looked for in several steps
    torch.manual_seed(0)
    logits = 2 * torch.randn(50, width)
    expected = warped(logits.clone(), top_k, top_p)
    found = truncate(logits, top_k, top_p)
    assert torch.equal(torch.isneginf(found), torch.isneginf(expected))
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=0)
    kept = torch.randint(0, width, (50,))
    with_kept = truncate(logits, top_k, top_p, kept)
    assert torch.equal(with_kept.gather(-1, kept[:, None]), logits.gather(-1, kept[:, None]))
    differs = torch.isneginf(with_kept) != torch.isneginf(expected)
    assert int(differs.sum()) == int(torch.isneginf(expected.gather(-1, kept[:, None])).sum())


def test_nothing_asked_costs_nothing():
    logits = torch.randn(3, 7)
    assert truncate(logits) is logits


def test_tokens_as_likely_as_the_last_are_left_too():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    assert torch.isfinite(truncate(logits, top_k=2))[0].tolist() == [True, True, True, True, False]
    assert torch.isfinite(truncate(logits, top_p=0.6))[0].tolist() == [True, True, True, True, False]
    next_to = torch.tensor([[1.0, float(np.nextafter(np.float32(1), np.float32(0)))]])
    assert torch.isfinite(truncate(next_to, top_k=1))[0].tolist() == [True, False]


@pytest.mark.parametrize(("top_k", "top_p"), OPTIONS)
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_the_chunked_head_is_the_plain_computation(top_k, top_p, entropy_gradient, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_ROWS", 1)
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 100)
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    bias = torch.randn(31, requires_grad=True)
    tokens = torch.randint(0, 31, (23,))
    up_log_prob, up_entropy = torch.randn(23), torch.randn(23)
    inputs = [hidden, weight, bias]

    log_prob, entropy = token_log_probs(hidden, weight, bias, tokens, 0.7, entropy_gradient, top_k, top_p)
    objective = (log_prob * up_log_prob).sum() + entropy_gradient * (entropy * up_entropy).sum()
    gradients = torch.autograd.grad(objective, inputs)

    logits = (hidden @ weight.T + bias) / 0.7
    left = torch.isfinite(warped(logits.detach().clone(), top_k, top_p)).scatter(-1, tokens[:, None], True)
    log_probs = logits.masked_fill(~left, -torch.inf).log_softmax(-1)
    wanted = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    plain_entropy = -(log_probs.exp() * log_probs.masked_fill(~left, 0.0)).sum(-1)
    torch.testing.assert_close(log_prob, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-5, rtol=1e-5)
    plain = (wanted * up_log_prob).sum() + entropy_gradient * (plain_entropy * up_entropy).sum()
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------- the policy


def softcapped():
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, max_position_embeddings=CONTEXT, final_logit_softcapping=2.0,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


def make_agent(algorithm=PPO, model=None, n_envs=4, **kwargs):
    torch.manual_seed(0)
    settings = {"learning_rate": 1e-2, "seed": 1, "device": "cpu"} | kwargs
    if algorithm in (PPO, stable_baselines3.PPO):
        settings = {"n_steps": 12, "batch_size": 48, "n_epochs": 2} | settings
    options = {"temperature": 0.8, "top_k": 12, "top_p": 0.8} | settings.pop("policy_kwargs", {})
    policy_kwargs = {"model": sharp(MODELS["llama"]()) if model is None else model, **options}
    return algorithm(
        CausalLMPolicy, DummyVecEnv([lambda: ToyEnv(2, 4)] * n_envs), policy_kwargs=policy_kwargs, **settings
    )


def sharp(model):
    """With probabilities that differ."""
    model.get_output_embeddings().weight.data *= 10
    return model


@pytest.mark.parametrize("model", [None, softcapped], ids=["plain", "softcapped"])
def test_the_ratio_is_one_before_the_first_update_and_finite_after(model):
    ratios = Ratios()
    agent = make_agent(model=model and sharp(model()))
    assert agent.policy.plain_head == (model is None)
    agent.learn(3 * 48, callback=ratios)
    assert np.abs(np.expm1(np.concatenate(ratios.log_ratios))).max() <= 1e-5
    assert all(torch.isfinite(parameter).all() for parameter in agent.policy.parameters())


def test_a_rollout_stays_in_the_set_and_has_its_log_probabilities():
    agent = make_agent(kl_coef=0.1)
    reference = transformers.LlamaForCausalLM(agent.policy.model.config).eval()
    reference.load_state_dict(agent.policy.model.state_dict())
    agent.learn(48)
    buffer, n_cut = agent.rollout_buffer, 0
    for segment in buffer.segments:
        ids = torch.as_tensor(buffer.streams[segment.environment, segment.start : segment.stop])
        logits = reference(ids[None]).logits[0].detach() / 0.8
        log_probs = warped(logits, 12, 0.8).log_softmax(-1)
        n_cut += int(torch.isneginf(log_probs).sum())
        for step in range(segment.first_step, segment.last_step + 1):
            place = buffer.positions[step, segment.environment] - segment.start
            wanted = log_probs[place, buffer.actions[step, segment.environment]].item()
            assert buffer.log_probs[step, segment.environment] == pytest.approx(wanted, abs=2e-5)  # not -inf
            assert buffer.reference_log_probs[step, segment.environment] == pytest.approx(wanted, abs=2e-5)
    assert n_cut > 100


@pytest.mark.parametrize("model", [None, softcapped], ids=["plain", "softcapped"])
def test_entropy_and_samples_are_those_of_the_truncated_distribution(model):
    agent = make_agent(model=model and sharp(model()))
    tensors, _ = agent.policy.obs_to_tensor(agent.env.reset())
    with torch.no_grad():
        lengths = tensors["attention_mask"].sum(-1)
        outputs = agent.policy.model(tensors["input_ids"].long()).logits[torch.arange(4), lengths.long() - 1]
        log_probs = warped(outputs / 0.8, 12, 0.8).log_softmax(-1)
        probs = log_probs.exp()
        wanted = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
        distribution = agent.policy.get_distribution(tensors)
        actions = distribution.mode()
        _, log_prob, entropy = agent.policy.evaluate_actions(tensors, actions)
        torch.testing.assert_close(distribution.entropy(), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_prob, log_probs.amax(-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(distribution.log_prob(actions), log_prob, atol=1e-5, rtol=0)
        drawn = torch.stack([agent.policy(tensors)[0] for _ in range(300)])
    assert (log_probs.gather(-1, drawn.T) > -torch.inf).all()
    assert min(len(column.unique()) for column in drawn.T) > 1


@pytest.mark.parametrize("kwargs", [{}, {"ent_coef": 0.01, "clip_range_vf": 0.2}], ids=str)
def test_ours_is_still_stock_ppo(kwargs):
    found = []
    for algorithm in (PPO, stable_baselines3.PPO):  # each draws its seed when it is made
        agent = make_agent(algorithm, learning_rate=1e-3, **kwargs)
        start = [parameter.detach().clone() for parameter in agent.policy.parameters()]
        found.append(list(agent.learn(3 * 48).policy.parameters()))
    for ours, stock in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    assert max(float((a - b).detach().abs().max()) for a, b in zip(start, found[0], strict=True)) >= 1e-3


@pytest.mark.parametrize("algorithm", [A2C, REINFORCE, GRPO], ids=lambda a: a.__name__)
def test_every_on_policy_algorithm_takes_them(algorithm):
    class Group(ToyEnv):
        group_size = 2

    policy_kwargs = {"model": sharp(MODELS["llama"]()), "top_k": 6, "top_p": 0.9}
    settings = {"n_steps": 12} if algorithm is A2C else {"n_episodes": 8}
    agent = algorithm("CausalLMPolicy", DummyVecEnv([Group] * 4), policy_kwargs=policy_kwargs, learning_rate=1e-2,
                      kl_coef=0.1, device="cpu", **settings)  # fmt: skip
    agent.learn(96)
    assert all(torch.isfinite(parameter).all() for parameter in agent.policy.parameters())
    assert np.isfinite(agent.rollout_buffer.reference_log_probs).all()


def test_they_are_saved(tmp_path):
    agent = make_agent()
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    assert (loaded.policy.top_k, loaded.policy.top_p, loaded.policy.temperature) == (12, 0.8, 0.8)
    agent.policy.save(tmp_path / "policy.pt")
    parameters = agent.policy._get_constructor_parameters()
    assert (parameters["top_k"], parameters["top_p"]) == (12, 0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is a whole number of at least 1, or None for all tokens, not 0"),
        ({"top_k": 2.5}, "not 2.5"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, or None for all tokens, not 0.0"),
        ({"top_p": 1.5}, "not 1.5"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        make_agent(policy_kwargs=options)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_dqn_explores_by_itself(options):
    env = ToyEnv()
    with pytest.raises(ConfigurationError, match="temperature"):
        CausalLMQPolicy(env.observation_space, env.action_space, lambda _: 0.0, model=MODELS["llama"](), **options)


def test_training_runs_take_them():
    import textgym

    task = textgym.make("textgym/Copy-v0").unwrapped.task
    settings = Settings("textgym/Copy-v0", options={"policy.top_k": 5, "policy.top_p": 0.9}).complete(task)
    assert settings.section("policy")["top_k"] == 5
    with pytest.raises(ConfigurationError, match=r"no setting 'policy\.top_q'"):
        Settings("textgym/Copy-v0", options={"policy.top_q": 5}).complete(task)
