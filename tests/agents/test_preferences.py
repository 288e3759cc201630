"""Learning from data: SFT, DPO and reward models; their losses against what the papers say, computed apart."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import transformers
from shared_data import shared_data
from transformers import TrainingArguments

import textgym
from textgym import Sample
from textgym.agents.completions import IGNORED, collate, complete, sequence_log_probs
from textgym.agents.dpo import DPO
from textgym.agents.objectives import dpo_loss, plackett_luce_loss
from textgym.agents.preferences import Preference, load_preferences, paired, preference_accuracy
from textgym.agents.reward_model_trainer import RewardModelTrainer, calibration_error, preference_report
from textgym.agents.sft import SFT
from textgym.errors import ConfigurationError, DataError, TokenizerError
from textgym.rendering import Renderer

PAIRS = [Preference(Sample(str(i), f"{i} or {i + 1}?"), (f" {i}", f" {i + 1}")) for i in range(12)]


@pytest.fixture
def arguments(tmp_path):
    def make(**kwargs):
        settings = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 3e-3, "use_cpu": True}
        settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 0}
        return TrainingArguments(str(tmp_path / "out"), **settings | kwargs)

    return make


@pytest.fixture
def model(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


# ----------------------------------------------------------------- objectives


def test_the_dpo_loss_is_equation_7():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.001, 0.9, (4, 6))  # of y_w and y_l under the policy, and under the reference
    expected = []
    for won, lost, reference_won, reference_lost in probabilities.T:
        inner = 0.3 * math.log(won / reference_won) - 0.3 * math.log(lost / reference_lost)
        expected.append(-math.log(1 / (1 + math.exp(-inner))))
    loss, margins = dpo_loss(*torch.tensor(probabilities).log(), 0.3)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-9)
    assert margins.numpy() == pytest.approx(-np.log(np.expm1(np.array(expected))), rel=1e-6)


def test_rankings_have_the_likelihood_of_drawing_them_one_by_one():
    scores = np.array([[0.3, -1.0, 2.0], [1.5, 0.2, -np.inf]])
    expected = []
    for row in scores:
        weights = np.exp(row[np.isfinite(row)])
        expected.append(-sum(math.log(weights[k] / weights[k:].sum()) for k in range(len(weights))))
    assert plackett_luce_loss(torch.tensor(scores)).item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_ranking_of_two_is_bradley_and_terrys():
    scores = torch.tensor([[0.4, -0.3], [-1.0, 2.0]], requires_grad=True)
    loss = plackett_luce_loss(scores)
    assert loss.item() == pytest.approx(-torch.sigmoid(scores[:, 0] - scores[:, 1]).log().mean().item(), rel=1e-6)
    padded = torch.cat([scores, torch.full((2, 3), -torch.inf)], -1)
    assert plackett_luce_loss(padded).item() == pytest.approx(loss.item())
    padded.retain_grad()
    plackett_luce_loss(padded).backward()
    assert torch.isfinite(padded.grad).all()
    assert torch.isfinite(scores.grad).all()


def test_log_probabilities_are_of_the_completion_alone(tokenizer, model):
    streams = [complete(Renderer(tokenizer), Sample("a", "The capital of"), reply) for reply in (" Japan is", " X")]
    batch = collate(streams)
    found = sequence_log_probs(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    for stream, value in zip(streams, found, strict=True):
        log_probs = model(torch.as_tensor(stream["input_ids"])[None]).logits[0].log_softmax(-1)
        places = np.flatnonzero(stream["labels"] != IGNORED)
        expected = sum(log_probs[place - 1, stream["input_ids"][place]].item() for place in places)
        assert value.item() == pytest.approx(expected, abs=1e-4)
    assert (batch["labels"] == IGNORED).sum() > 0
    assert streams[0]["input_ids"][-1] == tokenizer.eos_token_id


# ------------------------------------------------------------------- training


def test_sft_learns_completions_and_not_prompts(arguments, model, tokenizer):
    samples = [Sample(str(i), f"Question {i}?", (" All is well.",)) for i in range(8)]
    settings = arguments(num_train_epochs=40, learning_rate=1e-2)
    trainer = SFT(model, settings, samples, samples[:2], tokenizer=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1 < before
    stream = complete(Renderer(tokenizer), samples[3], " All is well.")
    logits = trainer.model(torch.as_tensor(stream["input_ids"])[None]).logits[0]
    places = np.flatnonzero(stream["labels"] != IGNORED)
    assert (logits[places - 1].argmax(-1).numpy() == stream["input_ids"][places]).all()
    of_the_prompt = logits[:3].log_softmax(-1).gather(-1, torch.as_tensor(stream["input_ids"][1:4])[:, None])
    assert of_the_prompt.mean() < -3


def test_sft_goes_on_from_a_checkpoint_and_saves_a_transformers_folder(arguments, model, tokenizer, tmp_path):
    samples = [Sample(str(i), f"Question {i}?", (f" Answer {i}",)) for i in range(20)]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    whole = SFT(model, arguments(save_strategy="steps", save_steps=7), samples, tokenizer=tokenizer)
    whole.train()
    whole.save_model(tmp_path / "whole")
    model.load_state_dict(start)
    again = SFT(model, arguments(save_strategy="no"), samples, tokenizer=tokenizer)
    torch.rand(1)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-7"))  # of 15, in the middle of an epoch
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, loaded.state_dict()[name], atol=1e-6, rtol=1e-5)
    with pytest.raises(DataError, match="no reference"):
        SFT(model, arguments(), [Sample("a", "b")], tokenizer=tokenizer)


def test_dpo_starts_at_log_2_in_bfloat16_too(arguments, tokenizer):
    settings = arguments(bf16=True, max_steps=1, per_device_train_batch_size=12)
    trainer = DPO(None, settings, PAIRS, beta=1.0)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert trainer.state.log_history[0]["rewards/margin"] == 0.0


def test_the_order_is_the_seeds_and_the_epochs(arguments, model, tokenizer):
    preferences = [Preference(Sample(str(i), "a " * i), (" b", " c")) for i in range(20)]
    samples = [Sample(str(i), "a " * i, (" b",)) for i in range(20)]

    def order(trainer_class, dataset, **settings):
        sampler = trainer_class(model, arguments(**settings), dataset, tokenizer=tokenizer)._get_train_sampler()
        return list(sampler), list(sampler)

    for trainer_class, dataset in ((SFT, samples), (DPO, preferences), (RewardModelTrainer, preferences)):
        first = order(trainer_class, dataset)
        assert first[0] != first[1]
        assert sorted(first[0]) == sorted(first[1]) == list(range(20))
        assert order(trainer_class, dataset) == first
        assert order(trainer_class, dataset, data_seed=1)[0] != first[0]


def test_dpo_prefers_what_is_preferred(arguments, model, tokenizer):
    trainer = DPO(model, arguments(num_train_epochs=12), PAIRS[:8], PAIRS[:4], tokenizer=tokenizer, beta=0.5)
    first = trainer.evaluate()
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/accuracy" in entry]
    assert logged[0]["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert logged[-1]["rewards/accuracy"] == 1.0
    difference = logged[-1]["rewards/chosen"] - logged[-1]["rewards/rejected"]
    assert difference == pytest.approx(logged[-1]["rewards/margin"], abs=1e-4)
    last = trainer.evaluate()
    assert last["eval_loss"] < 0.6
    assert "eval_rewards/accuracy" in trainer.state.log_history[-1]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_dpo_with_an_adapter_has_the_model_without_it_for_reference(arguments, model, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = arguments(num_train_epochs=8, learning_rate=1e-2)
    trainer = DPO(model, settings, PAIRS, tokenizer=tokenizer, peft_config=config)
    assert trainer.reference is None
    trainer.train()
    assert trainer.state.log_history[-2]["rewards/accuracy"] > 0.7
    base = trainer.model.get_base_model().state_dict()
    for name, value in before.items():
        torch.testing.assert_close(base.get(name, base.get(name.replace("_proj.", "_proj.base_layer."))), value)
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_ratings_are_refused_where_pairs_are_wanted(arguments, model, tokenizer):
    for rating in (1.0, None):
        with pytest.raises(DataError, match="'a' is a single reply"):
            DPO(model, arguments(), [Preference(Sample("a", "b"), ("c",), rating)], tokenizer=tokenizer)
    with pytest.raises(ConfigurationError, match="beta"):
        DPO(model, arguments(), PAIRS, tokenizer=tokenizer, beta=0.0)


RANKINGS = [Preference(Sample(str(i), f"{i}:"), (" good good", " good", " bad")[: 2 + i % 2]) for i in range(12)]
BINARY = [Preference(Sample(str(i), f"{i}:"), (" good" if i % 2 else " bad",), float(i % 2)) for i in range(16)]
STARS = [Preference(Sample(str(i), f"{i}:"), (" good" * (i % 4) + " so",), float(i % 4)) for i in range(16)]


@pytest.mark.parametrize(
    ("preferences", "kind", "better", "worse"),
    [
        (RANKINGS, "ranking", " good good", " bad"),
        (BINARY, "binary", " good", " bad"),
        (STARS, "regression", " good good good so", " so"),
    ],
)
def test_a_reward_model_scores_as_it_was_shown(arguments, model, tokenizer, preferences, kind, better, worse):
    settings = arguments(num_train_epochs=15)
    trainer = RewardModelTrainer(model, settings, preferences, preferences[-4:], tokenizer=tokenizer)
    assert trainer.kind == kind
    trainer.train()
    report = trainer.evaluate()
    if kind == "regression":
        assert report["eval_correlation"] > 0.9
    else:
        assert report["eval_accuracy"] == 1.0
        assert report["eval_margin/q10"] <= report["eval_margin/q50"] <= report["eval_margin/q90"]
        assert 0 <= report["eval_calibration_error"] < 0.5
    episodes = Preference(Sample("new", "50:"), (better, worse)).episodes()
    good, bad = trainer.reward.score(episodes)
    assert good.value > bad.value


def test_other_preferences_are_evaluated_as_they_are(arguments, model, tokenizer):
    trainer = RewardModelTrainer(model, arguments(), RANKINGS[::2], tokenizer=tokenizer)  # of two replies each
    report = trainer.evaluate(RANKINGS[1::2], metric_key_prefix="test")
    scores = [[score.value for score in trainer.reward.score(ranking.episodes())] for ranking in RANKINGS[1::2]]
    expected = preference_report(np.array(scores), np.full(6, np.nan), "ranking")
    assert {name: report[f"test_{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="of the kind 'ranking'"):
        trainer.evaluate(BINARY)
    ratings = RewardModelTrainer(model, arguments(), BINARY, tokenizer=tokenizer)
    with pytest.raises(DataError, match="of the kind 'binary'"):
        ratings.evaluate(STARS)
    samples = [Sample("a", "b", (" c",))]
    sft = SFT(model, arguments(), samples, tokenizer=tokenizer)
    assert sft.evaluate([Sample("d", "e", (" f",))])["eval_loss"] != sft.evaluate(samples)["eval_loss"]
    report = DPO(model, arguments(), PAIRS[:4], tokenizer=tokenizer).evaluate(PAIRS[4:], metric_key_prefix="test")
    assert report["test_rewards/margin"] == 0.0


@pytest.mark.parametrize("trainer_class", [SFT, DPO, RewardModelTrainer])
def test_data_and_tokenizers_that_do_not_fit_are_named(trainer_class, arguments, model, tokenizer):
    model.config.max_position_embeddings = 20
    with pytest.raises(DataError, match="there are no"):
        trainer_class(model, arguments(), [], tokenizer=tokenizer)
    if trainer_class is not RewardModelTrainer:  # which shortens texts
        long = " good" * 30
        preference = Preference(Sample("long", "b", (long,)), (long, " c"))
        dataset = [preference.sample if trainer_class is SFT else preference]
        with pytest.raises(DataError, match=r"'long' has .* and the model has positions for 20"):
            trainer_class(model, arguments(), dataset, tokenizer=tokenizer)
    model.resize_token_embeddings(100)
    with pytest.raises(TokenizerError, match="embedding only 100"):
        trainer_class(model, arguments(), PAIRS, tokenizer=tokenizer)


def test_padding_is_no_token_that_says_something(arguments, model, tokenizer):
    plain = copy.copy(tokenizer)
    plain.pad_token = None
    trainer = RewardModelTrainer(model, arguments(), RANKINGS, tokenizer=plain)
    assert trainer.reward.model.config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_language_models_adapter_is_merged_into_the_reward_model(arguments, model, tokenizer):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    trainer = RewardModelTrainer(adapted, arguments(), RANKINGS, tokenizer=tokenizer)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = adapted.get_base_model().model(ids)[0]
        torch.testing.assert_close(trainer.reward.model.model(ids)[0], expected, atol=1e-5, rtol=1e-5)
    assert peft.PeftModel in type(adapted).__mro__
    assert any("lora" in name for name, _ in adapted.named_parameters())


def test_batches_are_of_texts_of_similar_length(arguments, model, tokenizer):
    lengths = np.random.default_rng(0).permutation(np.repeat([1, 40], 24))
    preferences = [Preference(Sample(str(i), "p"), (" good" * n,), float(i % 2)) for i, n in enumerate(lengths)]
    pairs = [Preference(Sample(str(i), "p"), (" good" * n, " bad" * n)) for i, n in enumerate(lengths)]
    for trainer in (
        RewardModelTrainer(model, arguments(), preferences, tokenizer=tokenizer),
        DPO(model, arguments(), pairs, tokenizer=tokenizer),
    ):
        batches = list(trainer.get_train_dataloader())
        assert sum(len(batch["input_ids"]) for batch in batches) == len(lengths) * (1 + isinstance(trainer, DPO))
        alike = [(batch["attention_mask"].sum(1) > 20).unique().numel() == 1 for batch in batches]
        assert sum(alike) > len(batches) / 2  # drawn without regard to length, 1 in 8


def test_the_loss_is_that_of_the_reward_models_own_scores(arguments, model, tokenizer):
    trainer = RewardModelTrainer(model, arguments(), RANKINGS, tokenizer=tokenizer)
    batch = trainer._collate([trainer.train_dataset[i] for i in (0, 1, 2)])
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch).item()
    expected = []
    for ranking in RANKINGS[:3]:
        weights = np.exp([score.value for score in trainer.reward.score(ranking.episodes())])
        expected.append(-sum(math.log(weights[k] / weights[k:].sum()) for k in range(len(weights))))
    assert loss == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_tokenizer_without_padding_gets_some_for_the_reward_model_alone(arguments, model, tokenizer):
    """Trainer aligns the model's configuration with the tokenizer, and a classifier cannot do without padding."""
    assert tokenizer.pad_token is None
    trainer = RewardModelTrainer(model, arguments(max_steps=1), BINARY, tokenizer=tokenizer)
    trainer.train()
    assert trainer.model.config.pad_token_id == tokenizer.eos_token_id == trainer.processing_class.pad_token_id
    assert tokenizer.pad_token is None


