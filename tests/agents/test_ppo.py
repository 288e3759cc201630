"""What a token-level PPO has to get right, a test a point."""

import copy
import zipfile

import numpy as np
import pytest
import stable_baselines3
import torch
import transformers
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import CONTEXT, MODELS, VOCABULARY, ToyEnv

from textgym import TokenVectorEnv
from textgym.agents import PPO, AdaptiveKL, CausalLMPolicy
from textgym.agents.dqn import CausalLMQPolicy
from textgym.agents.segments import TokenRolloutBuffer
from textgym.errors import CheckpointError, ConfigurationError, ModelError, TokenizerError


def make_agent(shape="llama", env=None, n_envs=4, **kwargs):
    torch.manual_seed(0)
    policy_kwargs = {"model": MODELS[shape]()} | kwargs.pop("policy_kwargs", {})
    env = DummyVecEnv([env or (lambda: ToyEnv(2, 4))] * n_envs)
    settings = {
        "n_steps": 12,
        "batch_size": 24,
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "seed": 1,
        "device": "cpu",
    } | kwargs
    return PPO("CausalLMPolicy", env, policy_kwargs=policy_kwargs, **settings)


class Ratios(BaseCallback):
    """Keeps, of each rollout, the log-ratio of a pass of the update over it, before the update."""

    def __init__(self):
        super().__init__()
        self.log_ratios = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        samples = self.model.rollout_buffer.samples()
        self.model.policy.set_training_mode(True)
        with torch.no_grad():
            _, log_prob, _ = self.model.policy.evaluate_actions(samples.observations, samples.actions)
        self.log_ratios.append((log_prob - samples.old_log_prob).cpu().numpy())


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_before_the_first_update(shape, temperature):
    ratios = Ratios()
    make_agent(shape, policy_kwargs={"temperature": temperature}).learn(3 * 48, callback=ratios)
    assert len(ratios.log_ratios) == 3
    assert np.abs(np.expm1(np.concatenate(ratios.log_ratios))).max() <= 1e-5


def test_bfloat16_uses_the_updates_own_log_probabilities():
    ratios = Ratios()
    make_agent(policy_kwargs={"dtype": "bfloat16"}).learn(2 * 48, callback=ratios)
    assert np.abs(np.concatenate(ratios.log_ratios)).max() <= 1e-6


def test_dropout_is_off_in_the_update_while_train_mode_is_on():
    agent = make_agent("gpt2")
    agent.learn(48)
    assert agent.policy.model.training
    ids = torch.arange(8)[None]
    torch.testing.assert_close(agent.policy.model(ids).logits, agent.policy.model(ids).logits, rtol=0, atol=0)


class Watch(BaseCallback):
    """Keeps the raw rewards of each step, and what was logged at the end of each rollout."""

    def __init__(self):
        super().__init__()
        self.rewards, self.logs = [], []

    def _on_step(self):
        self.rewards.append(self.locals["rewards"].copy())
        return True

    def _on_rollout_end(self):
        self.logs.append(dict(self.logger.name_to_value))


def test_the_kl_is_subtracted_from_each_tokens_reward():
    agent = make_agent(kl_coef=0.5, ref_model=MODELS["gpt2"]())
    seen = Watch()
    agent.learn(48, callback=seen)
    buffer = agent.rollout_buffer
    samples, index = buffer.samples(), buffer.all_indices()
    raw = np.stack(seen.rewards)
    log_ratio = []
    for step, env in zip(*index, strict=True):  # each action alone, against the reference's own forward pass
        segment = next(s for s in buffer.segments if s.environment == env and s.first_step <= step <= s.last_step)
        ids = buffer.streams[env, segment.start : buffer.positions[step, env] + 1]
        logits = agent.reference(torch.as_tensor(ids)[None]).logits[0, -1]
        log_ratio.append(buffer.log_probs[step, env] - logits.log_softmax(-1)[buffer.actions[step, env]].item())
    np.testing.assert_allclose(raw[index] - buffer.rewards[index], 0.5 * np.array(log_ratio), atol=2e-5)
    assert len(samples.actions) == 48


def test_the_kl_to_the_starting_point_is_zero_at_first_and_grows():
    agent = make_agent(kl_coef=0.1)
    seen = Watch()
    agent.learn(96, callback=seen)
    first, second = (log["rollout/kl"] for log in seen.logs)
    assert first == pytest.approx(0, abs=1e-6)
    assert abs(second) > 1e-4


