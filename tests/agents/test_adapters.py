"""LoRA in every algorithm: what moves, what the reference is, what is saved, and going on from an adapter's folder."""

import io
import math
import zipfile

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import MODELS, VOCABULARY, ToyEnv
from transformers import TrainingArguments

from textgym import Sample
from textgym.adapters import base_weights, is_adapted
from textgym.agents import (
    A2C,
    DPO,
    DQN,
    GRPO,
    PPO,
    REINFORCE,
    RLOO,
    SFT,
    CausalLMPolicy,
    Preference,
    RewardModelTrainer,
)
from textgym.agents.completions import sequence_log_probs
from textgym.agents.objectives import dpo_loss
from textgym.agents.run_settings import _max_context
from textgym.errors import ConfigurationError, ModelError
from textgym.rewards import RewardModel

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it

ON_POLICY = [A2C, PPO, REINFORCE, RLOO, GRPO]
TRAINERS = [SFT, DPO, RewardModelTrainer]
NAME = lambda algorithm: algorithm.__name__  # noqa: E731
PREFERENCES = [Preference(Sample(str(i), f"{i} or {i + 1}?"), (f" {i}", f" {i + 1}")) for i in range(8)]
SAMPLES = [Sample(str(i), f"Question {i}?", (" All is well.",)) for i in range(8)]


class Grouped(ToyEnv):
    group_size = 2

    def __init__(self, group=0):
        super().__init__(turns=2, turn_tokens=4)
        self.group, self.episode = group, 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=1000 * self.group + self.episode)


def lora(**kwargs):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], **kwargs})


