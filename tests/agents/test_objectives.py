"""The algorithms' mathematics: against other people's published numbers, and against the definition, step by step."""

import numpy as np
import pytest
import torch
from toy import CONTEXT, VOCABULARY, ToyEnv

from textgym.agents.kl import KL_ESTIMATORS
from textgym.agents.objectives import (
    clipped_surrogate,
    group_normalised,
    leave_one_out,
    leave_one_out_by_step,
    rewards_to_go,
    sequence_mean,
)
from textgym.agents.segments import TokenRolloutBuffer

# rlax, multistep_test.py, TruncatedGeneralizedAdvantageEstimationTest: the expected advantages by lambda
RLAX_REWARDS = [[0.0, 0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0, 1.0]]
RLAX_VALUES = [[1.0, 4.0, -3.0, -2.0, -1.0, -1.0], [-3.0, -2.0, -1.0, 0.0, 5.0, -1.0]]
RLAX_GAE = {
    1.0: [[-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3.0, 2.0, 1.0, 0.0, -4.9]],
    0.7: [[-0.676979, -5.248167, 2.4846, 0.6704, -0.49], [2.2899, 1.73, 1.0, 0.0, -4.9]],
    0.4: [[0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1.0, 0.0, -4.9]],
}


def filled_buffer(rewards, values, starts, gamma, gae_lambda, ids=None):
    """A buffer of one environment with these rewards and values; new tokens stand before each action."""
    space = ToyEnv().observation_space
    buffer = TokenRolloutBuffer(len(rewards), space, ToyEnv().action_space, "cpu", gae_lambda, gamma, 1)
    stream = np.arange(2, 2 + CONTEXT) % VOCABULARY if ids is None else ids
    length = 0
    for step, (reward, value, start) in enumerate(zip(rewards, values, starts, strict=True)):
        length = 2 if start else length + 1
        mask = (np.arange(CONTEXT) < length).astype(np.int8)[None]
        mine = mask * (np.arange(CONTEXT) >= 2)
        observation = {
            "input_ids": np.where(mask, stream[None, :CONTEXT], 0),
            "attention_mask": mask,
            "agent_mask": mine,
        }
        action = np.array([stream[length] if step + 1 < len(starts) and not starts[step + 1] else 1])
        row = np.array([reward], np.float32), np.array([start])
        buffer.add(observation, action, *row, torch.tensor([[value]]), torch.tensor([-0.1 * step]))
    return buffer


@pytest.mark.parametrize("gae_lambda", RLAX_GAE)
@pytest.mark.parametrize(("row", "gamma"), [(0, 0.99), (1, 0.9)])
def test_generalised_advantages_are_rlaxs(gae_lambda, row, gamma):
    starts = [True, False, False, False, row == 1]  # in row 1 the discount of the fourth step is zero
    buffer = filled_buffer(RLAX_REWARDS[row], RLAX_VALUES[row][:-1], starts, gamma, gae_lambda)
    buffer.compute_returns_and_advantage(torch.tensor([RLAX_VALUES[row][-1]]), np.array([False]))
    np.testing.assert_allclose(buffer.advantages[:, 0], RLAX_GAE[gae_lambda][row], atol=1e-3)


def test_the_clipped_surrogate_is_rlaxs():
    """rlax, policy_gradients_test.py, ClippedSurrogatePGLossTest."""
    logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    old_logits = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-3.0, -2.0, -1.0]])
    actions = torch.tensor([[0], [1], [2]])
    log_prob, old_log_prob = (x.log_softmax(-1).gather(-1, actions).squeeze(-1) for x in (logits, old_logits))
    advantages = torch.tensor([0.3, 0.2, 0.1])
    losses = [-clipped_surrogate(log_prob, old_log_prob, a, 0.2).mean().item() for a in (advantages, -advantages)]
    assert losses == pytest.approx([-0.17117467, 0.19333333], abs=1e-5)  # theirs, in float32