def test_a_trained_reward_model_rewards_in_any_environment(arguments, model, tokenizer, tmp_path):
    trainer = RewardModelTrainer(model, arguments(num_train_epochs=15), BINARY, tokenizer=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "rm")
    reward = textgym.rewards.RewardModel(str(tmp_path / "rm"))
    talk = textgym.make("textgym/Copy-v0", level="turn", reward=reward)
    values = {}
    for reply in (" good", " bad"):
        talk.reset(seed=0)
        values[reply] = talk.step(reply)[1]
    assert values[" good"] > values[" bad"]


def test_several_kinds_and_several_classes_are_refused(arguments, model, tokenizer):
    with pytest.raises(DataError, match="one kind"):
        RewardModelTrainer(model, arguments(), [*BINARY, *RANKINGS], tokenizer=tokenizer)
    classes = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3,
            intermediate_size=16, pad_token_id=0,
        )
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="3 classes"):
        RewardModelTrainer(classes, arguments(), BINARY, tokenizer=tokenizer)


def test_reports_are_worked_numbers():
    scores = np.array([[2.0, 1.0, 3.0], [0.5, 0.5, -np.inf]])
    report = preference_report(scores, np.full(2, np.nan), "ranking")
    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert report["margin/q50"] == 0.0
    binary = preference_report(np.array([[2.0], [-1.0], [0.5]]), np.array([1.0, 0.0, 0.0]), "binary")
    assert binary["accuracy"] == pytest.approx(2 / 3)
    assert binary["margin/q50"] == 1.0
    assert calibration_error(np.array([0.85, 0.85, 0.25]), np.array([True, False, False])) == pytest.approx(
        (abs(1.7 - 1) + 0.25) / 3
    )