def envs():
    return DummyVecEnv([lambda i=i: Grouped(i // 2) for i in range(4)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a model of the toy's vocabulary."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    MODELS["llama"]().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text_base(tokenizer, tmp_path):
    """A folder with a model of the tokenizer's vocabulary, and the tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def agent_of(algorithm, model, adapter=True, policy_kwargs=(), **kwargs):
    torch.manual_seed(1)
    settings = {"learning_rate": 1e-2, "seed": 2, "device": "cpu"}
    if algorithm is DQN:
        settings |= {"learning_starts": 10, "batch_size": 20, "train_freq": 4, "target_update_interval": 40}
    else:
        settings["kl_coef"] = 0.1
    settings |= {PPO: {"n_steps": 16, "batch_size": 32, "n_epochs": 2}, A2C: {"n_steps": 16}}.get(algorithm, {})
    settings |= {"n_episodes": 8} if issubclass(algorithm, REINFORCE) else {}
    policy_kwargs = {"model": model, "peft_config": lora() if adapter else None, **dict(policy_kwargs)}
    return algorithm("CausalLMPolicy", envs(), policy_kwargs=policy_kwargs, **settings | kwargs)


def trainer_of(algorithm, model, folder, adapter=True, **kwargs):
    torch.manual_seed(1)
    settings = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=4, num_train_epochs=3, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, seed=0,
    )  # fmt: skip
    data = SAMPLES if algorithm is SFT else PREFERENCES
    return algorithm(model, settings, data, peft_config=lora() if adapter else None, **kwargs)


def adapter_of(model):
    return {name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()}


def check_moved(model, before, base_before):
    """The whole adapter and nothing of the base."""
    after = adapter_of(model)
    assert any((before[name] != value).any() for name, value in after.items())
    for old, new in zip(base_before, base_weights(model), strict=True):
        torch.testing.assert_close(old, new.detach(), rtol=0, atol=0)


# ------------------------------------------------------- what is trained, what is held against it


@pytest.mark.parametrize("algorithm", [*ON_POLICY, DQN], ids=NAME)
def test_agents_train_the_adapter_alone(algorithm, base):
    agent = agent_of(algorithm, base)
    model = agent.policy.model
    before, base_before = adapter_of(model), [weight.clone() for weight in base_weights(model)]
    agent.learn(96)
    check_moved(model, before, base_before)
    assert {id(p) for group in agent.policy.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in agent.policy.parameters() if p.requires_grad
    }
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict().values()
    assert sorted(float(weight.double().sum()) for weight in fresh) == pytest.approx(
        sorted(float(weight.double().sum()) for weight in base_before), abs=0
    )


@pytest.mark.parametrize("algorithm", TRAINERS, ids=NAME)
def test_trainers_train_the_adapter_alone(algorithm, text_base, tmp_path):
    trainer = trainer_of(algorithm, text_base, tmp_path)
    before, base_before = adapter_of(trainer.model), [weight.clone() for weight in base_weights(trainer.model)]
    trainer.train()
    check_moved(trainer.model, before, base_before)
    if algorithm is RewardModelTrainer:  # its head is new, and is trained beside the adapter
        after = adapter_of(trainer.model)
        (head,) = (name for name in after if "score" in name)
        assert (after[head] != before[head]).any()


def plain_log_probs(model, buffer):
    """Of a rollout's actions, in the order of ``samples()``, by a model's own forward passes."""
    found = {}
    for segment in buffer.segments:
        ids = buffer.streams[segment.environment, segment.start : segment.stop]
        log_probs = model(torch.as_tensor(ids)[None]).logits[0].log_softmax(-1)
        for step in range(segment.first_step, segment.last_step + 1):
            place = buffer.positions[step, segment.environment] - segment.start
            found[step, segment.environment] = log_probs[place, buffer.actions[step, segment.environment]].item()
    return np.array([found[key] for key in zip(*buffer.all_indices(), strict=True)])


@pytest.mark.parametrize("algorithm", ON_POLICY, ids=NAME)
def test_the_reference_is_the_base_model_before_and_after(algorithm, base):
    agent = agent_of(algorithm, base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    ratios = []
    for _ in range(3):
        agent.learn(64, reset_num_timesteps=False)  # one rollout or more, and their updates
        buffer = agent.rollout_buffer
        index = buffer.all_indices()
        np.testing.assert_allclose(buffer.reference_log_probs[index], plain_log_probs(plain, buffer), atol=2e-5)
        ratios.append(np.abs(buffer.log_probs[index] - buffer.reference_log_probs[index]).max())
    assert ratios[-1] > 1e-3
    assert agent.reference is None


def test_dpos_reference_is_the_base_model_after_training(text_base, tmp_path):
    trainer = trainer_of(DPO, text_base, tmp_path, beta=0.5)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    trainer.model.eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(text_base)
    of = [
        sequence_log_probs(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"]).chunk(2)
        for model in (trainer.model, plain)
    ]
    expected = dpo_loss(*of[0], *of[1], 0.5)[0].item()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=1e-5)
    assert expected < math.log(2) - 0.01


def test_an_adapter_that_cannot_be_switched_off_is_held_against_a_copy_of_its_start(base):
    agent = agent_of(
        PPO, base, policy_kwargs={"peft_config": lora(target_modules=["q_proj"], init_lora_weights="olora")}
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    agent.learn(128)
    assert agent.reference is not None
    buffer = agent.rollout_buffer
    found = buffer.reference_log_probs[buffer.all_indices()]
    np.testing.assert_allclose(found, plain_log_probs(plain, buffer), atol=1e-4)


def test_dqns_target_shares_the_base_and_follows_with_the_adapter(base):
    agent = agent_of(DQN, base, tau=0.3, target_update_interval=4)
    online, target = agent.policy.model, agent.policy.target[0]
    assert {id(w) for w in base_weights(online)} == {id(w) for w in base_weights(target)}
    plain = [weight.clone() for weight in base_weights(online)]
    agent.learn(96)
    check_moved(online, adapter_of(target), plain)
    before = [parameter.clone() for parameter in agent.q_net_target.parameters()]
    agent._on_step()
    for old, new, own in zip(before, agent.q_net_target.parameters(), agent.q_net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.7 * old + 0.3 * own)
    for old, new in zip(plain, base_weights(target), strict=True):
        torch.testing.assert_close(old, new.detach(), rtol=0, atol=0)


# ------------------------------------------------------------------------------- saving and loading


def outputs(agent, observation=None):
    """Log-probabilities of the next token, values, and the log-probabilities under the reference."""
    if observation is None:
        env = envs()
        env.seed(7)
        observation = env.reset()
    tensors, _ = agent.policy.obs_to_tensor(observation)
    with torch.no_grad():
        found = [agent.policy.get_distribution(tensors).distribution.logits, agent.policy.predict_values(tensors)]
        if isinstance(agent, DQN):
            head = agent.policy.target[1]
            found.append(head(agent.policy.last_hidden(tensors)[0]))
        elif agent.reference is not None:
            found.append(agent.reference(tensors["input_ids"].long()).logits)
        else:
            with agent.policy.model.disable_adapter():
                found.append(agent.policy.model(tensors["input_ids"].long()).logits)
    return found


def check_same(one, other):
    for a, b in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def tensors_of(path, name="policy.pth"):
    with zipfile.ZipFile(path) as archive:
        return torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def base_shapes(folder):
    return [tuple(tensor.shape) for tensor in load_file(f"{folder}/model.safetensors").values() if tensor.dim() == 2]


@pytest.mark.parametrize("algorithm", [*ON_POLICY, DQN], ids=NAME)
def test_an_agents_zip_holds_the_adapter_only(algorithm, base, tmp_path):
    agent = agent_of(algorithm, base)
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    saved = tensors_of(tmp_path / "agent.zip")
    assert all("lora_" in name or "value_head" in name or name.startswith("target.1.") for name in saved)
    assert not {tuple(tensor.shape) for tensor in saved.values()} & {*base_shapes(base)}
    own = sum(tensor.numel() for tensor in saved.values())
    assert own <= 3 * sum(p.numel() for p in agent.policy.parameters() if p.requires_grad)
    loaded = algorithm.load(tmp_path / "agent.zip", env=envs(), device="cpu")
    check_same(agent, loaded)
    if algorithm is DQN:  # which has forgotten what it would replay
        loaded.learn(64)
        return
    assert loaded.reference is None
    for one in (agent, loaded):
        one.set_env(envs())
        one.set_random_seed(5)
        one.learn(64, reset_num_timesteps=False)
    check_same(agent, loaded)
    np.testing.assert_allclose(
        agent.rollout_buffer.reference_log_probs, loaded.rollout_buffer.reference_log_probs, atol=1e-6
    )


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=NAME)
def test_an_agents_folder_holds_the_adapter_only(algorithm, base, tmp_path):
    agent = agent_of(algorithm, base)
    agent.learn(96)
    agent.policy.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()} - {"README.md"}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"}
    assert all("lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert set(load_file(tmp_path / "value_head.safetensors")) == {"weight", "bias"}
    again = agent_of(algorithm, str(tmp_path), adapter=False)
    for a, b in zip(outputs(agent)[:2], outputs(again)[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    others = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(others(ids).logits, agent.policy.model(ids).logits, atol=1e-6, rtol=0)
    assert _max_context(str(tmp_path)) == others.config.max_position_embeddings


@pytest.mark.parametrize("algorithm", [SFT, DPO], ids=NAME)
def test_a_trainers_folder_holds_the_adapter_only(algorithm, text_base, tmp_path):
    trainer = trainer_of(algorithm, text_base, tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(tmp_path / "saved" / "adapter_model.safetensors"))
    ids = torch.arange(9)[None]
    others = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(others(ids).logits, trainer.model.eval()(ids).logits, atol=1e-6, rtol=0)


def test_a_reward_models_folder_holds_adapter_and_head(text_base, tmp_path):
    trainer = trainer_of(RewardModelTrainer, text_base, tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert sorted(name for name in saved if "lora_" not in name) == ["base_model.model.score.weight"]
    episodes = [episode for preference in PREFERENCES[:3] for episode in preference.episodes()]
    expected = [score.value for score in trainer.reward.score(episodes)]
    assert np.ptp(expected) > 0.01
    loaded = RewardModel(str(tmp_path / "saved"))
    assert [score.value for score in loaded.score(episodes)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, RLOO, DQN], ids=NAME)
def test_a_base_model_given_as_an_object_goes_along(algorithm, base, tmp_path):
    """It need not be what its name says any more, or has no name."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data += 0.1 * torch.randn(model.lm_head.weight.shape)
    agent = agent_of(algorithm, model)
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    check_same(agent, algorithm.load(tmp_path / "agent.zip", device="cpu"))
    agent.policy.save_pretrained(tmp_path / "named")  # by the name of the model that the object was once
    with pytest.raises(ModelError, match="not those that the adapter was trained on"):
        agent_of(algorithm, str(tmp_path / "named"), adapter=False)
    nameless = agent_of(algorithm, MODELS["llama"]())
    nameless.policy.save_pretrained(tmp_path / "folder")
    with pytest.raises(ModelError, match="does not name the adapter's base model"):
        agent_of(algorithm, str(tmp_path / "folder"), adapter=False)


def test_a_peft_model_is_taken_and_given_back(base, tmp_path):
    adapted = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), lora())
    agent = agent_of(PPO, adapted, adapter=False)
    agent.learn(64)
    assert agent.policy.model is adapted
    agent.save(tmp_path / "agent.zip")
    check_same(agent, PPO.load(tmp_path / "agent.zip", device="cpu"))


def test_another_base_model_than_the_adapters_is_found_out(base, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "base")
    agent = agent_of(PPO, str(tmp_path / "base"))
    agent.save(tmp_path / "agent.zip")
    agent.policy.save_pretrained(tmp_path / "folder")
    with torch.no_grad():
        model.model.embed_tokens.weight *= 1.01
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="not those that the adapter was trained on"):
        PPO.load(tmp_path / "agent.zip")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="there is no model folder"):
        PPO.load(tmp_path / "agent.zip")
    with pytest.raises(ModelError, match=r"holds an adapter whose base model cannot be had.*base_model_name_or_path"):
        agent_of(PPO, str(tmp_path / "folder"), adapter=False)