def test_adaptive_kl_follows_the_papers_rule():
    coefficient = AdaptiveKL(initial=0.2, target=5.0)
    coefficient.update(20.0, n_episodes=2)  # clipped error 0.2
    assert coefficient(1.0) == pytest.approx(0.2 * 1.02)
    coefficient.update(4.0, n_episodes=0)  # a rollout in the middle of its episodes
    assert coefficient(1.0) == pytest.approx(0.2 * 1.02)
    coefficient.update(5.0, n_episodes=2)  # error -0.1
    assert coefficient(1.0) == pytest.approx(0.2 * 1.02 * 0.99)


def test_adaptive_kl_is_told_of_whole_episodes(monkeypatch):
    told = []
    monkeypatch.setattr(AdaptiveKL, "update", lambda self, *numbers: told.append(numbers))
    agent = make_agent(env=lambda: ToyEnv(turns=2, turn_tokens=5), n_steps=3, batch_size=12, kl_coef=AdaptiveKL())
    agent.learn(240)
    episodes = sum(n for _, n in told)
    assert len(told) == 20
    assert 25 < episodes < 48  # of 240 steps, in episodes of at most 10
    assert any(n == 0 for _, n in told)


def test_a_scheduled_coefficient_is_logged():
    agent = make_agent(kl_coef=lambda progress: 0.1 * progress)
    seen = Watch()
    agent.learn(96, callback=seen)
    assert [log["rollout/kl_coef"] for log in seen.logs] == pytest.approx([0.1, 0.05])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapters_reference_is_its_base_model():
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    agent = make_agent(kl_coef=0.1, policy_kwargs={"peft_config": adapter})
    seen = Watch()
    agent.learn(96, callback=seen)
    assert agent.reference is None
    assert seen.logs[0]["rollout/kl"] == pytest.approx(0, abs=1e-6)
    assert abs(seen.logs[1]["rollout/kl"]) > 1e-6
    trained = {name for name, p in agent.policy.named_parameters() if p.requires_grad}
    assert all("lora" in name or "value_head" in name for name in trained)


def test_unscored_episodes_stay_out_of_the_update():
    agent = make_agent(env=lambda: ToyEnv(1, 4, fails=True), n_steps=24)
    seen = Watch()
    agent.learn(96, callback=seen)
    buffer = agent.rollout_buffer
    assert buffer.n_unscored > 0
    step, env = buffer.all_indices()
    kept = np.zeros_like(buffer.unscored)
    kept[step, env] = True
    assert not (kept & buffer.unscored).any()
    ends = np.vstack([buffer.episode_starts[1:], agent._last_episode_starts]).astype(bool)
    for s, e in zip(*np.nonzero(buffer.unscored), strict=True):
        assert ends[s, e]
        first = s
        while buffer.episode_starts[first, e] == 0 and first > 0:
            first -= 1
        assert not kept[first : s + 1, e].any()
    assert seen.logs[0]["rollout/unscored"] == buffer.n_unscored


def test_the_explained_variance_is_of_what_is_trained_on():
    agent, seen = make_agent(env=lambda: ToyEnv(1, 4, fails=True)), Watch()
    torch.nn.init.normal_(agent.policy.value_head.weight)
    agent.learn(48, callback=seen)
    buffer = agent.rollout_buffer
    assert buffer.n_unscored
    logged = agent.logger.name_to_value["train/explained_variance"]
    values, returns = (array[buffer.all_indices()] for array in (buffer.values, buffer.returns))
    assert logged == pytest.approx(1 - np.var(returns - values) / np.var(returns))


def test_a_rollout_with_nothing_scored_skips_its_update(monkeypatch):
    monkeypatch.setattr(ToyEnv, "step", _always_unscored(ToyEnv.step))
    agent = make_agent(env=lambda: ToyEnv(1, 2))
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(48)
    after = agent.policy.state_dict()
    assert agent.rollout_buffer.n_trainable <= 4  # the unfinished episodes at the rollout's end
    agent.rollout_buffer.segments = []
    agent.policy.load_state_dict(before)
    agent.train()
    assert all(torch.equal(before[name], value) for name, value in agent.policy.state_dict().items())
    assert after.keys() == before.keys()


def _always_unscored(step):
    def unscored(self, action):
        obs, _, terminated, truncated, _ = step(self, action)
        return obs, 0.0, terminated, truncated, {"score_status": "broken"}

    return unscored


def test_a_rollout_of_episodes_warns_of_no_minibatch_that_n_steps_would_leave_over():
    make_agent(n_episodes=4, n_steps=7, batch_size=5)  # a warning is an error here


