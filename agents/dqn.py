"""Deep Q-learning: Stable-Baselines3's, with a language model for the action values of all tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from textgym.adapters import fixed_weights
from textgym.agents.heads import chunks
from textgym.agents.interface import LanguageModelAgent
from textgym.agents.language_model import frozen_copy, trunk_of
from textgym.agents.policies import CausalLMPolicy, Observation
from textgym.agents.replay import ReplaySamples, TokenReplayBuffer
from textgym.errors import ConfigurationError

__all__ = ["DQN", "CausalLMQPolicy"]


class _Networks(nn.ModuleList):
    """A model and its value head, whose parameters are those that the target follows.

    An adapter's base model is left out: online and target network share it, and SB3's update writes in place.
    """

    def __init__(self, modules: Iterable[nn.Module], fixed: Iterable[nn.Parameter]) -> None:
        super().__init__(modules)
        self.fixed = {id(parameter) for parameter in fixed}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All but the fixed ones."""
        return (parameter for parameter in super().parameters(recurse) if id(parameter) not in self.fixed)


class CausalLMQPolicy(CausalLMPolicy):
    """A causal language model whose head gives action values: ``Q(s, a) = V(s) + scale * log softmax(logits)[a]``.

    The value is the value head's, and the advantage the language model's own log-probability (a dueling network, Wang
    et al. 2016, https://arxiv.org/abs/1511.06581): what it finds likely it takes for good from the start, and its
    greedy actions are at first those of greedy decoding. A copy of both, ``target``, follows at a distance.

    Args:
        observation_space, action_space, lr_schedule: As in :class:`textgym.agents.CausalLMPolicy`.
        scale: What a nat of log-probability is worth, in units of the return; the temperature of the softmax policy.
            A token whose value is lower by g is drawn ``exp(-g / scale)`` times as often as the best one, and there are
            thousands: above ``g / log(n_actions)``, correct values make exploration nearly uniform.
        **kwargs: As in :class:`textgym.agents.CausalLMPolicy`, but for ``value``, ``top_k`` and ``top_p``.

    Raises:
        ConfigurationError: ``scale`` is not positive, ``value`` is not ``"shared"``, or an option is given that this
            policy does not have.
    """

    def __init__(
        self, observation_space: Any, action_space: Any, lr_schedule: Schedule, scale: float = 0.1, **kwargs: Any
    ) -> None:
        if not scale > 0:
            raise ConfigurationError(f"scale must be positive, not {scale}.")
        if kwargs.get("value", "shared") != "shared":
            raise ConfigurationError(f"CausalLMQPolicy has its value on the language model, not {kwargs['value']!r}.")
        for name in ("top_k", "top_p"):
            if kwargs.get(name) is not None:
                raise ConfigurationError(
                    f"{name}={kwargs[name]}: a token that is cut off would have an action value of minus infinity; "
                    "give a temperature below 1 for a greedier exploration."
                )
        self.scale = scale
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.entropy_gradient = False
        self.target = _Networks([frozen_copy(self.model), frozen_copy(self.value_head)], fixed_weights(self.model))

    def act(self, obs: Observation, exploring: Tensor, masks: Tensor | None) -> Tensor:
        """Actions (B,) int64: greedy, or drawn from the softmax policy where (B,) ``exploring`` is true."""
        logits = self._allowed(self.logits(self.last_hidden(obs)[0]), masks)
        return torch.where(exploring, self.choose(logits, False)[0], logits.argmax(-1))

    def action_values(self, hidden: Tensor, actions: Tensor) -> Tensor:
        """Q (N,) float32 of actions (N,) at hidden states (N, D)."""
        return self.values(hidden).squeeze(-1) + self.scale * self.log_probs(hidden, actions)[0]

    def target_values(self, hidden: Tensor, actions: Tensor) -> Tensor:
        """The target's Q (N,) of actions (N,) at its own hidden states (N, D)."""
        model, value_head = self.target
        return value_head(hidden.float()).squeeze(-1) + self.scale * self.log_probs(hidden, actions, model)[0]

    def best_actions(self, hidden: Tensor, masks: Tensor | None) -> Tensor:
        """The actions (N,) with the highest values at hidden states (N, D), among those allowed (N, V)."""
        best = []
        for rows in chunks(len(hidden), self.n_actions, hidden.device):
            best.append(self._allowed(self.logits(hidden[rows]), None if masks is None else masks[rows]).argmax(-1))
        return torch.cat(best)

    @staticmethod
    def _allowed(logits: Tensor, masks: Tensor | None) -> Tensor:
        return logits if masks is None else logits.masked_fill(~masks, -torch.inf)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "scale": self.scale}

    def rebuilding_kwargs(self) -> dict[str, Any]:
        """What builds this policy again, with other weights, and needs no file."""
        return {name: value for name, value in super().rebuilding_kwargs().items() if name != "value"}


