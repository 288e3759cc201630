"""A value model of its own: a copy of the actor, another language model, or a reward model with its head."""

import numpy as np
import pytest
import torch
import transformers
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import CONTEXT, MODELS, VOCABULARY, ToyEnv
from transformers import TrainingArguments

import textgym
from textgym import Sample
from textgym.agents import PPO, Preference, RewardModelTrainer
from textgym.errors import ConfigurationError, ModelError, TokenizerError


def config_of(width=24, vocabulary=VOCABULARY, positions=CONTEXT, **kwargs):
    return transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=0, **kwargs,
    )  # fmt: skip


def saved(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def critic(tmp_path):
    """A reward model narrower and shallower than the actor."""
    torch.manual_seed(3)
    return saved(transformers.LlamaForSequenceClassification(config_of(num_labels=1)), tmp_path / "critic")


def make_agent(value, **kwargs):
    torch.manual_seed(0)
    policy_kwargs = {"model": MODELS["llama"](), "value": value} | kwargs.pop("policy_kwargs", {})
    settings = {"n_steps": 12, "batch_size": 24, "n_epochs": 2, "learning_rate": 1e-3, "seed": 1, "device": "cpu"}
    env = DummyVecEnv([lambda: ToyEnv(2, 4)] * 4)
    return PPO("CausalLMPolicy", env, policy_kwargs=policy_kwargs, **settings | kwargs)


def observations(agent, seed=7):
    agent.env.seed(seed)
    return agent.policy.obs_to_tensor(agent.env.reset())[0]


def values_of(agent):
    with torch.no_grad():
        return agent.policy.predict_values(observations(agent)).flatten()


# ------------------------------------------------------------------------------ the reward model


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
def test_the_value_of_a_finished_episode_is_the_reward_models_score(adapter, tokenizer, tmp_path):
    peft = pytest.importorskip("peft") if adapter else None
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config_of(32, len(tokenizer), 128)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    preferences = [Preference(Sample(str(i), f"{i}:"), (" good" if i % 2 else " bad",), float(i % 2)) for i in range(8)]
    settings = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=4, learning_rate=1e-2, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if peft else None
    trainer = RewardModelTrainer(str(tmp_path / "base"), settings, preferences, peft_config=config)
    trainer.train()
    trainer.save_model(tmp_path / "reward_model")
    assert (tmp_path / "reward_model" / "adapter_model.safetensors").is_file() == adapter

    env = textgym.make_vec("textgym/Copy-v0", num_envs=3, tokenizer=tokenizer, max_context=96, max_new_tokens=5)
    policy_kwargs = {"model": str(tmp_path / "base"), "value": str(tmp_path / "reward_model")}
    agent = PPO("CausalLMPolicy", env, policy_kwargs=policy_kwargs, n_steps=8, batch_size=24, device="cpu")
    assert all(parameter.requires_grad for parameter in agent.policy.value_trunk.parameters())
    reward_model = trainer.reward.model.eval()
    observation, _ = env.reset(seed=0)
    finished = []
    while len(finished) < 3:
        actions, _ = agent.predict(observation)
        observation, _, terminated, _, info = env.step(actions)
        ended_without_padding = terminated & (actions != tokenizer.pad_token_id)  # which the classifier passes over
        finished += [info["final_obs"][row] for row in np.flatnonzero(ended_without_padding)]
    for last in finished:
        row = {name: torch.as_tensor(value)[None] for name, value in last.items()}
        ids = row["input_ids"][:, : int(row["attention_mask"].sum())].long()
        with torch.no_grad():
            value = agent.policy.predict_values(row).item()
            score = reward_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()
        assert value == pytest.approx(score, abs=1e-5)
        assert abs(value) > 1e-3


def test_a_reward_model_comes_before_the_critic_that_the_folder_has(critic, tmp_path):
    make_agent("separate", policy_kwargs={"model": config_of()}).policy.save_pretrained(tmp_path / "actor")
    policy = make_agent(critic, policy_kwargs={"model": str(tmp_path / "actor")}).policy
    score = transformers.AutoModelForSequenceClassification.from_pretrained(critic).score
    assert torch.equal(policy.value_head.weight, score.weight)


def test_the_value_is_the_score_of_every_prefix_whatever_the_architecture(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY + 3, n_layer=1, n_embd=16, n_head=2, n_positions=CONTEXT, num_labels=1, pad_token_id=0,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config)
    agent = make_agent(saved(model, tmp_path))
    observation = observations(agent)
    for value, ids, mask in zip(values_of(agent), observation["input_ids"], observation["attention_mask"], strict=True):
        row = ids[: int(mask.sum())][None].long()
        assert value.item() == pytest.approx(model.eval()(row).logits.item(), abs=1e-5)


# ----------------------------------------------------------------- apart from the actor, in everything


@pytest.fixture(params=["separate", "language model", "reward model"])
def value(request, critic, tmp_path):
    if request.param == "language model":
        return saved(transformers.LlamaForCausalLM(config_of(40)), tmp_path / "lm")
    return critic if request.param == "reward model" else "separate"


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None and p.grad.abs().max() > 0]


