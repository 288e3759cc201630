"""Supervised warm start: the policy imitates a task's demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from textgym.agents.completions import IGNORED, Completion
from textgym.agents.policies import CausalLMPolicy
from textgym.agents.sft import SFT
from textgym.episode import Sample
from textgym.errors import ConfigurationError, DataError
from textgym.token_env import TokenEnv

__all__ = ["demonstrations", "imitate"]

WARM_UP_SHARE = 0.1
LOGGING_STEPS = 5
EVAL_BATCH_SIZE = 64


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
    ids = observation["input_ids"][:length]
    return Completion(input_ids=ids, labels=np.where(observation["agent_mask"][:length], ids, IGNORED))


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
    folder: str | Path | None = None,
    on_step: Callable[[int, int, float], object] = lambda step, steps, loss: None,
) -> list[float]:
    """Trains a policy's model with :class:`~textgym.agents.SFT`, at temperature 1.

    The learning rate rises linearly over the first tenth of the steps and falls linearly to zero. The global
    generators are seeded, as ``Trainer`` does.

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
        folder: Where a checkpoint is kept after each epoch, as ``validation`` needs it; it goes on from the last one
            there. None: nowhere.
        on_step: Called with the number of steps done, of all steps, and the mean loss of late.

    Returns:
        The loss on ``validation``, in nats a token, after each epoch.

    Raises:
        ConfigurationError: ``epochs`` or ``batch_size`` is less than 1, there is no folder for the best weights, or the
            training diverged in its first epoch.
    """
    if epochs < 1 or batch_size < 1:
        raise ConfigurationError(f"epochs and batch_size are at least 1, not {epochs} and {batch_size}.")
    if validation and folder is None:
        raise ConfigurationError("validation=... needs a folder=... in which the best weights are kept.")
    n_steps = epochs * -(-len(examples) // batch_size)
    arguments = TrainingArguments(
        str(folder or gettempdir()),  # Trainer makes a folder in any case; without one of ours nothing is written there
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=max(1, round(WARM_UP_SHARE * n_steps)),
        bf16=policy.compute_dtype == torch.bfloat16,
        use_cpu=policy.device.type == "cpu",
        seed=seed,
        logging_first_step=True,
        logging_steps=LOGGING_STEPS,
        eval_strategy="epoch" if validation else "no",
        save_strategy="no" if folder is None else "epoch",
        save_total_limit=1,
        load_best_model_at_end=bool(validation),
        report_to="none",
        disable_tqdm=True,
    )
    encoder_eos = getattr(policy, "encoder_eos", True)
    trainer = SFT(
        policy.model, arguments, examples, validation or None, tokenizer=policy.tokenizer, encoder_eos=encoder_eos
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(on_step))
    trainer.train(resume_from_checkpoint=None if folder is None else get_last_checkpoint(str(folder)))
    policy.set_training_mode(False)
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    if losses and not math.isfinite(losses[0]):
        raise ConfigurationError(
            f"the warm start diverged in its first epoch: the loss is {losses[0]}. Lower its learning rate, which is "
            f"{learning_rate}."
        )
    return losses


class _Progress(TrainerCallback):
    """Reports the loss, and ends a training that has diverged."""

    def __init__(self, on_step: Callable[[int, int, float], object]) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.on_step(state.global_step, state.max_steps, kwargs["logs"]["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= not math.isfinite(kwargs["metrics"]["eval_loss"])
