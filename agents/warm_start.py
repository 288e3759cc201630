"""Supervised warm start: the policy imitates a task's demonstrations.

Shapes: R rows (demonstrations) of a batch, W tokens of the longest, N tokens of the agent in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from textgym.agents.completions import Completion
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.segments import SegmentGroup, TokenSegments
from textgym.episode import Sample
from textgym.errors import ConfigurationError, DataError
from textgym.token_env import TokenEnv

__all__ = ["demonstration_loss", "demonstrations", "imitate"]

MAX_GRAD_NORM = 1.0
WARM_UP_SHARE = 0.1
POOL = 16  # batches whose examples are sorted by length together


def demonstrations(
    env: TokenEnv, samples: Iterable[Sample], replies_of: Callable[[Sample], Sequence[str] | None]
) -> list[Completion]:
    """Plays replies through the environment, so that the streams hold exactly the ids that an agent would meet.

    Args:
        env: Its samples are replaced.
        samples: What the episodes are about.
        replies_of: The agent's replies, one a turn (:meth:`textgym.Task.demonstration`); samples without are left out.

    Raises:
        DataError: No sample has a demonstration.
    """
    given = [(sample, replies) for sample in samples if (replies := replies_of(sample))]
    if not given:
        raise DataError(
            f"{type(env.task).__name__} has no demonstrations to imitate: its samples have no references, or it "
            "defines no demonstration(sample). Train without a warm start."
        )
    env.setting.samples = [sample for sample, _ in given]
    return [_played(env, index, replies) for index, (_, replies) in enumerate(given)]


def _played(env: TokenEnv, index: int, replies: Sequence[str]) -> Completion:
    observation, _ = env.reset(seed=index, options={"sample": index})
    for reply in replies:
        observation, _, terminated, _, _ = env.step_turn(env.setting.renderer.reply_ids(reply))
        if terminated:
            break
    length = int(observation["attention_mask"].sum())
    return Completion(observation["input_ids"][:length], observation["agent_mask"][:length].astype(bool))


def imitate(
    policy: CausalLMPolicy,
    examples: Sequence[Completion],
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-5,
    weight_decay: float = 0.0,
    seed: int = 0,
    validation: Sequence[Completion] = (),
    on_step: Callable[[int, int, float], object] = lambda step, steps, loss: None,
) -> list[float]:
    """Minimises the mean negative log-likelihood of the agent's tokens, with AdamW.

    The learning rate rises linearly over the first tenth of the steps and falls linearly to zero.

    Args:
        policy: Trained in place, its value head left as it is.
        examples: What to imitate.
        epochs: Passes over the examples.
        batch_size: Examples a step.
        learning_rate: The highest.
        weight_decay: AdamW's.
        seed: Of the order of the examples.
        validation: Where given, the weights are in the end those after the epoch with the lowest loss on these. (The
            loss may rise for an epoch while the learning rate is high, so a rise is no reason to stop.)
        on_step: Called with the number of steps done, of all steps, and the step's loss.

    Returns:
        The loss, in nats a token, of each epoch: on ``validation`` where given, else the mean over its steps.

    Raises:
        ConfigurationError: ``epochs`` or ``batch_size`` is less than 1.
    """
    if epochs < 1 or batch_size < 1:
        raise ConfigurationError(f"epochs and batch_size are at least 1, not {epochs} and {batch_size}.")
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    n_steps = epochs * -(-len(examples) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, n_steps))
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    best = _Best(policy, validation)
    done = 0
    policy.set_training_mode(True)
    for _ in range(epochs):
        of_epoch = []
        for batch in _batches([len(example.input_ids) for example in examples], batch_size, rng):
            loss = demonstration_loss(policy, [examples[i] for i in batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            done += 1
            of_epoch.append(float(loss.detach()))
            on_step(done, n_steps, of_epoch[-1])
        losses.append(best.loss_now() if validation else float(np.mean(of_epoch)))
        if validation and not best.is_worth_going_on(losses[-1]):
            break
    best.restore()
    policy.set_training_mode(False)
    return losses


def demonstration_loss(policy: CausalLMPolicy, examples: Sequence[Completion]) -> Tensor:
    """The mean negative log-likelihood of the agent's tokens in some demonstrations, in nats; a scalar.

    It is that of the model itself, at temperature 1.
    """
    segments, tokens = _segments(examples, policy.device)
    settings = policy.entropy_gradient, policy.temperature
    policy.entropy_gradient, policy.temperature = False, 1.0
    try:
        _, log_probs, _ = policy.evaluate_actions(segments, tokens)
    finally:
        policy.entropy_gradient, policy.temperature = settings
    return -log_probs.mean()


def _segments(examples: Sequence[Completion], device: torch.device) -> tuple[TokenSegments, Tensor]:
    """The demonstrations as one right-padded group, and the agent's tokens (N,) in it."""
    ids = np.zeros((len(examples), max(len(example.input_ids) for example in examples)), np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = example.input_ids
        mask[row, : len(example.agent_mask)] = example.agent_mask
    rows, columns = np.nonzero(mask)
    arrays = (ids, mask, rows, columns - 1)
    group = SegmentGroup(*(torch.as_tensor(array, device=device) for array in arrays))
    return TokenSegments((group,)), torch.as_tensor(ids[mask], device=device)


def _batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random batches of examples of about equal length, so that little is padded."""
    order = rng.permutation(len(lengths))
    pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
    ordered = np.concatenate([pool[np.argsort(np.take(lengths, pool), kind="stable")] for pool in pools])
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def _learning_rate_factor(step: int, n_steps: int) -> float:
    warm_up = max(1, round(WARM_UP_SHARE * n_steps))
    return min((step + 1) / warm_up, (n_steps - step) / max(1, n_steps - warm_up), 1.0)


class _Best:
    """The weights with the lowest loss on some demonstrations so far; the first ones until there is a finite loss."""

    def __init__(self, policy: CausalLMPolicy, examples: Sequence[Completion]) -> None:
        self.policy, self.examples = policy, examples
        self.loss = float("inf")
        self.weights = self._weights_now() if examples else {}

    def loss_now(self) -> float:
        sizes, losses = [], []
        with torch.no_grad():
            for start in range(0, len(self.examples), 64):
                part = self.examples[start : start + 64]
                sizes.append(sum(int(example.agent_mask.sum()) for example in part))
                losses.append(float(demonstration_loss(self.policy, part)))
        return float(np.average(losses, weights=sizes))

    def is_worth_going_on(self, loss: float) -> bool:
        """Keeps the weights if the loss fell. False if it is no number any more, from which nothing is learned."""
        if loss < self.loss:
            self.loss = loss
            self.weights = self._weights_now()
        return math.isfinite(loss)

    def restore(self) -> None:
        """Puts the kept weights back."""
        if self.examples:
            self.policy.load_state_dict(self.weights)

    def _weights_now(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.policy.state_dict().items()}