def test_a_separate_value_model_has_an_adapter_of_its_own(base, tmp_path):
    agent = agent_of(PPO, base, policy_kwargs={"value": "separate"})
    agent.learn(64)
    trunk = agent.policy.value_trunk
    assert all("lora_" in name for name, p in trunk.named_parameters() if p.requires_grad)
    agent.save(tmp_path / "agent.zip")
    assert all("lora_" in name or "value_head" in name for name in tensors_of(tmp_path / "agent.zip"))
    check_same(agent, PPO.load(tmp_path / "agent.zip", device="cpu"))
    agent.policy.save_pretrained(tmp_path / "folder")
    assert all("lora_" in n for n in load_file(tmp_path / "folder" / "value_head.safetensors") if "trunk" in n)
    again = agent_of(PPO, str(tmp_path / "folder"), adapter=False, policy_kwargs={"value": "separate"})
    torch.testing.assert_close(outputs(agent)[1], outputs(again)[1], rtol=0, atol=1e-6)
    assert outputs(agent)[1].abs().max() > 0


# ------------------------------------------------------------------ going on from an adapter's folder


@pytest.fixture
def sft_folder(text_base, tmp_path):
    trainer = trainer_of(SFT, text_base, tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "sft")
    return str(tmp_path / "sft")


def text_ppo(model, **policy_kwargs):
    import textgym

    env = textgym.make_vec("textgym/Copy-v0", num_envs=4, tokenizer=model, max_context=64, max_new_tokens=6)
    settings = {"n_steps": 8, "batch_size": 32, "n_epochs": 2, "learning_rate": 1e-2, "kl_coef": 0.1, "device": "cpu"}
    return PPO("CausalLMPolicy", env, policy_kwargs={"model": model, **policy_kwargs}, seed=0, **settings)


