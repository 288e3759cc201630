"""Rewards that fail for a share of the episodes, seen from a whole rollout of PPO and from a whole evaluation.

Every third sample's score fails, whatever the reply; the others are worth a tenth of their number. Another reward,
which does not fail, is added to it.
"""

from __future__ import annotations

import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tiny_run
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

import textgym
from textgym import Reward, Sample, Score, Task
from textgym.agents import PPO
from textgym.agents.playing import play_policy
from textgym.agents.training_callbacks import EpisodeMetrics, FailureLimit, failure_text
from textgym.evaluation import summarise
from textgym.rewards import Judge, Timeout, as_reward

N_SAMPLES = 9
N_ENVS = 4
N_EPISODES = 12


class Numbers(Task):
    max_new_tokens = 4

    def samples(self, split):
        return [Sample(str(i), f"Number {i}?") for i in range(N_SAMPLES)]

    def metrics(self, episodes):
        return {"number": float(np.mean([int(episode.sample.id) for episode in episodes]))}


def fails(episode):
    return int(episode.sample.id) % 3 == 0


def worth(episode):
    return int(episode.sample.id) / 10


bonus = textgym.reward(worth, name="bonus")


def raises(episode):
    if fails(episode):
        raise RuntimeError("told to")
    return worth(episode)


class TooFew(Reward):
    def score(self, episodes):
        return [Score(worth(episode)) for episode in episodes if not fails(episode)]


class Service(ThreadingHTTPServer):
    """A judge who answers questions about every third number by a fault, and gives the others their number, of 10."""

    def __init__(self, fault):
        super().__init__(("127.0.0.1", 0), Question)
        self.fault, self.closing = fault, threading.Event()

    def handle_error(self, request, client_address):
        """The client may be gone."""


