import random
import re

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

import textgym
from textgym.errors import ConfigurationError
from textgym.wrappers import TextArenaGame, TokenLevel, textarena

pytest.importorskip("textarena", reason="pip install 'textgym[textarena]'")

GAMES = (
    "2048-v0",
    "Bandit-v0",
    "Blackjack-v0",
    "Crosswords-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0",
    "FrozenLake-v0-random",
    "GuessTheNumber-v0",
    "LightsOut-v0",
    "LogicPuzzle-v0",
    "Mastermind-v0",
    "Minesweeper-v0",
    "PegJump-v0",
    "Secretary-v0",
    "Set-v0",
    "Sudoku-v0",
    "TowerOfHanoi-v0",
)  # need no download and start at once, and reward with numbers
SENTENCES_FOR_REWARDS = ("Countdown-v0", "Cryptarithm-v0", "Slitherlink-v0", "ThreeCardMonte-v0")


def say(env, text):
    return env.step_turn(env.setting.renderer.reply_ids(text))


def states():
    return random.getstate(), np.random.get_state()[1].tolist()


def guesses(low=1, high=20):
    """Halves the interval, by the game's hints."""
    hint = yield
    while True:
        guess = (low + high) // 2
        hint = yield f"[{guess}]"
        low, high = (guess + 1, high) if "higher" in hint else (low, guess - 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_game_that_is_won(seed):
    env = TextArenaGame("GuessTheNumber-v0")
    text, info = env.reset(seed=seed)
    assert text.startswith("You are Player 0. You are playing Guess The Number.")
    assert info == {}
    player = guesses()
    next(player)
    over, replies = False, []
    while not over:
        replies.append(player.send(text))
        text, reward, over, truncated, info = env.step(replies[-1])
        assert not truncated
        assert replies[-1] not in text  # the player's own move is not repeated
        assert reward == (1.0 if over else 0.0)
    assert len(replies) <= 5
    assert text == info["reason"] == "Congratulations! You guessed the correct number."
    assert info["invalid_move"] is False
    assert info["turn_count"] == len(replies)
    with pytest.raises(ResetNeeded):
        env.step("[1]")


def test_a_game_that_is_lost():
    env = TextArenaGame("GuessTheNumber-v0", max_turns=2)
    env.reset(seed=0)
    assert re.fullmatch(r"The target number is (lower|higher)\.", env.step("[1]")[0])
    env.step("[2]")
    _, reward, over, _, info = env.step("[3]")
    target = int(re.search(r"Target: (\d+)", info["reason"])[1])
    assert over
    assert reward == pytest.approx(1 - (target - 3) / 19)  # how near the best guess came
    env.reset(seed=0)
    text, reward, over, _, _ = env.step("no number")
    assert "invalid move" in text
    assert (reward, over) == (0.0, False)
    _, _, over, _, info = env.step("no number")
    assert over
    assert info["invalid_move"] is True


def test_a_puzzle_solved_at_token_level(chat_tokenizer):
    env = textarena("TowerOfHanoi-v0", tokenizer=chat_tokenizer, max_context=3000)
    assert isinstance(env, TokenLevel)
    env.reset(seed=0)
    rewards = []
    for move in ("A C", "A B", "C B", "A C", "B A", "B C", "A C"):
        _, turn, terminated, _, info = say(env, f"[{move}]")
        rewards.append(turn.sum())
    assert rewards == [0.0] * 6 + [1.0]
    assert terminated
    assert info["episode_record"]["reward"] == 1.0
    assert info["episode_record"]["stop_reason"] == "task"
    assert info["env_info"]["turn_count"] == 7


@pytest.mark.parametrize("name", ["Secretary-v0", "Bandit-v0", "2048-v0"])
def test_seeds_hold_and_nothing_global_is_touched(name):
    """Bandit and 2048 draw while they are played."""
    moves = {"Secretary-v0": ["[continue]"], "Bandit-v0": ["[red]"], "2048-v0": ["[up]", "[left]", "[down]", "[right]"]}

    def play(env, seed):
        trace = [env.reset(seed=seed)]
        for i in range(30):
            trace.append(env.step(moves[name][i % len(moves[name])]))
            if trace[-1][2]:
                break
        return trace

    before = states()
    env = TextArenaGame(name)
    first = [play(env, seed) for seed in range(3)]
    random.seed(5)
    before_second = states()
    assert [play(env, seed) for seed in range(3)] == first
    assert [play(TextArenaGame(name), seed) for seed in range(3)] == first
    assert states() == before_second
    assert first[0] != first[1] != first[2]
    random.setstate(before[0])
    assert len({str(env.reset()) for _ in range(5)}) == (1 if name == "Bandit-v0" else 5)


def test_two_games_do_not_disturb_each_other():
    def play(others):
        env, other = TextArenaGame("2048-v0"), TextArenaGame("2048-v0")
        trace = [env.reset(seed=1)]
        for move in ("[up]", "[left]") * 4:
            if others:
                other.reset(seed=2)
                other.step("[up]")
            trace.append(env.step(move))
            if trace[-1][2]:
                break
        return trace

    assert play(others=True) == play(others=False)


@pytest.mark.parametrize("name", ["GuessTheNumber-v0", "FrozenLake-v0"])
def test_check_env(name, chat_tokenizer):
    textgym.check_env(textarena(name, tokenizer=chat_tokenizer, max_context=1500))


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_every_game(name, tokenizer):
    textgym.check_env(textarena(name, tokenizer=tokenizer, max_context=4000))


@pytest.mark.parametrize("name", SENTENCES_FOR_REWARDS)
def test_a_reward_that_is_a_sentence_is_a_failed_score(name, chat_tokenizer):
    env = textarena(name, level="turn")
    env.reset(seed=0)
    env.step("nonsense")
    _, reward, over, _, info = env.step("nonsense")
    assert (reward, over) == (0.0, True)
    assert re.match(rf"{name}: the game's reward is '.*', not a number", info["score_status"])
    env = textarena(name, tokenizer=chat_tokenizer, max_context=3000)
    env.reset(seed=0)
    say(env, "nonsense")
    *_, info = say(env, "nonsense")
    assert info["episode_record"]["score_status"].startswith(f"{name}: the game's reward is '")


def test_a_game_that_breaks_is_over_and_not_scored(monkeypatch):
    env = TextArenaGame("GuessTheNumber-v0")
    env.reset(seed=0)

    def broken(action):
        raise IndexError("list index out of range")

    monkeypatch.setattr(env._game, "step", broken)
    status = {"score_status": "GuessTheNumber-v0: IndexError: list index out of range"}
    assert env.step("[1]") == ("", 0.0, True, False, status)
    with pytest.raises(ResetNeeded):
        env.step("[1]")


def test_games_that_cannot_be_had():
    with pytest.raises(
        ConfigurationError, match=r"no game of TextArena 'GuessNumber-v0'. Did you mean 'GuessTheNumber-v0"
    ):
        textarena("GuessNumber-v0")
    with pytest.raises(ConfigurationError, match=r"cannot make GuessTheNumber-v0: TypeError: .*'turns'"):
        textarena("GuessTheNumber-v0", turns=3)
    with pytest.raises(ConfigurationError, match="cannot start TicTacToe-v0 for one player: AssertionError"):
        textarena("TicTacToe-v0", level="turn").reset()
    with pytest.raises(ConfigurationError, match="PublicGoodsGame-v0 is no single-player game"):
        textarena("PublicGoodsGame-v0", level="turn").reset()
    with pytest.raises(ConfigurationError, match="level='word'; it is 'token' or 'turn'"):
        textarena("GuessTheNumber-v0", level="word")


def test_a_game_against_a_language_model_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="cannot make TwentyQuestions-v0: ValueError: OpenRouter API key"):
        textarena("TwentyQuestions-v0")


def test_misuse():
    env = TextArenaGame("GuessTheNumber-v0")
    with pytest.raises(ResetNeeded):
        env.step("[1]")
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(3)