# ----------------------------------------------------------------------- data


def test_files_of_every_kind_are_read(tmp_path):
    rows = {
        "pairs": {"prompt": "p", "chosen": "a", "rejected": "b"},
        "edits": {"prompt": "p", "original": "b", "edited": "a"},
        "ranks": {"prompt": "p", "responses": ["a", "b", "c"]},
        "rated": {"prompt": "p", "response": "a", "rating": "3"},
    }
    found = {}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        (preference,) = (p for split in load_preferences(tmp_path / f"{name}.jsonl").values() for p in split)
        found[name] = preference.replies, preference.rating
    assert found == {
        "pairs": (("a", "b"), None),
        "edits": (("a", "b"), None),
        "ranks": (("a", "b", "c"), None),
        "rated": (("a",), 3.0),
    }
    renamed = [{"question": "p", "better": "a", "worse": "b"}]
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert [p.replies for split in load_preferences(renamed, columns).values() for p in split] == [("a", "b")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "neither chosen and rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "a reply is a text, not 3"),
        ({"prompt": "p", "response": "a", "rating": "good"}, "a rating is a number, not 'good'"),
        ({"prompt": "p", "response": "a", "rating": float("nan")}, "a rating is a number"),
        ({"prompt": "p", "responses": ["a"]}, "neither"),
    ],
)
def test_rows_of_no_kind_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        load_preferences([row])
    with pytest.raises(DataError, match="no layout 'nothing'"):
        load_preferences([row], "nothing")


