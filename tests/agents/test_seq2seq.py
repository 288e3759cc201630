"""Encoder-decoders as policies: against the plain transformers model, stock SB3, and themselves once saved."""

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import tiny_run
import tokenizers
import torch
import transformers
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from toy import CONTEXT, END, MODELS, VOCABULARY, ToyEnv

import textgym
from textgym import Episode
from textgym.agent import Observation
from textgym.agents import A2C, DQN, GRPO, PPO, REINFORCE, RLOO, SFT, CausalLMAgent, CausalLMPolicy, Seq2SeqLMPolicy
from textgym.agents.completions import IGNORED, Completion
from textgym.agents.playing import play_policy
from textgym.agents.run_settings import Settings
from textgym.agents.segments import SegmentGroup, TokenSegments
from textgym.agents.seq2seq import policy_class_of, split_turns
from textgym.agents.training import Training
from textgym.agents.warm_start import imitate
from textgym.errors import ConfigurationError, ModelError, TokenizerError

START = 3


def t5(vocabulary=VOCABULARY, start=START, **kwargs):
    """T5's own shape: the embeddings are tied, and the decoder's states are scaled before the head."""
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=start,
        dropout_rate=0.1, **kwargs,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def bart(positions=CONTEXT):
    """BART's shape: absolute positions, and logits with a bias that no layer has."""
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=positions,
        pad_token_id=0, bos_token_id=2, eos_token_id=END, forced_eos_token_id=None, decoder_start_token_id=END,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.copy_(torch.randn(1, VOCABULARY))
    return model


SHAPES = {
    "t5": t5,
    "t5-1.1": lambda: t5(VOCABULARY + 9, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": bart,
}


def make_agent(shape="t5", algorithm=PPO, env=None, n_envs=4, **kwargs):
    torch.manual_seed(0)
    policy_kwargs = {"model": SHAPES[shape]()} | kwargs.pop("policy_kwargs", {})
    env = env or DummyVecEnv([lambda: ToyEnv(2, 4)] * n_envs)
    settings = {"learning_rate": 1e-3, "seed": 1, "device": "cpu"}
    if issubclass(algorithm, PPO):
        settings |= {"n_steps": 12, "batch_size": 24, "n_epochs": 2}
    return algorithm("Seq2SeqLMPolicy", env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})


class Rollouts(BaseCallback):
    """Keeps what each action was chosen on and with which log-probability, and calls a function on each rollout."""

    def __init__(self, at_end=lambda agent, seen: None):
        super().__init__()
        self.at_end, self.seen = at_end, []

    def _on_rollout_start(self):
        self.seen = []

    def _on_step(self):
        names = ("obs_tensor", "clipped_actions", "log_probs")
        self.seen.append(tuple(copy.deepcopy(self.locals[name]) for name in names))
        return True

    def _on_rollout_end(self):
        self.at_end(self.model, self.seen)


def update_log_probs(agent, samples):
    """By a pass of the update: in train mode, on segments."""
    agent.policy.set_training_mode(True)
    with torch.no_grad():
        return agent.policy.evaluate_actions(samples.observations, samples.actions)[1]


@torch.no_grad()
def plain_log_probs(model, seen, temperature=1.0, closing=(END,)):
    """(T, E), each from the model's own forward pass on a prompt and the reply so far, as anyone would write it."""
    found = []
    for obs, actions, _ in seen:
        for row, action in enumerate(actions):
            length = int(obs["attention_mask"][row].sum())
            ids, mine = (obs[key][row, :length].tolist() for key in ("input_ids", "agent_mask"))
            start = length
            while mine[start - 1]:
                start -= 1
            prompt, reply = torch.tensor([[*ids[:start], *closing]]), torch.tensor([[*ids[start:], int(action)]])
            logits = model(input_ids=prompt, labels=reply).logits[0, -1, :VOCABULARY] / temperature
            found.append(float(logits.log_softmax(-1)[int(action)]))
    return np.array(found).reshape(len(seen), -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("closed", "temperature"), [(True, 0.7), (False, 1.0)])