@pytest.mark.parametrize("n_episodes", [3, 4, 10])
def test_rollouts_of_whole_episodes(n_episodes):
    agent = make_agent(n_episodes=n_episodes, kl_coef=0.1)
    agent.learn(100)
    buffer = agent.rollout_buffer
    assert len(buffer.segments) == n_episodes
    ends = np.vstack([buffer.episode_starts[1:], agent._last_episode_starts]).astype(bool)
    for segment in buffer.segments:
        assert buffer.episode_starts[segment.first_step, segment.environment]
        assert ends[segment.last_step, segment.environment]
    assert buffer.rewards.shape == buffer.advantages.shape == (buffer.pos, 4)


@pytest.mark.parametrize("lengths", [[90, 5], [30, 70, 300, 10], [200, 75]])
def test_the_buffer_holds_prompts_of_any_length(lengths):
    """Streams that must grow by little, by more than double, and again."""
    buffer = TokenRolloutBuffer(4, *spaces_of(width := 512), device="cpu", n_envs=1)
    ids = np.arange(width)[None]
    for length in lengths:
        mask = (ids < length).astype(np.int8)
        observation = {"input_ids": ids, "attention_mask": mask, "agent_mask": 0 * mask}
        buffer.add(observation, np.zeros((1, 1)), np.zeros(1), np.ones(1), torch.zeros(1), torch.zeros(1))
    starts = np.cumsum([0, *lengths])
    for start, length in zip(starts, lengths, strict=False):
        assert buffer.streams[0, start : start + length].tolist() == list(range(length))


def spaces_of(width):
    env = ToyEnv(max_context=width)
    return env.observation_space, env.action_space


def test_gae_ignores_the_environments_tokens():
    """Advantages depend on rewards and values at the agent's tokens alone: SB3's formula over the same arrays."""
    agent = make_agent(gamma=0.97, gae_lambda=0.9)
    agent.learn(48)
    buffer = agent.rollout_buffer
    T, E = buffer.rewards.shape
    for e in range(E):
        advantage = 0.0
        for t in reversed(range(T - 1)):
            going_on = 1 - buffer.episode_starts[t + 1, e]
            delta = buffer.rewards[t, e] + 0.97 * going_on * buffer.values[t + 1, e] - buffer.values[t, e]
            if t == T - 2:  # the last step bootstraps from a value that the buffer does not keep
                advantage = buffer.advantages[T - 1, e]
            advantage = delta + 0.97 * 0.9 * going_on * advantage
            assert buffer.advantages[t, e] == pytest.approx(advantage, abs=1e-5)


def test_the_end_token_is_trained_on():
    agent = make_agent()
    agent.learn(48)
    samples = agent.rollout_buffer.samples()
    assert len(samples.actions) == 48  # every action of the rollout, those that ended a turn too
    np.testing.assert_array_equal(np.sort(samples.actions.numpy()), np.sort(agent.rollout_buffer.actions.ravel()))


def test_minibatches_cover_each_action_once_and_keep_near_the_batch_size():
    agent = make_agent(n_steps=42)
    agent.learn(168)
    sizes = [len(batch.actions) for batch in agent.rollout_buffer.get(24)]
    assert sum(sizes) == 168
    assert all(abs(size - 24) <= 8 for size in sizes[:-1])


def test_log_probabilities_do_not_depend_on_the_batch():
    agent = make_agent(n_steps=42)
    agent.learn(168)
    buffer = agent.rollout_buffer
    with torch.no_grad():
        together = agent.policy.evaluate_actions(buffer.samples().observations, buffer.samples().actions)[1]
        ordered = sorted(buffer.segments, key=lambda s: s.stop - s.start)
        alone = []
        for segment in ordered:
            batch = buffer.samples([segment])
            alone.append(agent.policy.evaluate_actions(batch.observations, batch.actions)[1])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_head_wider_than_the_tokenizer_is_cut():
    agent = make_agent("qwen2")
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight[VOCABULARY:] = 100.0
    agent.learn(48)
    assert agent.rollout_buffer.actions.max() < VOCABULARY


def test_capped_logits_are_respected():
    """A model that does more after its head than a product: the log-probabilities are the model's own."""
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, max_position_embeddings=CONTEXT, final_logit_softcapping=0.5,
    )  # fmt: skip
    agent = make_agent(policy_kwargs={"model": transformers.Gemma2ForCausalLM(config)})
    assert not agent.policy.plain_head
    agent.policy.model.get_output_embeddings().weight.data *= 20
    obs = agent.env.reset()
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    length = int(tensors["attention_mask"][0].sum())
    wanted = agent.policy.model(tensors["input_ids"][:1, :length]).logits[0, -1].log_softmax(-1)
    ours = agent.policy.get_distribution(tensors).distribution.logits[0]
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    agent.learn(48)
    capped = agent.policy.model
    agent = make_agent(kl_coef=0.1, ref_model=capped)  # a reference with another kind of head than the policy's
    assert agent.policy.plain_head
    agent.learn(48)
    buffer = agent.rollout_buffer
    segment = buffer.segments[0]
    ids = buffer.streams[segment.environment, segment.start : buffer.positions[0, segment.environment] + 1]
    wanted = capped(torch.as_tensor(ids)[None]).logits[0, -1].log_softmax(-1)[buffer.actions[0, segment.environment]]
    assert buffer.reference_log_probs[0, segment.environment] == pytest.approx(wanted.item(), abs=1e-5)