@pytest.mark.parametrize(
    ("file", "layout", "n"),
    [
        ("taskmaster_reward/TM-3-2020.jsonl", "taskmaster", 1587),
        ("taskmaster_reward/TM-4-2024.jsonl", "taskmaster", 2277),
        ("sentence_polarity/sentence_polarity.jsonl", "sentence_polarity", 10_662),
    ],
)
def test_real_preferences_are_read(file, layout, n):
    splits = load_preferences(shared_data(file), layout)
    preferences = [preference for split in splits.values() for preference in split]
    assert len(preferences) == n
    assert {preference.rating for preference in preferences} == {0.0, 1.0}
    assert set(splits) == {"train", "validation", "test"}


def test_taskmasters_calls_are_replies_and_a_dialogue_is_in_one_split():
    said = {"role": "user", "text": "A latte."}
    call, answer = {"get_menu_items": {"query": "latte"}}, {"items": ["Latte"]}
    context = [said, {"role": "agent", "api": call}, {"role": "api", "response": answer}]
    rows = [
        {"id": str(i), "context": context, "generation": generation, "reward": reward}
        for i, (generation, reward) in enumerate([({"role": "agent", "text": "One latte?\n"}, 1.0), (context[1], 0.0)])
    ]
    ((words, again),) = load_preferences([*rows, {**rows[0], "id": "2", "context": []}], "taskmaster").values()
    assert words.sample.messages == [
        {"role": "user", "content": "A latte."},
        {"role": "assistant", "content": json.dumps(call)},
        {"role": "system", "content": json.dumps(answer)},
    ]
    assert words.replies == (" One latte?",)
    assert again.replies == (f" {json.dumps(call)}",)
    assert paired([again, words]) == [Preference(words.sample, words.replies + again.replies)]