def test_log_probabilities_are_those_of_the_plain_model(shape, closed, temperature):
    """In the rollout and in the update, over turns, restarts and cut rollouts."""
    gaps = []

    def compare(agent, seen):
        wanted = plain_log_probs(agent.policy.model, seen, temperature, (END,) if closed else ())
        gaps.append(wanted - np.stack([log_probs.numpy() for _, _, log_probs in seen]))
        buffer = agent.rollout_buffer
        gaps.append(update_log_probs(agent, buffer.samples()).numpy() - wanted[buffer.all_indices()])

    policy_kwargs = {"temperature": temperature, "encoder_eos": closed}
    agent = make_agent(shape, n_steps=7, batch_size=28, policy_kwargs=policy_kwargs)
    agent.learn(3 * 28, callback=Rollouts(compare))
    gaps = np.concatenate([gap.ravel() for gap in gaps])
    assert len(gaps) == 6 * 28
    assert np.abs(gaps).max() <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_steps", [12, 5])
def test_the_ratio_is_one_before_the_first_update(shape, n_steps):
    ratios = []

    def compare(agent, seen):
        samples = agent.rollout_buffer.samples()
        ratios.append(torch.exp(update_log_probs(agent, samples) - samples.old_log_prob))

    env = DummyVecEnv([lambda: ToyEnv(2, 4), lambda: gym.wrappers.TimeLimit(ToyEnv(3, 4), 7)] * 2)
    agent = make_agent(shape, env=env, n_steps=n_steps, batch_size=24 if n_steps == 12 else 20)
    agent.learn(4 * n_steps * 4, callback=Rollouts(compare))
    assert len(ratios) == 4
    assert float((torch.cat(ratios) - 1).abs().max()) <= 1e-5


def test_a_turn_that_began_in_an_earlier_rollout_goes_on():
    """What the agent wrote of it before is the decoder's to read, though it is no action of this rollout."""
    cut, right, wrong = [], [], []

    def compare(agent, seen):
        samples = agent.rollout_buffer.samples()
        groups = samples.observations.groups
        masks = [written_in_this_rollout(group) for group in groups]
        cut.append(any(bool((group.agent_mask > mask).any()) for group, mask in zip(groups, masks, strict=True)))
        forgotten = (replace(group, agent_mask=mask) for group, mask in zip(groups, masks, strict=True))
        samples_without = samples._replace(observations=TokenSegments(tuple(forgotten)))
        for kept, of in ((right, samples), (wrong, samples_without)):
            kept.append(float((update_log_probs(agent, of) - samples.old_log_prob).abs().max()))

    agent = make_agent(env=DummyVecEnv([lambda: ToyEnv(1, 9)] * 4), n_steps=5, batch_size=20)
    agent.learn(5 * 20, callback=Rollouts(compare))
    assert cut == [False, True, True, True, True]
    assert max(right) <= 1e-5
    assert min(wrong[1:]) > 1e-3


def written_in_this_rollout(group):
    """The actions of the group's segments that stand in its streams, (R, W) bool."""
    mask = torch.zeros_like(group.agent_mask)
    after = (group.columns + 1).clamp_max(mask.shape[1] - 1)
    mask[group.rows, after] = True
    return mask & group.agent_mask


def test_log_probabilities_and_values_do_not_depend_on_the_batch():
    agent = make_agent("bart", n_steps=20, batch_size=80)
    torch.nn.init.normal_(agent.policy.value_head.weight)
    agent.learn(80)
    buffer, policy = agent.rollout_buffer, agent.policy

    def evaluate(samples):
        with torch.no_grad():
            values, log_prob, entropy = policy.evaluate_actions(samples.observations, samples.actions)
        return torch.stack([values.flatten(), log_prob, entropy])

    ordered = sorted(buffer.segments, key=lambda s: s.stop - s.start)
    alone = torch.cat([evaluate(buffer.samples([segment])) for segment in ordered], 1)
    torch.testing.assert_close(evaluate(buffer.samples()), alone, atol=1e-5, rtol=0)
    obs = {key: torch.as_tensor(value) for key, value in agent._last_obs.items()}
    together = policy.get_distribution(obs).distribution.logits
    for row in range(4):
        single = policy.get_distribution({key: value[row : row + 1] for key, value in obs.items()})
        torch.testing.assert_close(single.distribution.logits[0], together[row], atol=1e-5, rtol=0)