def test_same_seed_same_result():
    a, b, c = (make_agent(seed=seed).learn(96).policy.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_other_policies_are_sb3s_own():
    ours = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(128)
    stock = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(128)
    for (name, a), b in zip(ours.policy.state_dict().items(), stock.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# ---------------------------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("reference", [None, "gpt2"])
def test_save_and_load_keep_weights_and_reference(tmp_path, reference):
    agent = make_agent(kl_coef=0.1, ref_model=None if reference is None else MODELS[reference]())
    agent.learn(48)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, loaded.policy.state_dict()[name]), name
    for name, value in agent.reference.state_dict().items():
        assert torch.equal(value, loaded.reference.state_dict()[name]), name
    for one in (agent, loaded):
        one.set_env(DummyVecEnv([lambda: ToyEnv(2, 4)] * 4))
        one.set_random_seed(7)
        one.learn(48, reset_num_timesteps=False)
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(value, loaded.policy.state_dict()[name], atol=1e-6, rtol=0)


def test_weights_are_loaded_in_their_own_precision(tmp_path):
    agent = make_agent(kl_coef=0.1, policy_kwargs={"model": MODELS["llama"]().to(torch.bfloat16)})
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    assert {loaded.policy.model.dtype, loaded.reference.dtype} == {torch.bfloat16}
    assert agent.policy.model.config.dtype != torch.bfloat16  # the model itself is left as it was


def test_a_reference_that_was_not_saved_is_named(tmp_path):
    make_agent().save(tmp_path / "agent.zip")
    with pytest.raises(ConfigurationError, match="has no reference model"):
        PPO.load(tmp_path / "agent.zip", kl_coef=0.1)


def test_environments_that_are_set_bring_their_tokenizer(tmp_path, capitals, tokenizer):
    def environments():
        return TokenVectorEnv(capitals, 2, reward=lambda: 0.0, tokenizer=tokenizer, max_context=CONTEXT)

    config = MODELS["llama"]().config
    config.vocab_size = len(tokenizer)
    agent = PPO("CausalLMPolicy", environments(), n_steps=4, batch_size=8, policy_kwargs={"model": config})
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip")
    assert loaded.policy.tokenizer is None
    loaded.set_env(environments())
    assert loaded.policy.tokenizer is tokenizer


def test_the_zip_holds_no_pickled_module(tmp_path):
    agent = make_agent(kl_coef=0.1)
    agent.save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        data = archive.read("data").decode()
    assert "LlamaForCausalLM" not in data.replace('"LlamaForCausalLM"', "")
    assert isinstance(agent.policy_kwargs["model"], torch.nn.Module)  # the agent itself is left as it was
    assert len(data) < 100_000


def test_save_pretrained_is_an_ordinary_folder(tmp_path):
    agent = make_agent()
    agent.learn(96)
    agent.policy.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors"}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in agent.policy.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    again = PPO("CausalLMPolicy", agent.get_env(), policy_kwargs={"model": str(tmp_path)}, device="cpu", n_steps=16)
    assert torch.equal(again.policy.value_head.weight, agent.policy.value_head.weight)
    assert float(again.policy.value_head.weight.detach().abs().max()) > 0


def test_save_pretrained_keeps_a_separate_value_model(tmp_path):
    agent = make_agent(policy_kwargs={"value": "separate"})
    agent.learn(96)
    agent.policy.save_pretrained(tmp_path)
    kwargs = {"model": str(tmp_path), "value": "separate"}
    again = PPO("CausalLMPolicy", agent.get_env(), policy_kwargs=kwargs, device="cpu", n_steps=16)
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name
    shared = PPO("CausalLMPolicy", agent.get_env(), policy_kwargs={"model": str(tmp_path)}, device="cpu", n_steps=16)
    assert not shared.policy.value_head.weight.detach().any()


def test_broken_zips_are_named(tmp_path):
    agent = make_agent()
    agent.save(tmp_path / "agent.zip")
    content = (tmp_path / "agent.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.zip.*cut off"):
        PPO.load(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("holiday.txt", "sun")
    with pytest.raises(CheckpointError, match=r"no data, policy\.pth"):
        PPO.load(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError):
        PPO.load(tmp_path / "absent.zip")


# ---------------------------------------------------------------------------------------------------- bad arguments


def test_bad_arguments_are_named():
    with pytest.raises(ConfigurationError, match=r"kl_coef.* not for ActorCriticPolicy"):
        PPO("MlpPolicy", "CartPole-v1", kl_coef=0.1)
    with pytest.raises(ConfigurationError, match="needs a token environment"):
        PPO("CausalLMPolicy", "CartPole-v1", policy_kwargs={"model": MODELS["gpt2"]()})
    with pytest.raises(ConfigurationError, match="'k1', 'k2', 'k3', not 'kl'"):
        make_agent(kl_estimator="kl")
    for wrong in (-1.0, None):
        with pytest.raises(ConfigurationError, match=f"from 0 up.* not {wrong}"):
            make_agent(kl_coef=wrong)
    for wrong in (0, 2.5):
        with pytest.raises(ConfigurationError, match=f"a whole number from 1 up, not {wrong}"):
            make_agent(n_episodes=wrong)
    with pytest.raises(ConfigurationError, match="CausalLMQPolicy has action values, which DQN is for"):
        PPO(CausalLMQPolicy, DummyVecEnv([ToyEnv]), policy_kwargs={"model": MODELS["llama"]()})
    with pytest.raises(ConfigurationError, match="dtype must be 'float32' or 'bfloat16', not 'float16'"):
        make_agent(policy_kwargs={"dtype": "float16"})
    with pytest.raises(ConfigurationError, match="temperature must be positive, not 0"):
        make_agent(policy_kwargs={"temperature": 0})
    with pytest.raises(ConfigurationError, match=f"max_context is 64 tokens and the model's only {CONTEXT}"):
        make_agent(env=lambda: ToyEnv(max_context=64))


def test_models_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ModelError, match="there is no model folder '/no/such/folder'"):
        make_agent(policy_kwargs={"model": "/no/such/folder"})
    with pytest.raises(ModelError, match="cannot load the model"):
        make_agent(policy_kwargs={"model": str(tmp_path)})
    with pytest.raises(ModelError, match="no language-model head"):
        make_agent(policy_kwargs={"model": MODELS["gpt2"]().base_model})
    short = transformers.LlamaConfig(**(MODELS["llama"]().config.to_dict() | {"max_position_embeddings": 20}))
    with pytest.raises(ConfigurationError, match=f"max_context is {CONTEXT} tokens and the reference's only 20"):
        make_agent(ref_model=transformers.LlamaForCausalLM(short))
    small = transformers.GPT2Config(vocab_size=10, n_layer=1, n_embd=8, n_head=2, n_positions=CONTEXT)
    small.bos_token_id = small.eos_token_id = 1
    with pytest.raises(TokenizerError, match="has 40 entries and the model's head only 10"):
        make_agent(policy_kwargs={"model": transformers.GPT2LMHeadModel(small)})


def test_predictions_at_the_end_of_a_rollout_are_the_models():
    class Predicting(BaseCallback):
        def _on_rollout_end(self):
            policy, obs = self.model.policy, other.reset()
            tensors = policy.obs_to_tensor(obs)[0]
            found.append((self.model.predict(obs, deterministic=True)[0], policy.predict_values(tensors)))
            decoders, policy._decoders = policy._decoders, None
            found.append((self.model.predict(obs, deterministic=True)[0], policy.predict_values(tensors)))
            policy._decoders = decoders

        def _on_step(self):
            return True

    agent, found = make_agent(), []
    torch.nn.init.normal_(agent.policy.value_head.weight)
    other = DummyVecEnv([ToyEnv] * 4)
    agent.learn(48, callback=Predicting())
    assert len(found) == 2
    np.testing.assert_array_equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


def test_predict_takes_single_and_batched_observations():
    agent = make_agent()
    obs = agent.env.reset()
    actions, state = agent.predict(obs, deterministic=True)
    assert actions.shape == (4,)
    assert state is None
    single = {key: value[0] for key, value in obs.items()}
    assert agent.predict(single, deterministic=True)[0] == actions[0]


def test_stock_a2c_takes_the_policy():
    env = DummyVecEnv([lambda: ToyEnv(1, 4)] * 2)
    agent = stable_baselines3.A2C(CausalLMPolicy, env, policy_kwargs={"model": MODELS["llama"]()}, device="cpu")
    agent.learn(40)