class Question(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        number = int(re.search(r"Number (\d+)\?", asked)[1])
        status, text = self.server.fault if number % 3 == 0 else (200, reply(f"Score: {number}"))
        if status is None:  # not a word, until the client gives up
            self.server.closing.wait(10)
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


def reply(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


FAULTS = {  # a function as a reward, a reward, or what the judge's service answers; and the reason that is given
    "raise": (raises, "raises: RuntimeError: told to"),
    "nan": (lambda episode: math.nan if fails(episode) else worth(episode), "returned nan, not a finite number"),
    "infinite": (lambda episode: math.inf if fails(episode) else worth(episode), "returned inf, not a finite number"),
    "no number": (lambda episode: None if fails(episode) else worth(episode), "returns a number or a textgym.Score"),
    "wrong length": (TooFew(), r"returned 0 scores for 1 episodes"),
    "hang": ("hang", r"hangs: no score within 0\.5 s"),
    "judge: 500": ((500, "out of memory"), r"judge: HTTP 500: 'out of memory' \(attempt 2, the last\)"),
    "judge: 429": ((429, "slow down"), r"judge: HTTP 429: 'slow down' \(attempt 2, the last\)"),
    "judge: garbage": ((200, "<html>"), "judge: the answer is no chat completion: '<html>'"),
    "judge: no score": ((200, reply("I would rather not.")), "judge: no score in the judge's reply"),
    "judge: empty": ((200, ""), "judge: the answer is no chat completion: ''"),
    "judge: nothing": ((None, ""), r"judge: no answer within 0\.5 s \(attempt 2, the last\)"),
}


@pytest.fixture(params=FAULTS)
def faulty(request, monkeypatch):
    """A reward that fails for a third of the samples, and the reason, as a regular expression."""
    how, reason = FAULTS[request.param]
    if how == "hang":
        released = threading.Event()

        def hangs(episode):
            if fails(episode):
                released.wait(1000)
            return worth(episode)

        yield Timeout(hangs, 0.5), reason
        released.set()
    elif isinstance(how, tuple):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with Service(how) as service:
            thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            url = f"http://127.0.0.1:{service.server_port}/v1"
            timeout = 0.5 if how[0] is None else 30.0
            yield Judge(url, "judge-1", timeout=timeout, retries=1, backoff=0.01), reason
            service.closing.set()
            service.shutdown()
            thread.join()
    else:
        yield how, reason


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return tiny_run.save_model(tmp_path_factory.mktemp("model"), tokenizer)


def make_env(reward, tokenizer):
    reward = as_reward(reward) + bonus
    return textgym.TokenVectorEnv(Numbers(), N_ENVS, reward=reward, tokenizer=tokenizer, max_context=48)


def make_agent(reward, model, tokenizer):
    venv = make_env(reward, tokenizer)
    return PPO(
        "CausalLMPolicy", venv, n_episodes=N_EPISODES, batch_size=64, n_epochs=1, gamma=1.0, learning_rate=1e-3, seed=0,
        device="cpu", policy_kwargs={"model": model},
    )  # fmt: skip


class Rollout(BaseCallback):
    """Keeps the episodes that end in a rollout, in order, with their environment, and what is then trained on."""

    def _on_rollout_start(self):
        self.ended = []

    def _on_step(self):
        ended = enumerate(zip(self.locals["dones"], self.locals["infos"], strict=True))
        self.ended += [(env, info) for env, (done, info) in ended if done]
        return True

    def _on_rollout_end(self):
        buffer, tokenizer = self.model.rollout_buffer, self.model.policy.tokenizer
        self.trained_on = [tokenizer.decode(buffer.streams[s.environment, s.start : s.stop]) for s in buffer.segments]
        self.n_unscored = buffer.n_unscored
        self.logged = dict(self.logger.name_to_value)

    @property
    def played(self):
        return [(env, info["episode_record"]["id"], info["response"]) for env, info in self.ended]


def test_a_rollout_of_ppo(faulty, model, tokenizer):
    reward, reason = faulty
    whole = Rollout()
    make_agent(worth, model, tokenizer).learn(1, callback=whole)

    agent, rollout, shown = make_agent(reward, model, tokenizer), Rollout(), []
    before = torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])
    callbacks = [EpisodeMetrics(), FailureLimit(1.0, show=shown.append), rollout]
    agent.learn(1, callback=CallbackList(callbacks))

    # no episode is lost: they are those of a run whose reward never fails, in the same order
    assert rollout.played == whole.played
    records = [info["episode_record"] for _, info in rollout.ended]
    failed = [record for record in records if int(record["id"]) % 3 == 0]
    scored = [record for record in records if int(record["id"]) % 3]
    assert failed
    assert scored

    # each failure has its reason; each other episode its score
    assert all(re.search(reason, record["score_status"]) and record["reward"] == 0.0 for record in failed)
    assert all(record["score_status"] == "ok" for record in scored)
    assert [record["reward"] for record in scored] == [2 * int(record["id"]) / 10 for record in scored]
    assert all(record["reward_parts"]["bonus"] == int(record["id"]) / 10 for record in records)

    # counted, and shown with reason and episode
    assert rollout.logged["rollout/failed"] == len(failed)
    assert rollout.logged["rollout/failed_share"] == len(failed) / len(records)
    assert shown == [
        *(failure_text(record["score_status"], record) for record in failed[:3]),
        f"  {len(failed)} of {len(records)} episodes have no score, such as: {failed[0]['score_status']}",
    ]

    # kept out of the update
    assert rollout.n_unscored + len(rollout.trained_on) == N_EPISODES
    numbers = [int(re.match(r"Number (\d+)\?", text)[1]) for text in rollout.trained_on]
    assert numbers
    assert all(number % 3 for number in numbers)
    after = torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)

    # and out of the averages
    values = [int(record["id"]) for record in scored]
    assert rollout.logged["rollout/number"] == pytest.approx(np.mean(values))
    parts = {name: value for name, value in rollout.logged.items() if name.startswith("reward/")}
    assert len(parts) == 2
    assert all(value == pytest.approx(np.mean(values) / 10) for value in parts.values())
    assert np.mean([episode["r"] for episode in agent.ep_info_buffer]) == pytest.approx(2 * np.mean(values) / 10)
    assert all(("episode" in info) == (info["score_status"] == "ok") for _, info in rollout.ended)


def test_an_evaluation(faulty, model, tokenizer):
    reward, reason = faulty
    agent = make_agent(reward, model, tokenizer)
    venv = make_env(reward, tokenizer)
    ended = []
    episodes = play_policy(agent.policy, venv, on_episode=ended.append)
    assert [episode.sample.id for episode in episodes] == [str(i) for i in range(N_SAMPLES)]
    assert len(ended) == N_SAMPLES
    for episode in episodes:
        assert re.search(reason if fails(episode) else "^ok$", episode.score_status)
        assert episode.reward == (0.0 if fails(episode) else 2 * worth(episode))
    summary = summarise(venv.task, episodes)
    scored = [i for i in range(N_SAMPLES) if i % 3]
    assert summary["unscored"]["value"] == N_SAMPLES - len(scored)
    assert summary["unscored"]["n"] == N_SAMPLES
    assert (summary["reward"]["value"], summary["reward"]["n"]) == (
        pytest.approx(2 * np.mean(scored) / 10),
        len(scored),
    )
    assert summary["number"]["value"] == pytest.approx(np.mean(scored))