# ---------------------------------------------------------- ratings as pairs


def rated(prompt, *ratings):
    return [
        Preference(Sample(f"{prompt}{i}", prompt), (f" {i}: {rating}",), float(rating))
        for i, rating in enumerate(ratings)
    ]


def ratings_of(pairs):
    return sorted(tuple(float(reply.rpartition(" ")[2]) for reply in pair.replies) for pair in pairs)


def test_ratings_of_the_same_prompt_become_as_many_pairs_as_there_can_be():
    assert ratings_of(paired(rated("a", 0, 1, 0, 1, 0))) == [(1, 0), (1, 0)]
    assert ratings_of(paired(rated("a", 1, 1, 1, 0))) == [(1, 0)]
    assert ratings_of(paired(rated("a", 5, 1, 3, 2))) == [(3, 1), (5, 2)]
    assert paired([*rated("a", 1, 1), *rated("b", 0), *rated("c")]) == []
    pairs = paired([*rated("a", 0, 1), *rated("b", 1, 0)])
    assert [pair.sample.prompt for pair in pairs] == ["a", "b"]
    assert all(pair.rating is None for pair in pairs)
    assert paired(PAIRS) == PAIRS


def test_which_ratings_go_together_is_drawn():
    many = rated("a", *[0, 1] * 20)
    pairs = paired(many, seed=1)
    assert len(pairs) == len({reply for pair in pairs for reply in pair.replies}) // 2 == 20
    assert pairs == paired(many, seed=1)
    assert pairs != paired(many, seed=2)