def test_turns_are_cut_where_the_agent_begins_to_write():
    #                    prompt     turn     env  turn: two in one, if nothing stands between them
    ids = torch.tensor([[10, 11, 12, 20, 21, 13, 22, END, 23], [14, 15, 24, 25, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    rows = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    columns = torch.tensor([2, 3, 5, 6, 8, 2, 3])
    turns = split_turns(SegmentGroup(ids, mask, rows, columns), START, END)
    read = [row[seen.bool()].tolist() for row, seen in zip(turns.encoder_ids, turns.encoder_mask, strict=True)]
    assert read == [[10, 11, 12, END], [10, 11, 12, 20, 21, 13, END], [14, 15, END]]
    written = [
        turns.decoder_ids[row, : column + 1].tolist() for row, column in zip(turns.rows, turns.columns, strict=True)
    ]
    assert written == [[START], [START, 20], [START], [START, 22], [START, 22, END, 23], [START, 24], [START, 24, 25]]
    assert torch.equal(
        split_turns(SegmentGroup(ids, mask, rows, columns), START).encoder_mask.sum(-1), torch.tensor([3, 6, 2])
    )
    all_mine = SegmentGroup(ids[:1], torch.ones(1, 9, dtype=torch.bool), rows[:1], columns[:1])
    assert split_turns(all_mine, START).encoder_ids.tolist() == [[10]]


# ------------------------------------------------------------------------------------------------------- algorithms


class Reseed(BaseCallback):
    """Lets rollouts draw alike whatever was drawn in updates: layerdrop draws in train mode, even at zero."""

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        torch.manual_seed(self.num_timesteps)


def learned_parameters(algorithm, policy, env, model, **kwargs):
    settings = {"n_steps": 16, "batch_size": 96, "n_epochs": 3, "learning_rate": 1e-3, "seed": 3, "device": "cpu"}
    policy_kwargs = {"model": copy.deepcopy(model), "temperature": 0.8}
    agent = algorithm(policy, env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})
    agent.learn(3 * 96, callback=Reseed())
    return {name: parameter.detach() for name, parameter in agent.policy.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("turns", "limit", "kwargs"),
    [
        pytest.param(3, None, {"ent_coef": 0.01, "clip_range_vf": 0.2}, id="multi-turn-entropy-clip"),
        pytest.param(4, 7, {"gamma": 0.9}, id="truncated"),
    ],
)
def test_parameters_equal_those_of_stock_ppo(shape, turns, limit, kwargs):
    def make():
        return gym.wrappers.TimeLimit(ToyEnv(turns, 3), limit) if limit else ToyEnv(turns, 3)

    torch.manual_seed(0)
    model = SHAPES[shape]()
    start = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    ours = learned_parameters(PPO, "Seq2SeqLMPolicy", DummyVecEnv([make] * 6), model, **kwargs)
    stock = learned_parameters(stable_baselines3.PPO, Seq2SeqLMPolicy, DummyVecEnv([make] * 6), model, **kwargs)
    assert ours.keys() == stock.keys()
    assert max(float((ours[name] - stock[name]).abs().max()) for name in ours) <= 1e-5
    assert max(float((ours[name] - start[name]).abs().max()) for name in start) >= 1e-3


class Grouped(ToyEnv):
    group_size = 2


@pytest.mark.parametrize("algorithm", [A2C, REINFORCE, RLOO, GRPO], ids=lambda a: a.__name__)
def test_every_algorithm_takes_it_by_name(algorithm):
    agent = make_agent(algorithm=algorithm, env=DummyVecEnv([lambda: Grouped(2, 3)] * 4), n_episodes=4, kl_coef=0.1)
    before = copy.deepcopy(agent.policy.model.state_dict())
    agent.learn(1)
    assert any(not torch.equal(value, before[name]) for name, value in agent.policy.model.state_dict().items())


class Echo(gym.Env):
    """The prompt is two tokens, the reply one: 1.0 for the second of them."""

    def __init__(self):
        toy = ToyEnv(max_context=4)
        self.observation_space, self.action_space = toy.observation_space, toy.action_space

    def _observation(self, reply=()):
        ids = [*self.prompt, *reply]
        arrays = {"input_ids": ids, "attention_mask": [1] * len(ids), "agent_mask": [0, 0] + [1] * len(reply)}
        return {
            name: np.array(values + [0] * (4 - len(values)), self.observation_space[name].dtype)
            for name, values in arrays.items()
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.prompt = self.np_random.integers(4, 8, 2).tolist()
        return self._observation(), {}

    def step(self, action):
        return self._observation([int(action)]), float(action == self.prompt[1]), True, False, {}


def test_it_learns_to_say_what_it_reads():
    agent = make_agent(env=DummyVecEnv([Echo] * 32), n_steps=8, batch_size=64, learning_rate=3e-3, ent_coef=0.01)
    rewards = []
    agent.learn(4_000, callback=Rollouts(lambda agent, _: rewards.append(agent.rollout_buffer.rewards.mean())))
    assert np.mean(rewards[:3]) < 0.2
    assert np.mean(rewards[-3:]) > 0.6


def test_bfloat16_uses_the_updates_own_log_probabilities():
    gaps = []

    def compare(agent, seen):
        samples = agent.rollout_buffer.samples()
        gaps.append(float((update_log_probs(agent, samples) - samples.old_log_prob).abs().max()))

    make_agent(policy_kwargs={"dtype": "bfloat16"}).learn(48, callback=Rollouts(compare))
    assert max(gaps) <= 1e-6


@pytest.mark.parametrize("encoder_eos", [True, False])
def test_demonstrations_are_imitated(encoder_eos, tokenizer, tmp_path):
    """Turn by turn; the loss is transformers' own over the replies."""
    agent = make_agent(policy_kwargs={"model": t5(VOCABULARY + 9), "encoder_eos": encoder_eos})
    policy = agent.policy
    policy.tokenizer = tokenizer
    rng = np.random.default_rng(0)
    streams = [rng.integers(4, VOCABULARY, 12 + i) for i in range(4)]
    said = [(np.arange(len(ids)) >= 5) & (np.arange(len(ids)) != 9) for ids in streams]
    closing = [END] if encoder_eos else []
    losses = []
    for ids in streams:
        for start, stop in ((5, 9), (10, len(ids))):
            prompt, reply = torch.as_tensor([[*ids[:start], *closing]]), torch.as_tensor(ids[None, start:stop])
            loss = policy.model(input_ids=prompt, labels=reply).loss
            losses += [float(loss.detach())] * (stop - start)
    examples = [
        Completion(input_ids=ids, labels=np.where(mask, ids, IGNORED)) for ids, mask in zip(streams, said, strict=True)
    ]
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = SFT(policy.model, arguments, None, examples, tokenizer=tokenizer, encoder_eos=encoder_eos)
    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(np.mean(losses), abs=1e-5)
    imitate(policy, examples, epochs=20, learning_rate=1e-2)
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


# --------------------------------------------------------------------------------------------------- text and tokens


@pytest.fixture(scope="module")
def tokenizer():
    """As T5's: </s> closes every text, and is the only token of its own besides padding."""
    core = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
            + [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyzT?.0123456789"],
            unk_id=2,
        )
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    core.decoder = tokenizers.decoders.Metaspace()
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def test_the_environments_text_is_read_and_closed(tokenizer, tmp_path):
    venv = textgym.make_vec("textgym/Identity-v0", num_envs=4, tokenizer=tokenizer, max_context=200)
    assert venv.unwrapped.setting.renderer.format == "plain"
    obs, _ = venv.reset(seed=0)
    length = int(obs["attention_mask"][0].sum())
    assert obs["input_ids"][0, length - 1] != tokenizer.eos_token_id
    torch.manual_seed(0)
    model = t5(len(tokenizer), start=tokenizer.pad_token_id)
    agent = PPO("Seq2SeqLMPolicy", venv, n_steps=8, batch_size=32, policy_kwargs={"model": model}, device="cpu")
    prompt = tokenizer.decode(obs["input_ids"][0, :length])
    wanted = model(input_ids=torch.tensor([tokenizer(prompt).input_ids]), labels=torch.tensor([[5]])).logits[0, 0]
    got = agent.policy.get_distribution({key: torch.as_tensor(value[:1]) for key, value in obs.items()})
    torch.testing.assert_close(got.distribution.logits[0], wanted.log_softmax(-1), atol=1e-5, rtol=0)
    agent.learn(64)
    agent.policy.save_pretrained(tmp_path)
    assert policy_class_of(tmp_path) is Seq2SeqLMPolicy
    by_tokens = play_policy(agent.policy, venv.unwrapped, range(4))
    observations = [Observation(Episode(episode.sample), venv.unwrapped.task) for episode in by_tokens]
    replies = CausalLMAgent(str(tmp_path), max_context=200, device="cpu").act(observations)
    assert [(reply.text, reply.stop_reason) for reply in replies] == [(e.response, e.stop_reason) for e in by_tokens]


def test_a_training_run_takes_the_policy_of_its_model(tokenizer, tmp_path):
    torch.manual_seed(0)
    t5(len(tokenizer), start=tokenizer.pad_token_id).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {**tiny_run.OPTIONS, "ppo.freeze": "shared", "total_timesteps": 40}
    settings = Settings(tiny_run.ENV, model=str(tmp_path / "model"), device="cpu", options=options)
    training = Training.start(settings, tmp_path / "run")
    training.run()
    assert type(training.policy) is Seq2SeqLMPolicy
    transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "agent")


# ------------------------------------------------------------------------------------------------ saving and loading


@pytest.mark.parametrize("shape", SHAPES)
def test_save_and_load_keep_log_probabilities_and_the_kl(shape, tmp_path):
    agent = make_agent(shape, kl_coef=0.1, policy_kwargs={"encoder_eos": False})
    agent.learn(96)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    assert isinstance(loaded.policy, Seq2SeqLMPolicy)
    samples = agent.rollout_buffer.samples()
    segments, actions = samples.observations, samples.actions
    torch.testing.assert_close(update_log_probs(loaded, samples), update_log_probs(agent, samples), atol=0, rtol=0)
    before, after = (one.policy.reference_log_probs(one.reference, segments, actions) for one in (agent, loaded))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    torch.testing.assert_close(before, samples.reference_log_prob, atol=1e-6, rtol=0)
    assert float((before - update_log_probs(agent, samples)).abs().max()) > 1e-3


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("shape", ["t5", "bart"])
def test_save_pretrained_is_an_ordinary_folder(shape, value, tmp_path):
    agent = make_agent(shape, policy_kwargs={"value": value})
    agent.learn(48)
    agent.policy.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors"}
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for name, tensor in agent.policy.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    again = make_agent(policy_kwargs={"model": str(tmp_path), "value": value})
    obs = {key: torch.as_tensor(array) for key, array in agent._last_obs.items()}
    assert float(agent.policy.predict_values(obs).detach().abs().max()) > 0
    torch.testing.assert_close(again.policy.predict_values(obs), agent.policy.predict_values(obs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "reference"), [("t5-1.1", "t5"), ("t5", "t5-1.1"), ("t5", "bart")])
def test_a_references_head_is_its_own(shape, reference):
    """It may scale its states, or have a bias, where the policy's does not."""
    compared = []

    def compare(agent, seen):
        agent.reference.config.decoder_start_token_id = START  # as the policy begins
        compared.append((plain_log_probs(agent.reference, seen), agent.rollout_buffer.reference_log_probs))

    make_agent(shape, kl_coef=0.1, ref_model=SHAPES[reference]()).learn(48, callback=Rollouts(compare))
    for wanted, found in compared:
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapters_reference_is_its_base_model():
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q", "v"])
    kl = []
    agent = make_agent(kl_coef=0.1, policy_kwargs={"peft_config": adapter})
    agent.learn(96, callback=Rollouts(lambda agent, seen: kl.append(agent.logger.name_to_value["rollout/kl"])))
    assert agent.reference is None
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert abs(kl[1]) > 1e-6
    trained = {name for name, p in agent.policy.named_parameters() if p.requires_grad}
    assert all("lora" in name or "value_head" in name for name in trained)


# ----------------------------------------------------------------------------------------------------------- errors


def test_models_of_the_other_kind_are_sent_to_their_policy(tmp_path):
    env = DummyVecEnv([ToyEnv])
    t5().save_pretrained(tmp_path / "t5")
    MODELS["llama"]().save_pretrained(tmp_path / "llama")
    for model in (t5(), t5().config, str(tmp_path / "t5"), bart()):
        with pytest.raises(ModelError, match=r"is an encoder-decoder and not a causal.* 'Seq2SeqLMPolicy'"):
            PPO("CausalLMPolicy", env, policy_kwargs={"model": model})
    for model in (MODELS["llama"](), MODELS["llama"]().config, str(tmp_path / "llama")):
        with pytest.raises(ModelError, match=r"is a causal language model and not an encoder.* 'CausalLMPolicy'"):
            PPO("Seq2SeqLMPolicy", env, policy_kwargs={"model": model})
    assert policy_class_of(bart().config) is Seq2SeqLMPolicy
    assert policy_class_of(str(tmp_path / "llama")) is CausalLMPolicy


def test_models_that_do_not_fit_are_named():
    def make(model=None, env=None, **kwargs):
        PPO("Seq2SeqLMPolicy", env or DummyVecEnv([ToyEnv]), policy_kwargs={"model": model, **kwargs})

    with pytest.raises(ConfigurationError, match="no built-in model"):
        make()
    with pytest.raises(ConfigurationError, match=r"set model\.config\.decoder_start_token_id"):
        make(t5(start=None))
    with pytest.raises(TokenizerError, match="has 40 entries and the model's head only 30"):
        make(t5(30))
    with pytest.raises(ConfigurationError, match="the model's only 20"):
        make(bart(20))
    with pytest.raises(ModelError, match=r"no language-model head; give a model \.\.\.ForConditionalGeneration"):
        make(t5().get_encoder())
    with pytest.raises(ModelError, match="not int"):
        make(5)
    with pytest.raises(ConfigurationError, match="needs a token environment"):
        make(t5(), "CartPole-v1")
    with pytest.raises(ValueError, match="Seq2SeqLMPolicy unknown"):
        DQN("Seq2SeqLMPolicy", DummyVecEnv([ToyEnv]), policy_kwargs={"model": t5()})


def test_a_model_that_cannot_be_taken_apart_is_refused():
    class Cumulative(transformers.T5ForConditionalGeneration):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.cumsum(-2)
            return out

    class Headless(transformers.T5ForConditionalGeneration):
        def get_decoder(self):
            return self.lm_head

    for odd, reason in ((Cumulative, "the model's own pass"), (Headless, "TypeError")):
        with pytest.raises(ModelError, match=f"{odd.__name__} is an encoder-decoder whose .* {reason}"):
            PPO("Seq2SeqLMPolicy", DummyVecEnv([ToyEnv]), policy_kwargs={"model": odd(t5().config)})