def test_each_loss_has_its_own_network(value):
    agent = make_agent(value)
    agent.learn(48)
    samples = agent.rollout_buffer.samples()
    for wanted in ("critic", "actor"):
        policy = agent.policy
        policy.optimizer.zero_grad()
        values, log_prob, _ = policy.evaluate_actions(samples.observations, samples.actions)
        (values if wanted == "critic" else log_prob).sum().backward()
        assert bool(gradients(policy.model)) == (wanted == "actor")
        assert bool(gradients(policy.value_trunk)) == bool(gradients(policy.value_head)) == (wanted == "critic")
    trained = {id(p) for group in agent.policy.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in agent.policy.parameters()}


def test_the_actor_learns_from_its_advantages_alone(critic):
    """However much more the value's loss weighs, the actor's steps are the same: no gradient clipping, plain SGD."""
    found = []
    for vf_coef in (0.5, 50.0):
        plain = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
        agent = make_agent(critic, vf_coef=vf_coef, max_grad_norm=1e9, batch_size=48, n_epochs=1, policy_kwargs=plain)
        found.append((agent.learn(48).policy.model.state_dict(), agent.policy.value_trunk.state_dict()))
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(tensor, found[1][0][name], rtol=0, atol=0)
    assert any((tensor != found[1][1][name]).any() for name, tensor in found[0][1].items())


def test_decoding_is_encoding(value):
    agent = make_agent(value, n_steps=24)
    assert agent.policy.can_decode_incrementally
    agent.learn(96, callback=check_rollout)


def check_rollout(locals_, globals_):
    """At every step, the values and log-probabilities of the rollout are those of whole passes."""
    agent = locals_["self"]
    decoders, agent.policy._decoders = agent.policy._decoders, None
    with torch.no_grad():
        values, log_probs, _ = agent.policy.evaluate_actions(
            agent.policy.obs_to_tensor(agent._last_obs)[0], torch.as_tensor(locals_["actions"])
        )
    agent.policy._decoders = decoders
    torch.testing.assert_close(locals_["values"], values, atol=2e-5, rtol=0)
    torch.testing.assert_close(locals_["log_probs"], log_probs, atol=2e-5, rtol=0)
    return True


def test_a_zip_keeps_both(value, tmp_path):
    agent = make_agent(value)
    agent.learn(48)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=agent.env, device="cpu")
    for name, tensor in agent.policy.state_dict().items():
        torch.testing.assert_close(tensor, loaded.policy.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(values_of(agent), values_of(loaded))
    loaded.learn(48)
    loaded.save(tmp_path / "again.zip")


def test_a_folder_keeps_both(value, tmp_path):
    agent = make_agent(value)
    agent.learn(48)
    agent.policy.save_pretrained(tmp_path / "folder")
    again = make_agent("separate", policy_kwargs={"model": str(tmp_path / "folder")})
    for name, tensor in agent.policy.state_dict().items():
        torch.testing.assert_close(tensor, again.policy.state_dict()[name], rtol=0, atol=0)
    again.save(tmp_path / "agent.zip")
    torch.testing.assert_close(values_of(again), values_of(PPO.load(tmp_path / "agent.zip", env=agent.env)))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    make_agent("separate").policy.save_pretrained(tmp_path / "folder")  # over it, a critic of the actor's form
    assert make_agent("separate", policy_kwargs={"model": str(tmp_path / "folder")}).policy._value_is_copy


# ------------------------------------------------------------------------------------------- errors


def test_value_models_that_do_not_fit_are_named(tmp_path):
    classifier = transformers.LlamaForSequenceClassification
    three = saved(classifier(config_of(num_labels=3)), tmp_path / "three")
    with pytest.raises(ConfigurationError, match="has 3 classes; give a reward model with one score"):
        make_agent(three)
    small = saved(classifier(config_of(vocabulary=VOCABULARY - 1, num_labels=1)), tmp_path / "small")
    with pytest.raises(TokenizerError, match=r"has 40 entries and the value model only 39 \(value='.*small'\)"):
        make_agent(small)
    short = saved(transformers.LlamaForCausalLM(config_of(positions=CONTEXT - 1)), tmp_path / "short")
    with pytest.raises(ConfigurationError, match="max_context is 48 tokens and the value model's only 47"):
        make_agent(short)
    bert = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=CONTEXT, num_labels=1,
    )  # fmt: skip
    encoder = saved(transformers.BertForSequenceClassification(bert), tmp_path / "bert")
    with pytest.raises(ModelError, match="BertForSequenceClassification, whose score is not a linear function"):
        make_agent(encoder)
    with pytest.raises(ModelError, match="there is no model folder"):
        make_agent(str(tmp_path / "nothing"))
