import json
import math
import re
import signal
from dataclasses import replace

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import textgym
from textgym import Sample, make_vec
from textgym.agents import PPO
from textgym.agents.run_settings import LinearDecay, Settings, freeze, load_reward
from textgym.agents.teaching import mark_known, taught_samples
from textgym.agents.training import Training
from textgym.agents.training_callbacks import start_values_at
from textgym.errors import (
    ConfigurationError,
    DataError,
    ModelError,
    PromptTooLongError,
    RewardError,
    UnknownEnvironmentError,
)
from textgym.monitor import Monitor


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return tiny_run.save_model(tmp_path_factory.mktemp("model"), tokenizer)


def settings_of(model, **options):
    return Settings(tiny_run.ENV, model=model, device="cpu", options={**tiny_run.OPTIONS, **options})


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A whole run that nothing interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    Training.start(settings_of(model), path).run()
    return path


class Interrupts(Monitor):
    """Presses Ctrl-C, twice as it were, at some point of some stage."""

    def __init__(self, stage, done):
        self.wanted, self.done, self.now = stage, done, ""

    def stage(self, name, what):
        self.now = name

    def progress(self, done, total, figures):
        if self.now == self.wanted and done >= self.done:
            raise KeyboardInterrupt


def read(path, name):
    return json.loads((path / name).read_text())


def test_the_learning_rate_falls_to_zero_and_stays_there():
    decay = LinearDecay(3e-4)
    assert [decay(progress) for progress in (1.0, 0.5, 0.0, -0.24)] == [3e-4, 1.5e-4, 0.0, 0.0]


def test_results_have_the_form_that_others_read(finished):
    results = read(finished, "results.json")
    assert list(results) == ["stages"]
    assert list(results["stages"]) == ["base", "sft", "ppo"]
    for metrics in results["stages"].values():
        assert {"reward", "accuracy"} <= metrics.keys()
        for estimate in metrics.values():
            assert list(estimate) == ["value", "low", "high", "n"]
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
            assert estimate["n"] == 6


