import math
import re

import pytest
import stable_baselines3
import tiny_run
import torch
from toy import MODELS, ToyEnv

import textgym
from textgym.agents import PPO
from textgym.agents.run_settings import Settings
from textgym.agents.training import Training
from textgym.agents.training_callbacks import FailureLimit, failure_text, too_many_failures
from textgym.errors import ConfigurationError, RewardError
from textgym.monitor import Monitor

ENV = "tests/Service-v0"


class Service:
    """A reward that is up or down, for all episodes or for those of a split."""

    def __init__(self):
        self.down = lambda episode: False

    def __call__(self, episode):
        if self.down(episode):
            raise ConnectionError("the service is down")
        return float(episode.response == episode.sample.references[0]) - len(episode.response) / 10


SERVICE = Service()
textgym.register(ENV, task=tiny_run.Sums, reward=textgym.reward(SERVICE, name="service"))


@pytest.fixture
def service():
    SERVICE.__init__()
    return SERVICE


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return tiny_run.save_model(tmp_path_factory.mktemp("model"), tokenizer)


def settings_of(model, **options):
    return Settings(ENV, model=model, device="cpu", options={**tiny_run.OPTIONS, **options})


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run whose reward never failed."""
    SERVICE.__init__()
    path = tmp_path_factory.mktemp("runs") / "whole"
    Training.start(settings_of(model), path).run()
    return path


class Breaks(Monitor):
    """Takes the service down for the episodes of a split, from some point of PPO on."""

    def __init__(self, service, split, after):
        self.service, self.split, self.after = service, split, after
        self.now, self.notes = "", []
        if after is None:
            self.break_it()

    def break_it(self):
        self.service.down = lambda episode: episode.sample.id.startswith(self.split)

    def stage(self, name, what):
        self.now = name

    def progress(self, done, total, figures):
        if self.now == "ppo" and self.after is not None and done >= self.after:
            self.break_it()

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("split", "after", "resumes_at"),
    [
        ("test", None, None),  # before anything is evaluated
        ("train", None, None),  # in the first rollout
        ("train", 40, "later"),
        ("validation", 40, "later"),
        ("test", 40, "end"),  # when PPO is over
    ],
)
def test_a_run_that_was_stopped_ends_as_one_whose_reward_never_failed(
    model, finished, service, tmp_path, split, after, resumes_at
):
    path = tmp_path / "run"
    monitor = Breaks(service, split, after)
    message = (
        r"could not be scored, and the limit is 20%; the reason of all of them: service: ConnectionError: the service "
        rf"is down\. The run is saved; mend the reward, and go on: textgym train --resume {re.escape(str(path))}$"
    )
    with pytest.raises(RewardError, match=message):
        Training.start(settings_of(model), path, monitor).run()
    assert not (path / "curves.png").exists()
    if resumes_at == "later":
        agent = PPO.load(path / "agent.zip")
        assert 0 < agent.num_timesteps < 120
        assert agent.num_timesteps == int(tiny_run.progress_of(path)[-1]["time/total_timesteps"])
    assert (path / "agent.zip").exists() is (resumes_at is not None)

    service.down = lambda episode: False
    stages = Training.resume(path).run()
    assert list(stages) == ["base", "sft", "ppo"]
    assert all(set(figures) == {"accuracy", "reward", "unscored"} for figures in stages.values())
    tiny_run.assert_ended_alike(path, finished)


def test_failures_below_the_limit_are_counted_and_shown(model, service, tmp_path):
    path = tmp_path / "run"
    service.down = lambda episode: episode.sample.id == "train3"
    monitor = Breaks(service, "nothing", 1e9)
    stages = Training.start(settings_of(model, **{"reward.max_failed_share": 0.9}), path, monitor).run()
    assert list(stages) == ["base", "sft", "ppo"]
    lines = [note.split() for note in monitor.notes if "have no score, such as: service: ConnectionError" in note]
    rows = [row for row in tiny_run.progress_of(path) if float(row["rollout/failed"])]
    assert [int(float(row["rollout/failed"])) for row in rows] == [int(failed) for failed, *_ in lines]
    assert [float(row["rollout/failed_share"]) for row in rows] == [int(line[0]) / int(line[2]) for line in lines]
    assert sum(int(failed) for failed, *_ in lines) > 3
    shown = [note for note in monitor.notes if note.startswith("  no score: ")]
    assert len(shown) == 3
    assert shown[0].startswith(
        "  no score: service: ConnectionError: the service is down\n    sample 'train3'\n    prompt '3+1='\n    reply "
    )


def test_failures_of_an_evaluation_are_shown(model, service, tmp_path):
    service.down = lambda episode: episode.sample.id == "test3"
    monitor = Breaks(service, "nothing", 1e9)
    stages = Training.start(settings_of(model, total_timesteps=40), tmp_path / "run", monitor).run()
    assert stages["base"]["unscored"]["value"] == 1
    assert stages["base"]["reward"]["n"] == 5
    assert sum("sample 'test3'" in note for note in monitor.notes) == 3


def test_the_limit_is_a_share(model, service, tmp_path):
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ConfigurationError, match=r"'reward.max_failed_share' is a share, from 0 to 1"):
            Training.start(settings_of(model, **{"reward.max_failed_share": wrong}), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"is a number, such as 0\.2, not 'many'"):
        Training.start(settings_of(model, **{"reward.max_failed_share": "many"}), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"Did you mean 'reward\.max_failed_share'"):
        Training.start(settings_of(model, **{"reward.max_failure_share": 0.5}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------- with SB3 alone


class Fragile(ToyEnv):
    """An episode fails once the environments have seen so many in all."""

    ended = 0
    fails_after = 10**9

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            type(self).ended += 1
            info["score_status"] = "broken" if type(self).ended > self.fails_after else "ok"
        return observation, reward, terminated, truncated, info


@pytest.fixture
def fragile():
    Fragile.ended = 0
    return Fragile


def parameters(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


def test_training_stops_before_the_update(fragile, tmp_path):
    fragile.fails_after = 12
    saved, said, reports = [], [], []

    class Updates(stable_baselines3.common.callbacks.BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            reports.append((self.num_timesteps, parameters(self.model), list(self.model.ep_info_buffer)))

    def on_stop(message):
        saved.append((agent.num_timesteps, message))
        agent.save(tmp_path / "agent")

    torch.manual_seed(0)
    agent = stable_baselines3.PPO("MultiInputPolicy", fragile(), n_steps=32, batch_size=32, seed=0, device="cpu")
    limit = FailureLimit(0.1, show=said.append, on_stop=on_stop)
    with pytest.raises(
        RewardError, match=r"^[1-9]\d* of \d+ episodes \(\d+%\) could not be scored, and the limit is 10%"
    ):
        agent.learn(1000, callback=[limit, Updates()])
    steps, weights, running_means = reports[-1]
    assert steps > 0
    assert not torch.equal(weights, reports[0][1])
    assert torch.equal(parameters(agent), weights)
    assert list(agent.ep_info_buffer) == running_means != []
    (stop,) = saved
    assert stop[0] == agent.num_timesteps == steps
    assert "broken" in stop[1]
    assert said[0] == "  no score: broken"
    fragile.fails_after = 10**9
    again = stable_baselines3.PPO.load(tmp_path / "agent", env=fragile(), device="cpu")
    again.learn(64, reset_num_timesteps=False, callback=FailureLimit(0.1))
    assert again.num_timesteps == steps + 64


def test_failures_do_not_move_the_running_means(fragile):
    fragile.fails_after = 0
    agent = PPO(
        "CausalLMPolicy",
        fragile(),
        n_steps=32,
        batch_size=32,
        seed=0,
        device="cpu",
        policy_kwargs={"model": MODELS["llama"]()},
    )
    with pytest.raises(RewardError, match=r"\(100%\)"):
        agent.learn(64, callback=FailureLimit(show=lambda text: None))
    assert agent.num_timesteps == 0
    assert not agent.ep_info_buffer


def test_a_limit_that_is_just_reached_is_borne(fragile):
    """And one failure more is not."""
    seen = []

    class Half(ToyEnv):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated:
                seen.append("broken" if len(seen) % 2 else "ok")
                info["score_status"] = seen[-1]
            return observation, reward, terminated, truncated, info

    for share, stops in ((0.5, False), (0.49, True)):
        seen.clear()
        agent = stable_baselines3.A2C("MultiInputPolicy", Half(turn_tokens=1), n_steps=8, device="cpu")
        limit = FailureLimit(share, show=lambda text: None)
        if stops:
            with pytest.raises(RewardError, match=r"4 of 8 episodes \(50%\)"):
                agent.learn(16, callback=limit)
        else:
            agent.learn(16, callback=limit)
        assert len(seen) == (8 if stops else 16)


def test_short_rollouts_are_taken_together(fragile):
    fragile.fails_after = 3
    agent = stable_baselines3.DQN(
        "MultiInputPolicy", fragile(turn_tokens=1), buffer_size=100, learning_starts=1000, train_freq=1, device="cpu"
    )
    with pytest.raises(RewardError, match=r"^7 of 10 episodes"):
        agent.learn(100, callback=FailureLimit(0.6, min_episodes=10, show=lambda text: None))
    fragile.ended = 0
    with pytest.raises(RewardError, match=r"^1 of 1 episodes"):
        agent.learn(100, callback=FailureLimit(0.6, show=lambda text: None))


def test_each_training_is_judged_by_itself(fragile):
    fragile.fails_after = 100
    limit = FailureLimit(min_episodes=1000, show=lambda text: None)
    agent = stable_baselines3.A2C("MultiInputPolicy", fragile(turn_tokens=1), n_steps=10, device="cpu")
    for _ in range(2):
        agent.learn(20, callback=limit)
        assert len(limit.statuses) == 20


def test_failures_are_printed_by_default(fragile, capsys):
    fragile.fails_after = 4
    agent = stable_baselines3.A2C("MultiInputPolicy", fragile(turn_tokens=1), n_steps=10, device="cpu")
    agent.learn(20, callback=FailureLimit(1.0))
    assert capsys.readouterr().out.splitlines() == [
        *["  no score: broken"] * 3,
        "  6 of 10 episodes have no score, such as: broken",
        "  10 of 10 episodes have no score, such as: broken",
    ]


def test_wrong_limits():
    with pytest.raises(ConfigurationError, match=r"max_share=1\.5"):
        FailureLimit(1.5)
    with pytest.raises(ConfigurationError, match="min_episodes=0"):
        FailureLimit(0.5, min_episodes=0)


def test_the_commonest_reason_is_given():
    statuses = ["ok"] * 6 + ["judge: 500", "judge: 429", "judge: 500"]
    assert too_many_failures(statuses, 1 / 3) is None
    assert too_many_failures([], 0.0) is None
    assert too_many_failures(statuses, 0.3) == (
        "3 of 9 episodes (33%) could not be scored, and the limit is 30%; the reason of 2 of them: judge: 500"
    )


def test_a_failure_for_people_to_read():
    record = {
        "id": "s1",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "turns": [
            {"role": "assistant", "text": "first"},
            {"role": "user", "text": "and?"},
            {"role": "assistant", "text": "x" * 400},
        ],
    }
    assert failure_text("why", record).splitlines() == [
        "  no score: why",
        "    sample 's1'",
        "    prompt 'system: Be brief.\\nuser: Hello?'",
        f"    reply '{'x' * 300} ...'",
    ]
    assert failure_text("why", None) == "  no score: why"
