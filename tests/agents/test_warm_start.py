import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from textgym import Sample, Task, TokenEnv, TokenVectorEnv
from textgym.agents import CausalLMPolicy
from textgym.agents.completions import IGNORED
from textgym.agents.playing import play_policy
from textgym.agents.warm_start import demonstrations, imitate
from textgym.errors import ConfigurationError, DataError

CONTEXT = 96


def tiny_model(vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=int(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def policy_for(env):
    model = tiny_model(env.action_space.n)
    policy = CausalLMPolicy(env.observation_space, env.action_space, lambda _: 0.0, model=model)
    policy.tokenizer = env.setting.tokenizer
    return policy


@pytest.fixture
def capitals_env(capitals, tokenizer):
    return TokenEnv(capitals, reward=lambda: 0.0, tokenizer=tokenizer, max_context=CONTEXT)


def demonstrations_of(env):
    return demonstrations(env, env.task.samples("train"), env.task.demonstration)


def test_a_demonstration_is_the_environments_own_stream(capitals_env, tokenizer):
    examples = demonstrations_of(capitals_env)
    assert len(examples) == 4
    prompt, reply = tokenizer.encode("The capital of France is"), [*tokenizer.encode("Paris"), tokenizer.eos_token_id]
    assert examples[0]["input_ids"].tolist() == prompt + reply
    assert examples[0]["labels"].tolist() == [IGNORED] * len(prompt) + reply


def test_a_conversation_is_demonstrated_turn_by_turn(guess, chat_tokenizer):
    env = TokenEnv(guess, reward=lambda: 0.0, tokenizer=chat_tokenizer, max_context=256)
    examples = demonstrations(env, guess.samples("train"), lambda sample: ["9!", f"{sample.meta['number']}!"])
    for example, sample in zip(examples, guess.samples("train"), strict=True):
        said = example["labels"] != IGNORED
        turns = np.split(said, np.flatnonzero(np.diff(said.astype(int))) + 1)
        starts = np.cumsum([0, *map(len, turns)])
        texts = [
            chat_tokenizer.decode(example["input_ids"][start : start + len(turn)])
            for start, turn in zip(starts, turns, strict=False)
            if turn[0]
        ]
        assert [text.removesuffix("<|im_end|>") for text in texts] == ["9!", f"{sample.meta['number']}!"]


def test_samples_without_demonstration_are_left_out(capitals_env, capitals):
    samples = [Sample("x", "The capital of Atlantis is"), *capitals.samples("train")]
    assert len(demonstrations(capitals_env, samples, capitals.demonstration)) == 4
    with pytest.raises(DataError, match="Capitals has no demonstrations"):
        demonstrations(capitals_env, samples[:1], capitals.demonstration)


def loss_of(policy, examples):
    """The mean negative log-likelihood of the labelled tokens, from the model's own logits."""
    losses = []
    for example in examples:
        ids = torch.tensor(example["input_ids"])[None]
        log_probs = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        of_tokens = -log_probs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        losses += of_tokens[torch.tensor(example["labels"][1:] != IGNORED)].tolist()
    return np.mean(losses)


def test_the_loss_is_that_of_the_models_own_logits(capitals_env, tmp_path):
    policy = policy_for(capitals_env)
    policy.temperature = 0.5
    examples = demonstrations_of(capitals_env)
    losses = imitate(policy, examples, epochs=1, learning_rate=0.0, validation=examples, folder=tmp_path)
    assert losses == [pytest.approx(loss_of(policy, examples), abs=1e-5)]


def test_the_policy_learns_to_say_what_was_demonstrated(capitals, capitals_env, tokenizer):
    policy = policy_for(capitals_env)
    steps = []
    imitate(
        policy, demonstrations_of(capitals_env), epochs=40, batch_size=2, learning_rate=1e-2,
        on_step=lambda *report: steps.append(report),
    )  # fmt: skip
    assert steps[0][:2] == (1, 80)
    assert steps[-1][:2] == (80, 80)
    assert steps[-1][2] < 0.3 < 1 < steps[0][2]
    venv = TokenVectorEnv(capitals, 3, tokenizer=tokenizer, max_context=CONTEXT)
    episodes = play_policy(policy, venv)
    assert [episode.response for episode in episodes] == ["Paris", "Berlin", "Tokyo", "Rome"]


def test_the_same_seed_gives_the_same_weights(capitals_env):
    def trained(seed):
        policy = policy_for(capitals_env)
        imitate(policy, demonstrations_of(capitals_env), epochs=2, batch_size=1, learning_rate=1e-3, seed=seed)
        return torch.cat([parameter.flatten() for parameter in policy.parameters()])

    first = trained(1)
    assert torch.equal(first, trained(1))
    assert not torch.equal(first, trained(2))


def test_it_goes_on_from_its_last_checkpoint(capitals_env, tmp_path):
    examples = demonstrations_of(capitals_env)

    def trained(folder, on_step=lambda *report: None):
        policy = policy_for(capitals_env)
        settings = {"epochs": 6, "batch_size": 1, "learning_rate": 1e-3}
        losses = imitate(policy, examples, validation=examples[2:], folder=folder, on_step=on_step, **settings)
        return losses, torch.cat([parameter.flatten() for parameter in policy.parameters()])

    def kill(step, steps, loss):
        reported.append(step)
        if step == 15:  # of 24, in the fourth epoch
            raise KeyboardInterrupt

    whole, reported = trained(tmp_path / "whole"), []
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", kill)
    resumed = trained(tmp_path / "killed", lambda step, *_: reported.append(step))
    assert reported == [1, 5, 10, 15, 15, 20]
    assert resumed[0] == whole[0]
    assert torch.equal(resumed[1], whole[1])


def test_without_a_folder_nothing_is_written(capitals_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    imitate(policy_for(capitals_env), demonstrations_of(capitals_env), epochs=1)
    assert not any(tmp_path.iterdir())


def test_the_value_head_is_left_as_it_is(capitals_env):
    policy = policy_for(capitals_env)
    imitate(policy, demonstrations_of(capitals_env), epochs=1, learning_rate=1e-2)
    assert not policy.value_head.weight.any()


def test_the_weights_of_the_best_epoch_are_kept(capitals_env, tmp_path):
    policy = policy_for(capitals_env)
    examples = demonstrations_of(capitals_env)
    settings = {"epochs": 8, "batch_size": 1, "learning_rate": 1e-2}
    losses = imitate(policy, examples[:2], validation=examples[2:], folder=tmp_path, **settings)
    assert len(losses) == 8
    assert min(losses) < losses[-1]
    assert loss_of(policy, examples[2:]) == pytest.approx(min(losses), abs=1e-5)


def test_the_best_epoch_needs_a_folder(capitals_env):
    examples = demonstrations_of(capitals_env)
    with pytest.raises(ConfigurationError, match=r"validation=\.\.\. needs a folder"):
        imitate(policy_for(capitals_env), examples, validation=examples)


def test_a_warm_start_that_diverges_ends_there(capitals_env, tmp_path):
    examples, policy = demonstrations_of(capitals_env), policy_for(capitals_env)
    with pytest.raises(ConfigurationError, match=r"diverged in its first epoch: the loss is nan. Lower .* is 1e\+30"):
        imitate(policy, examples, epochs=3, batch_size=1, learning_rate=1e30, validation=examples, folder=tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_no_epochs_is_an_error(capitals_env):
    with pytest.raises(ConfigurationError, match="epochs and batch_size are at least 1, not 0 and 32"):
        imitate(policy_for(capitals_env), demonstrations_of(capitals_env), epochs=0)


def test_a_task_without_references_has_none(tokenizer):
    class Bare(Task):
        reward = staticmethod(lambda response: 0.0)

        def samples(self, split):
            return [Sample("a", "b")]

    env = TokenEnv(Bare(), tokenizer=tokenizer)
    with pytest.raises(DataError, match="Train without a warm start"):
        demonstrations(env, env.samples, env.task.demonstration)