def test_the_folder_is_complete(finished):
    config = read(finished, "config.json")
    assert config["env"] == tiny_run.ENV
    assert config["options"]["ppo.gamma"] == 1.0
    assert {"python", "torch", "transformers", "stable-baselines3", "textgym"} <= config["versions"].keys()
    rows = tiny_run.progress_of(finished)
    assert [int(row["time/iterations"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {"rollout/kl", "rollout/accuracy", "reward/reward", "validation/accuracy"} <= rows[0].keys()
    assert list(finished.glob("events.out.tfevents*"))
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.rglob("*partial*"))


def test_episodes_of_every_stage_are_about_the_same_samples(finished):
    records = [json.loads(line) for line in (finished / "episodes.jsonl").read_text().splitlines()]
    by_stage = {stage: [r["id"] for r in records if r["stage"] == stage] for stage in ("base", "sft", "ppo")}
    assert by_stage["base"] == by_stage["sft"] == by_stage["ppo"]
    assert len(by_stage["base"]) == 3
    assert {"prompt", "response", "reward", "reward_parts", "stop_reason", "references"} <= records[0].keys()


def test_the_best_weights_on_validation_are_kept(finished):
    rows = [json.loads(line) for line in (finished / "validation.jsonl").read_text().splitlines()]
    values = [row["metrics"]["reward"]["value"] for row in rows]
    assert rows[0]["timesteps"] == 0
    assert [row["best"] for row in rows] == [v > max(values[:i], default=-math.inf) for i, v in enumerate(values)]
    best = read(finished, "state.json")["ppo"]["best"]
    assert best == [max(values), rows[values.index(max(values))]["timesteps"]]


class Notes(Monitor):
    """Keeps what a run says."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_the_warm_start_ends_where_the_validation_loss_is_lowest(model, tmp_path):
    def warm_started(name, **options):
        monitor = Notes()
        settings = settings_of(model, **{"warm_start.learning_rate": 3.0, "total_timesteps": 1, **options})
        Training.start(settings, tmp_path / name, monitor).run()
        return load_file(tmp_path / name / "warm_started" / "model.safetensors"), monitor.notes

    best, notes = warm_started("best", **{"warm_start.epochs": 5})
    assert re.search(r"lowest after epoch 1 of 5: ", notes[0]), notes
    once, _ = warm_started("once", **{"warm_start.epochs": 5, "warm_start.keep_best": False})
    assert any(not torch.equal(best[name], once[name]) for name in best)


def test_a_warm_start_that_diverges_is_called_that(model, tmp_path, monkeypatch):
    settings = settings_of(model, **{"warm_start.learning_rate": 1e30, "warm_start.batch_size": 1})
    training = Training.start(settings, tmp_path / "run", Notes())
    with pytest.raises(ConfigurationError, match=r"diverged in its first epoch.* Lower its learning rate"):
        training._warm_start()
    monkeypatch.setattr(training, "_imitate", lambda *_: [2.0, 1.5, math.nan])
    training._warm_start()
    assert training.monitor.notes == ["  validation loss lowest after epoch 2 of 3: 1.500"]


def test_without_demonstrations_to_validate_on_the_warm_start_ends_with_its_last_epoch(model, tmp_path):
    class Undemonstrated(tiny_run.Sums):
        def demonstration(self, sample):
            return super().demonstration(sample) if sample.id.startswith("train") else None

    textgym.register("tests/Undemonstrated-v0", task=Undemonstrated)
    weights = []
    for env, keep_best in (("tests/Undemonstrated-v0", True), (tiny_run.ENV, False)):
        settings = settings_of(model, **{"warm_start.epochs": 2, "warm_start.keep_best": keep_best})
        training = Training.start(replace(settings, env=env), tmp_path / str(keep_best), Notes())
        training._warm_start()
        weights.append(training.policy.model.state_dict())
        assert [("ends with the last epoch" in note) for note in training.monitor.notes] == [True] * keep_best
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_the_agent_is_a_transformers_folder_and_a_zip_with_the_same_weights(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "agent")
    agent = PPO.load(finished / "agent.zip")
    for name, parameter in agent.policy.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name


@pytest.mark.parametrize(("stage", "done"), [("base", 2), ("warm start", 1), ("ppo", 1), ("ppo", 100)])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(model, finished, tmp_path, stage, done):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Training.start(settings_of(model), path, Interrupts(stage, done)).run()
    assert not (path / "curves.png").exists()
    assert (path / "agent.zip").exists() is (done == 100)  # after the first evaluation there is a checkpoint
    Training.resume(path).run()
    tiny_run.assert_ended_alike(path, finished)
    names = {file.name for file in finished.iterdir() if "tfevents" not in file.name}
    assert names <= {file.name for file in path.iterdir()}


def test_ctrl_c_in_ppo_ends_the_iteration_first(model, finished, tmp_path):
    notes = []

    class CtrlC(Interrupts):
        def progress(self, done, total, figures):
            if self.now == "ppo" and "Ctrl-C" not in notes[-1]:
                signal.raise_signal(signal.SIGINT)

        def note(self, text):
            notes.append(text)

    path = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Training.start(settings_of(model), path, CtrlC("ppo", 1)).run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again stops at once" in notes[-1]
    assert len(tiny_run.progress_of(path)) == 1
    assert PPO.load(path / "agent.zip").num_timesteps == int(tiny_run.progress_of(path)[0]["time/total_timesteps"])
    Training.resume(path).run()
    assert (path / "results.json").read_text() == (finished / "results.json").read_text()


def test_a_finished_run_has_nothing_left_to_do(finished):
    before = (finished / "results.json").read_text()
    assert Training.resume(finished).run() == json.loads(before)["stages"]
    assert (finished / "results.json").read_text() == before


def test_without_a_warm_start_there_is_no_such_stage(model, tmp_path):
    settings = replace(settings_of(model, total_timesteps=40), warm_start=False)
    assert list(Training.start(settings, tmp_path / "run").run()) == ["base", "ppo"]


def test_a_taught_model_is_probed(model, tmp_path):
    options = {"teach.share": 0.5, "teach.epochs": 1, "teach.probes": 2, "total_timesteps": 40}
    path = tmp_path / "run"
    Training.start(settings_of(model, **options), path).run()
    known = read(path, "known.json")
    assert len(known) == 12
    assert set(known.values()) <= {0.0, 0.5, 1.0}
    assert (path / "taught" / "config.json").is_file()


def test_what_is_known_stands_in_the_samples(tokenizer):
    venv = make_vec(tiny_run.ENV, num_envs=2, tokenizer=tokenizer)
    mark_known(venv, {"train0": 0.5, "train1": 0.4})
    assert [sample.meta for sample in venv.samples[:3]] == [
        {"probe": 0.5, "known": True},
        {"probe": 0.4, "known": False},
        {},
    ]


def test_a_share_of_the_samples_is_taught():
    samples = [sample for split in ("train", "validation", "test") for sample in tiny_run.Sums().samples(split)]
    assert 0 < len(taught_samples(samples, 0.5)) < 18
    assert len(taught_samples(samples, 1)) == 18
    with pytest.raises(ConfigurationError, match=r"not 1\.5"):
        taught_samples(samples, 1.5)


def test_the_recipe_of_a_task_is_for_the_built_in_model(model):
    class Cooked(tiny_run.Sums):
        recipe = {"ppo.learning_rate": 0.5, "total_timesteps": 7}  # noqa: RUF012

    built_in = Settings("x", options={"total_timesteps": 8}).complete(Cooked()).options
    assert (built_in["ppo.learning_rate"], built_in["total_timesteps"]) == (0.5, 8)
    assert Settings("x", model=model).complete(Cooked()).options["ppo.learning_rate"] == 1e-5


def test_frozen_parameters_keep_their_values(model, tmp_path):
    path = tmp_path / "run"
    training = Training.start(settings_of(model, **{"ppo.freeze": "embed"}), path)
    before = {name: parameter.clone() for name, parameter in training.policy.model.named_parameters()}
    freeze(training.policy.model, "embed")
    training.policy.model(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert [name for name, p in training.policy.model.named_parameters() if p.grad is None] == [
        name for name in before if "embed" in name
    ]
    for pattern, message in (("lm_", "freezes 0 parameters"), (".", "freezes"), ("(", "no regular expression")):
        with pytest.raises(ConfigurationError, match=message):
            freeze(training.policy.model, pattern)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ppo.lerning_rate": 1}, r"no setting 'ppo.lerning_rate'. Did you mean 'ppo.learning_rate'"),
        ({"ppo.seed": 1}, r"no setting 'ppo.seed'"),
        ({"warm_start.seed": 1}, r"no setting 'warm_start.seed'"),
        ({"policy.model": "x"}, r"no setting 'policy.model'"),
        ({"total_timestep": 1}, "Did you mean 'total_timesteps'"),
        ({"ppo.gamma": "high"}, "'ppo.gamma' is a number, such as 1.0, not 'high'"),
        ({"warm_start.keep_best": 1}, "'warm_start.keep_best' is true or false, not 1"),
        ({"policy.optimizer_kwargs": '{"fused": true}'}, "'policy.optimizer_kwargs' is a dict, such as"),
        ({"env.colour": "red"}, "takes no argument 'colour'"),
    ],
)
def test_a_wrong_setting_is_named(model, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Training.start(settings_of(model, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_made_leaves_no_folder(model, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError, match="there is no model"):
        Training.start(settings_of(str(tmp_path / "words")), tmp_path / "run")
    with pytest.raises(UnknownEnvironmentError, match="Did you mean"):
        Training.start(Settings("tests/Sum-v0", model=model), tmp_path / "run")
    rows = [{"q": f"{i}+1=", "a": str(i + 1), "split": ("train", "test")[i % 2]} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"prompt": "q", "references": "a"}
    settings = replace(settings_of(model), data=str(tmp_path / "rows.jsonl"), columns=columns)
    with pytest.raises(DataError, match="no samples in the split 'validation'"):
        Training.start(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_too_long_are_found_before_anything_is_trained(model, tmp_path):
    def start(questions):
        rows = [{"q": q, "a": "1", "id": f"{split}{n}", "split": split} for split, n, q in questions]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        columns = {"prompt": "q", "references": "a", "id": "id"}
        settings = replace(settings_of(model), data=str(tmp_path / "rows.jsonl"), columns=columns)
        Training.start(settings, tmp_path / "run")

    fitting = [(split, 0, "1+1=") for split in ("train", "validation", "test")]
    for split in ("train", "validation", "test"):
        with pytest.raises(
            PromptTooLongError, match=rf"^1 of 4 prompts .* max_context=48: '{split}1' with 48 tokens\. "
        ):
            start([*fitting, (split, 1, "1" * 48)])
    long = [("train", n, "1" * (60 + n)) for n in range(1, 6)]
    expected = (
        "5 of 8 .*: 'train1' with 61 tokens, 'train2' .*, 'train3' .* and others. Set max_context to more than 65"
    )
    with pytest.raises(PromptTooLongError, match=expected):
        start([*fitting, *long])
    assert not (tmp_path / "run").exists()
    start(fitting)


def test_the_prompts_of_the_warm_start_are_looked_at_where_there_is_one(model, tmp_path):
    class Taught(tiny_run.Sums):
        def warm_start_samples(self):
            return [Sample("long", "1" * 48, ("1",))]

    textgym.register("tests/Taught-v0", task=Taught)
    settings = replace(settings_of(model), env="tests/Taught-v0")
    with pytest.raises(PromptTooLongError, match=r"1 of 19 prompts .*'long' with 48 tokens"):
        Training.start(settings, tmp_path / "run")
    Training.start(replace(settings, warm_start=False), tmp_path / "run")


def test_a_folder_in_use_is_refused(model, finished, tmp_path):
    with pytest.raises(ConfigurationError, match="exists and is not empty; go on with it: --resume"):
        Training.start(settings_of(model), finished)
    with pytest.raises(ConfigurationError, match=r"holds no training run: there is no config\.json"):
        Training.resume(tmp_path)


def test_rewards_are_named_by_module(monkeypatch, tmp_path):
    (tmp_path / "my_rewards.py").write_text("def short(response): return -len(response)\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("my_rewards:short").name == "short"
    with pytest.raises(ConfigurationError, match="has no 'long'"):
        load_reward("my_rewards:long")
    with pytest.raises(ConfigurationError, match="No module named 'nowhere'"):
        load_reward("nowhere:x")
    with pytest.raises(ConfigurationError, match="module:name"):
        load_reward("my_rewards")
    with pytest.raises(RewardError, match="3"):
        load_reward("my_rewards:number")


def test_a_value_head_that_knows_nothing_starts_at_the_mean_reward(model, tmp_path):
    policy = Training.start(settings_of(model), tmp_path / "run").policy
    for mean, said in ((0.75, 0.75), (0.25, 0.75)):  # the second time it knows something
        start_values_at(policy, mean)
        assert policy.value_head.bias.item() == said
    assert not policy.value_head.weight.any()
