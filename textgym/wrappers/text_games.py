"""The single-player games of TextArena (Guertler et al. 2025, arXiv:2504.11442)."""

from __future__ import annotations

import inspect
import numbers
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from textgym.errors import ConfigurationError
from textgym.text_env import UnicodeText
from textgym.wrappers.third_party import Containment, known_name, optional_package
from textgym.wrappers.token_level import TokenLevel

__all__ = ["TextArenaGame", "textarena"]

N_SEEDS = 2**31


def textarena(name: str, *, level: str = "token", **kwargs: Any) -> TokenLevel | TextArenaGame:
    """One of TextArena's single-player games as an environment.

    Args:
        name: Of the game: ``"GuessTheNumber-v0"``.
        level: ``"token"`` for a :class:`TokenLevel`, ``"turn"`` for a :class:`TextArenaGame`.
        **kwargs: Of :class:`TokenLevel` (``tokenizer``, ``max_new_tokens`` and so on) and of the game.

    Raises:
        ConfigurationError: TextArena is not installed, has no such game, or cannot make it.
    """
    if level not in ("token", "turn"):
        raise ConfigurationError(f"level={level!r}; it is 'token' or 'turn'.")
    names = inspect.signature(TokenLevel).parameters if level == "token" else ()
    own = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
    game = TextArenaGame(name, **kwargs)
    return TokenLevel(game, **own) if level == "token" else game


class TextArenaGame(gymnasium.Env[str, str]):
    """A single-player game of TextArena: what the game says for observations, the player's moves for actions.

    An observation is what the game has said since the last one, without the player's own move; the last one also says
    why the game ended. Only the end is rewarded. Its ``info`` is TextArena's record of the game: ``reason``,
    ``invalid_move``, ``turn_count`` and whatever else the game tells.

    Some games of TextArena 0.7.4 (``Countdown``, ``Cryptarithm``, ``Slitherlink`` and ``ThreeCardMonte``) end after
    invalid moves with a sentence for a reward. Such a game is not scored: 0.0, and a ``score_status`` in ``info``. Nor
    is one that breaks.

    Games draw from the global random generators; here these are private ones, seeded by :meth:`reset`. Games of words
    (``Wordle``, ``Hangman``, ``WordLadder``, ``WordSearch``) need data of NLTK, which TextArena downloads when the game
    is made; a game against a language model (``TwentyQuestions``, ``GuessWho``) needs an OpenRouter key. Starting
    ``RushHour``, ``Sokoban`` or ``Sudoku-v0-hard`` can take seconds to minutes.

    Args:
        name: Of the game.
        **config: Of the game: ``max_turns=10``.

    Raises:
        ConfigurationError: TextArena is not installed, has no such game, or cannot make it.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, name: str, **config: Any) -> None:
        package = optional_package("textarena", "textarena")
        known = optional_package("textarena.envs.registration", "textarena").ENV_REGISTRY
        self.name = known_name(name, known, "game of TextArena")
        self._own_move = package.ObservationType.PLAYER_ACTION
        self._contained = Containment()
        self._live = False
        self.observation_space: spaces.Space[str] = UnicodeText()
        self.action_space: spaces.Space[str] = UnicodeText()
        try:
            with self._contained:
                self._game = package.make(name, **config)
        except Exception as error:
            raise ConfigurationError(f"TextArena cannot make {name}: {_in_short(error)}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a game.

        Raises:
            ConfigurationError: It is a game for several players, or cannot be started.
        """
        super().reset(seed=seed)
        game_seed = int(self.np_random.integers(N_SEEDS))
        self._contained.seed(game_seed)
        try:
            with self._contained:
                self._game.reset(num_players=1, seed=game_seed)
        except Exception as error:
            raise ConfigurationError(
                f"TextArena cannot start {self.name} for one player: {_in_short(error)}"
            ) from error
        if self._game.state.num_players != 1 or type(self._game.state).__name__ != "SinglePlayerState":
            raise ConfigurationError(f"{self.name} is no single-player game.")
        self._live = True
        return self._said(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Makes a move.

        Raises:
            ResetNeeded: The game is over, or has not begun.
            InvalidAction: The action is no string.
        """
        if not isinstance(action, str):
            raise InvalidAction(f"an action is the move's text, not {action!r}.")
        if not self._live:
            raise ResetNeeded("the game is over, or has not begun: call reset before step.")
        try:
            with self._contained:
                self._live = not self._game.step(action)[0]
        except Exception as error:  # noqa: BLE001 (a move that breaks the game ends it, without a score)
            self._live = False
            return "", 0.0, True, False, {"score_status": f"{self.name}: {type(error).__name__}: {error}"}
        if self._live:
            return self._said(), 0.0, False, False, {}
        return self._ending()

    def _said(self) -> str:
        """What the game has said since this was asked last."""
        messages = self._game.state.get_current_player_observation()  # of sender, text and type
        # Some games put the type of the player's own move in the sender's place.
        return "\n".join(message[1] for message in messages if self._own_move not in message)

    def _ending(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        info = dict(self._game.state.game_info[0])
        reward = (self._game.state.rewards or {}).get(0)
        if not isinstance(reward, numbers.Real):
            info["score_status"] = f"{self.name}: the game's reward is {reward!r}, not a number"
            reward = 0.0
        text = "\n".join(filter(None, (self._said(), info.get("reason"))))
        return text, float(reward), True, False, info


def _in_short(error: Exception) -> str:
    """What it says up to the first empty line; NLTK's run to a page."""
    text = str(error).strip().strip("*").strip()
    return f"{type(error).__name__}: {' '.join(text.partition(chr(10) * 2)[0].split())}"