def test_the_kl_penalties_are_trls():
    """TRL 0.11, tests/test_ppo_trainer.py, test_ppo_trainer_kl_penalty: "kl" and "mse" are k1 and k2."""
    log_probs = torch.tensor([[0.5, 0.2, 0.1], [0.6, 0.2, 0.1]])
    reference = torch.tensor([[0.4, 0.3, 0.0], [0.7, 0.1, 0.3]])
    kl = torch.tensor([[0.1, -0.1, 0.1], [-0.1, 0.1, -0.2]])
    mse = torch.tensor([[0.005, 0.005, 0.005], [0.005, 0.005, 0.02]])
    torch.testing.assert_close(KL_ESTIMATORS["k1"](log_probs - reference), kl)
    torch.testing.assert_close(KL_ESTIMATORS["k2"](log_probs - reference), mse)


def test_k3_has_the_kl_for_its_mean_and_is_never_negative():
    policy, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))
    log_ratio = policy.log() - reference.log()
    k1, k3 = (KL_ESTIMATORS[name](log_ratio) for name in ("k1", "k3"))
    assert (policy * k3).sum().item() == pytest.approx((policy * k1).sum().item(), abs=1e-12)
    assert k3.min() >= 0


def test_minibatches_hold_the_agents_tokens_alone_so_whitening_is_masked():
    """TRL's masked_whiten of [1, 2, 3, 4] with the mask [0, 1, 1, 0] is that of [2, 3]."""
    buffer = filled_buffer([2.0, 3.0], [0.0, 0.0], [True, True], 1.0, 1.0)
    buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
    advantages = buffer.samples().advantages
    whitened = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    torch.testing.assert_close(whitened.sort().values, torch.tensor([-1.0, 1.0]) / 2**0.5)


def test_advantages_do_not_depend_on_the_environments_tokens():
    """verl's invariance: whatever stands where the agent did not write."""
    results = []
    for shift in (2, 17):
        ids = (np.arange(CONTEXT) + shift) % VOCABULARY
        buffer = filled_buffer([1.0, 0.5, -1.0], [0.3, 0.2, 0.1], [True, False, False], 0.9, 0.8, ids)
        buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
        results.append(buffer.advantages.copy())
    np.testing.assert_array_equal(*results)


def test_rewards_to_go_are_the_discounted_sums():
    rewards = np.array([1.0, -2.0, 0.5, 3.0])
    expected = [sum(0.9 ** (later - step) * rewards[later] for later in range(step, 4)) for step in range(4)]
    np.testing.assert_allclose(rewards_to_go(rewards, 0.9), expected)
    assert rewards_to_go(np.array([])).tolist() == []


def test_the_baseline_of_a_step_is_the_others_mean():
    to_go = [np.array([3.0, 1.0]), np.array([0.0]), np.array([6.0, 2.0, 4.0])]
    advantages = leave_one_out_by_step(to_go)
    padded = np.array([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0], [6.0, 2.0, 4.0]])
    for i, advantage in enumerate(advantages):
        others = np.delete(padded, i, axis=0).mean(0)
        np.testing.assert_allclose(advantage, to_go[i] - others[: len(advantage)])
    assert leave_one_out_by_step([np.array([5.0, 1.0])])[0].tolist() == [0.0, 0.0]


def test_leave_one_out_is_its_definition():
    rng = np.random.default_rng(0)
    returns, groups = rng.normal(size=12), np.array([3, 3, 7, 3, 7, 7, 7, 1, 9, 9, 3, 9])
    expected = []
    for i, group in enumerate(groups):
        others = [returns[j] for j in range(12) if groups[j] == group and j != i]
        expected.append(returns[i] - np.mean(others) if others else 0.0)
    np.testing.assert_allclose(leave_one_out(returns, groups), expected, atol=1e-12)


def test_group_normalisation_is_its_definition():
    returns, groups = np.array([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 2.0]), np.array([0, 0, 0, 0, 4, 4, 8])
    deviation = np.std(returns[:4], ddof=1)
    expected = [*((returns[:4] - 0.5) / (deviation + 1e-4)), 0.0, 0.0, 0.0]  # a group of equals, and one alone
    np.testing.assert_allclose(group_normalised(returns, groups), expected)


def test_every_sequence_counts_the_same():
    values, sequences = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1])
    assert sequence_mean(values, sequences).item() == pytest.approx((2.0 + 10.0) / 2)