class DQN(LanguageModelAgent, stable_baselines3.DQN):
    """SB3's DQN, with its constructor, for language models too (``"CausalLMPolicy"``).

    With a policy that is no language model it is ``stable_baselines3.DQN``. For a language model the replay buffer
    holds token streams and yields whole episodes; targets are double (van Hasselt et al. 2015,
    https://arxiv.org/abs/1509.06461): the action is chosen by the online network and judged by the target's; and the
    environment's ``action_masks``, where it has any, hold in acting and in the targets.

    What SB3 does at random over all actions (with probability ``exploration_rate``, and before ``learning_starts``) is
    drawn from the softmax policy, each environment by itself: of thousands of tokens, a uniform one is never of use.
    The defaults are SB3's; give a language model a low ``learning_rate``, ``gamma=1.0``, and a
    ``target_update_interval`` of some thousand steps.

    Source: Mnih et al., "Human-level control through deep reinforcement learning", 2015.
    """

    policy: CausalLMQPolicy  # type: ignore[assignment]  # wherever this class's own code runs
    replay_buffer: TokenReplayBuffer

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.DQN.policy_aliases,
        "CausalLMPolicy": CausalLMQPolicy,
    }

    def _setup_model(self) -> None:
        if self.is_language_model:
            if not issubclass(self.policy_class, CausalLMQPolicy):
                raise ConfigurationError(f"DQN needs a policy with action values, not {self.policy_class.__name__}.")
            self.replay_buffer_class = self.replay_buffer_class or TokenReplayBuffer
            if not issubclass(self.replay_buffer_class, TokenReplayBuffer):
                raise ConfigurationError(f"a language model needs a TokenReplayBuffer, not {self.replay_buffer_class}.")
            if getattr(self, "n_steps", 1) != 1:
                raise ConfigurationError(f"n_steps={self.n_steps}: DQN of a language model learns from single steps.")
        super()._setup_model()
        if self.is_language_model:
            self._take_tokenizer()

    def _create_aliases(self) -> None:
        if not self.is_language_model:
            super()._create_aliases()
            return
        networks = [self.policy.model, self.policy.value_head]
        self.q_net: Any = _Networks(networks, fixed_weights(self.policy.model))
        self.q_net_target: Any = self.policy.target

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any
    ) -> tuple[int, BaseCallback]:
        """SB3's; where it resets the environments, the episodes under way are over."""
        if self.is_language_model and (reset_num_timesteps or self._last_obs is None):
            self.replay_buffer.forget_unfinished()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:  # type: ignore[override]
        """SB3's, with a language model decoding incrementally."""
        if not self.is_language_model:
            return super().collect_rollouts(env, callback, *args, **kwargs)
        with self.policy.incremental_decoding(env.num_envs):
            return super().collect_rollouts(env, callback, *args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.is_language_model:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        rate = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        exploring = torch.as_tensor(np.random.rand(n_envs) < rate, device=self.device)
        masks = self._action_masks()
        self.replay_buffer.see(self._last_obs, masks)  # type: ignore[arg-type]
        with torch.no_grad():
            observation, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
            allowed = None if masks is None else torch.as_tensor(masks, device=self.device)
            actions = self.policy.act(observation, exploring, allowed).cpu().numpy()  # type: ignore[arg-type]
        return actions, actions

    def _action_masks(self) -> np.ndarray | None:
        if self.env is None or not self.env.has_attr("action_masks"):
            return None
        return np.stack(self.env.env_method("action_masks"))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's; a language model's actions are greedy, or drawn from the softmax policy."""
        if not self.is_language_model:
            return super().predict(observation, state, episode_start, deterministic)
        return self.policy.predict(observation, state, episode_start, deterministic)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """SB3's update, over whole episodes of some ``batch_size`` steps; skipped where none has been finished."""
        if not self.is_language_model:
            super().train(gradient_steps, batch_size)
            return
        if not self.replay_buffer.size():
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses = [self._step(self.replay_buffer.sample(batch_size)) for _ in range(gradient_steps)]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))

    def _step(self, samples: ReplaySamples) -> float:
        """One step of the optimizer; its loss."""
        values, targets = self.values_and_targets(samples)
        loss = nn.functional.smooth_l1_loss(values, targets)
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return loss.item()

    def values_and_targets(self, samples: ReplaySamples) -> tuple[Tensor, Tensor]:
        """Action values (N,) and what they should be, ``r + gamma * Q_target(s', argmax_a Q(s', a))`` (N,)."""
        policy = self.policy
        with policy.autocast():
            states = policy.encode(trunk_of(policy.model), samples.input_ids)
        values = policy.action_values(states[samples.rows, samples.columns], samples.actions)
        with torch.no_grad(), policy.autocast():
            best = policy.best_actions(states[samples.rows, samples.next_columns], samples.next_masks)
            target_states = policy.encode(trunk_of(policy.target[0]), samples.input_ids)
        with torch.no_grad():
            following = policy.target_values(target_states[samples.rows, samples.next_columns], best)
        return values, samples.rewards + self.gamma * samples.goes_on * following
