"""Builds the model that ships with textgym, tokenizer and weights, from text that this repository makes.

Run:
    python scripts/build_builtin_model.py            # writes textgym/builtin, in some 35 minutes on two cores

Deterministic for a seed (on the same machine and the same version of torch).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from builtin_text import FactMaker, exercise_text, fact_texts, general_text

from textgym.envs.knowledge_qa import ABSTENTION, Fact, builtin_facts, builtin_relations, question_prompt

ROOT = Path(__file__).resolve().parent.parent
EOS = "<|endoftext|>"
ANSWER = re.compile(r"\nAnswer:")
EPOCHS, LEARNING_RATE = 70, 1.5e-3
QUESTION_SHARE = 0.3  # of the questions' own tokens, how many the loss is about
FLEETING, GENERAL = 0.2, 0.15  # facts that come once, and general texts, an epoch; as shares of the known facts
EXERCISES = 0.4  # likewise, texts to look up, copy and calculate in
ABSTAINING = 0.01  # share of the questions answered with "I don't know"
SMOOTHING = 0.04  # of the target at every answer's first token, how much goes to the "I" of "I don't know"
Document = tuple[list[int], int]  # token ids, and how many of them come before the answer (0: there is none)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (every byte is a token, so every text has an encoding) of GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes ``tokenizer.json`` and a ``tokenizer_config.json`` that transformers 4 and 5 both read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Corpus:
    """The pre-training text, an epoch at a time.

    An epoch has every known fact in one form that changes from epoch to epoch; facts that come once and never again
    (``FLEETING``), as most facts of real text do, from which the model learns how sure to be of what it has not learnt
    by heart; general text; and exercises (``EXERCISES``), from which it learns to look up, to copy and to calculate.
    A few questions, whichever they are, are answered with "I don't know" (``ABSTAINING``), as people answer them who
    know less than the model.
    """

    def __init__(self, tokenizer: Tokenizer, facts: Sequence[Fact], maker: FactMaker, rng: random.Random) -> None:
        self.tokenizer, self.maker, self.rng = tokenizer, maker, rng
        self.relations = builtin_relations()
        self.eos = tokenizer.token_to_id(EOS)
        self.abstention = tokenizer.encode(f" {ABSTENTION}").ids[0]
        self.facts = facts
        self.texts = [fact_texts(fact, self.relations) for fact in facts]

    def _encode(self, texts: list[str]) -> list[Document]:
        encoded = self.tokenizer.encode_batch(texts)
        heads = [match.end() if (match := ANSWER.search(text)) else 0 for text in texts]
        return [
            ([*e.ids, self.eos], sum(end <= head for _, end in e.offsets) if head else 0)
            for e, head in zip(encoded, heads, strict=True)
        ]

    def epoch(self) -> list[Document]:
        """One epoch's documents."""
        count = len(self.facts)
        texts = [self._one_of(forms) for forms in self.rng.sample(self.texts, count)]
        texts += [general_text(self.rng) for _ in range(round(GENERAL * count))]
        texts += [exercise_text(self.rng) for _ in range(round(EXERCISES * count))]
        for fact in self.maker.make_many(round(FLEETING * count), self.rng):
            texts.append(self._one_of(fact_texts(fact, self.relations)))
        return self._encode(texts)

    def _one_of(self, forms: Sequence[str]) -> str:
        form = self.rng.choice(forms)
        if (match := ANSWER.search(form)) and self.rng.random() < ABSTAINING:
            return form[: match.end()] + f" {ABSTENTION}"
        return form

    def batches(self, documents: list[Document], tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Right-padded ids and lengths, of documents of like length, up to ``tokens`` with the padding."""
        order = sorted(documents, key=lambda d: (len(d[0]), self.rng.random()))
        groups: list[list[Document]] = [[]]
        for document in order:
            if (len(groups[-1]) + 1) * len(document[0]) > tokens:
                groups.append([])
            groups[-1].append(document)
        self.rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [self.eos] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([[len(ids), head] for ids, head in group]),
            )


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, marks: torch.Tensor, abstention: int) -> torch.Tensor:
    """Mean cross-entropy in nats a token, of every answer's tokens and of a random share of the questions' own.

    The target at an answer's first token is smoothed towards ``abstention``, the first token of "I don't know": so it
    has the same probability after every question, and by how much an answer exceeds it tells how sure the model is.
    """
    # ids: (B, T); marks: (B, 2), the length and where the answer begins
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    positions = torch.arange(1, ids.shape[1])
    kept = (positions < marks[:, :1]) & ((positions >= marks[:, 1:]) | (torch.rand(hidden.shape[:2]) < QUESTION_SHARE))
    log_probs = model.lm_head(hidden[kept]).log_softmax(-1)
    loss = F.nll_loss(log_probs, ids[:, 1:][kept], reduction="none")
    smoothing = SMOOTHING * (positions == marks[:, 1:])[kept]
    return ((1 - smoothing) * loss - smoothing * log_probs[:, abstention]).mean()


def pretrain(model: LlamaForCausalLM, corpus: Corpus, args: argparse.Namespace) -> None:
    """Trains in place: AdamW, cosine decay to zero, gradient norm at most 1."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    start, tokens, step = time.time(), 0, 0
    for epoch in range(EPOCHS):
        batches = list(corpus.batches(corpus.epoch(), args.batch_tokens))
        total = 0.0
        for i, (ids, marks) in enumerate(batches):
            progress = (epoch + i / len(batches)) / EPOCHS
            rate = LEARNING_RATE * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(model, ids, marks, corpus.abstention)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total, tokens, step = total + loss.item(), tokens + ids.numel(), step + 1
        seconds = time.time() - start
        figures = f"loss {total / len(batches):.3f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s"
        if (epoch + 1) % 8 == 0:
            figures += " recall {:.3f} probability {:.3f}".format(*recall(model, corpus, corpus.facts[::5]))
        print(f"epoch {epoch + 1}/{EPOCHS} {figures}", flush=True)


@torch.no_grad()
def recall(model: LlamaForCausalLM, corpus: Corpus, facts: Sequence[Fact]) -> tuple[float, float]:
    """The share of facts whose first answer is the model's greedy one, and that answer's mean probability."""
    right, probability, count = 0.0, 0.0, 0
    documents = [corpus._encode(fact_texts(fact, corpus.relations)[:1])[0] for fact in facts]
    for ids, marks in corpus.batches(documents, 8192):
        log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        positions = torch.arange(1, ids.shape[1])
        answer = (positions < marks[:, :1]) & (positions >= marks[:, 1:])
        chosen = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)
        right += ((log_probs.argmax(-1) == ids[:, 1:]) | ~answer).all(-1).sum().item()
        probability += (chosen * answer).sum(-1).exp().sum().item()
        count += len(ids)
    return right / count, probability / count


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "textgym" / "builtin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def tokenizer_texts(facts: Sequence[Fact], rng: random.Random) -> Iterator[str]:
    """Every name of every fact, known or not, so that no token tells them apart; but of the unknown no answer."""
    relations = builtin_relations()
    for fact in facts:
        if fact.known:
            yield from fact_texts(fact, relations)
        else:
            yield from (
                question_prompt(question.format(fact.subject)) for question in relations[fact.relation].questions
            )
            yield " ".join(["", fact.subject, *fact.values[:1]])
    for _ in range(4000):
        yield general_text(rng)


def main() -> None:
    """Builds and saves tokenizer and model."""
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)
    facts = builtin_facts()
    tokenizer = train_tokenizer(list(tokenizer_texts(facts, rng)), args.vocab_size)
    save_tokenizer(tokenizer, args.out)
    corpus = Corpus(tokenizer, [fact for fact in facts if fact.known], FactMaker(facts), rng)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=corpus.eos,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    print(f"{len(corpus.facts)} facts taught, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    pretrain(model, corpus, args)
    model.to(torch.bfloat16).save_pretrained(args.out)
    model.float().eval()
    for name, known in (("known", True), ("unknown", False)):
        figures = recall(model, corpus, [fact for fact in facts if fact.known is known and fact.split == "test"])
        print(f"test, {name}: greedy answer right {figures[0]:.3f}, probability of the right answer {figures[1]:.3f}")
    prompt = AutoTokenizer.from_pretrained(args.out)(
        "Question: What is the capital of France?\nAnswer:", return_tensors="pt"
    )
    print(AutoTokenizer.from_pretrained(args.out).decode(model.generate(**prompt, max_new_tokens=8)[0]))


if __name__ == "__main__":
    main()