def test_ppo_goes_on_with_the_adapter_of_sft_and_is_held_to_it(sft_folder, tmp_path):
    start = transformers.AutoModelForCausalLM.from_pretrained(sft_folder)
    agent = text_ppo(sft_folder)
    trained = adapter_of(agent.policy.model)
    assert max(value.abs().max() for name, value in trained.items() if "lora_B" in name) > 0
    fixed = [weight.clone() for weight in base_weights(agent.policy.model)]
    agent.learn(96)
    check_moved(agent.policy.model, trained, fixed)
    buffer = agent.rollout_buffer
    found = buffer.reference_log_probs[buffer.all_indices()]
    np.testing.assert_allclose(found, plain_log_probs(start, buffer), atol=2e-5)
    assert {id(w) for w in base_weights(agent.reference)} == {id(w) for w in base_weights(agent.policy.model)}
    agent.save(tmp_path / "agent.zip")
    for name in ("policy.pth", "reference.pth"):
        assert all("lora_" in key or "value_head" in key for key in tensors_of(tmp_path / "agent.zip", name))
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    observation = agent.env.reset()
    for a, b in zip(outputs(agent, observation), outputs(loaded, observation), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert {id(w) for w in base_weights(loaded.reference)} == {id(w) for w in base_weights(loaded.policy.model)}


def test_dpo_and_reward_models_go_on_from_the_adapter_of_sft(sft_folder, tmp_path):
    dpo = trainer_of(DPO, sft_folder, tmp_path, adapter=False)
    batch = dpo.data_collator([dpo.train_dataset[i] for i in range(4)])
    dpo.model.eval()
    assert dpo.compute_loss(dpo.model, batch).item() == pytest.approx(math.log(2), abs=1e-5)
    assert is_adapted(dpo.model)
    reward_model = trainer_of(RewardModelTrainer, sft_folder, tmp_path, adapter=False).model
    start = transformers.AutoModelForCausalLM.from_pretrained(sft_folder)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(reward_model.base_model(ids)[0], start.base_model(ids)[0], atol=1e-5, rtol=0)


def test_a_base_model_as_reference_is_named(sft_folder, text_base):
    agent = text_ppo(sft_folder)
    policy = agent.policy
    agent = PPO("CausalLMPolicy", agent.env, policy_kwargs={"model": sft_folder}, kl_coef=0.1, ref_model=text_base,
                n_steps=8, batch_size=32, device="cpu")  # fmt: skip
    ids = torch.arange(9)[None]
    with policy.model.disable_adapter():
        expected = policy.model(ids).logits
    torch.testing.assert_close(agent.reference(ids).logits, expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------- errors


def test_adapters_that_cannot_work_are_refused(base, tmp_path):
    adapted = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), lora())
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(ConfigurationError, match="has an adapter already"):
            agent_of(PPO, model)
    prompt_tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ConfigurationError, match="PromptTuningConfig adds tokens to the prompt"):
        agent_of(PPO, base, policy_kwargs={"peft_config": prompt_tuning})
    adapted.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot put the adapter"):
        agent_of(PPO, str(tmp_path), adapter=False)


def test_one_configuration_serves_several_models(base):
    config = lora()
    for model in (base, MODELS["llama"](), base):
        env = ToyEnv()
        CausalLMPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=model, peft_config=config)
    assert config.base_model_name_or_path is None
    assert env.action_space.n == VOCABULARY