def score_of(response):
    return float(response.rpartition(" ")[2])


def test_accuracy_is_the_share_of_pairs_told_rightly():
    reward = textgym.reward(score_of)
    rankings = [
        Preference(Sample(str(i), "p"), replies) for i, replies in enumerate([(" 3", " 2", " 4"), (" 1", " 1")])
    ]
    assert preference_accuracy(reward, rankings)["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert preference_accuracy(reward, rated("a", 0, 1, 2))["value"] == 1.0
    ratings = [
        Preference(Sample(str(i), str(i)), (f" {score}",), rating)
        for i, (score, rating) in enumerate([(0.9, 1.0), (0.2, 1.0), (0.2, 0.0), (0.5, 0.0)])
    ]
    found = preference_accuracy(reward, ratings)  # two right, a tie and a wrong one
    assert found["value"] == pytest.approx(2.5 / 4)
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_the_interval_of_an_accuracy_covers_what_it_is_an_estimate_of():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):  # of normal scores one standard deviation apart, 76% of the pairs are told rightly
        ratings = rng.integers(2, size=120)
        scores = rng.normal(ratings)
        preferences = [
            Preference(Sample(str(i), "p"), (f" {score}",), float(rating))
            for i, (score, rating) in enumerate(zip(scores, ratings, strict=True))
        ]
        found = preference_accuracy(textgym.reward(score_of), preferences)
        covered += found["low"] <= 0.7602 <= found["high"]
    assert 90 <= covered <= 99


def test_what_has_no_accuracy_is_refused():
    reward = textgym.reward(score_of)
    with pytest.raises(DataError, match="all ratings are alike"):
        preference_accuracy(reward, rated("a", 1, 1))
    with pytest.raises(DataError, match="rankings"):
        preference_accuracy(reward, [*rated("a", 1), *PAIRS])
    with pytest.raises(DataError, match="no pairs"):
        preference_accuracy(reward, [])
    with pytest.raises(DataError, match="could not be scored"):
        preference_accuracy(textgym.reward(lambda response: float("nan")), PAIRS)
