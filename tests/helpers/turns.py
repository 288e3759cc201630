"""Conversations at turn level, a turn at a time."""

from textgym.agent import replies_to, take_turns


def go_on(conversations, agent):
    """One turn of the agent in each of these conversations."""
    take_turns(conversations, replies_to(agent, [conversation.observation() for conversation in conversations]))
