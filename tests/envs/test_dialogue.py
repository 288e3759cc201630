from collections import Counter
from statistics import fmean

import numpy as np
import pytest

import textgym
from textgym import Episode, Sample, Turn
from textgym.envs.dialogue import CLERKS, BookingReward, Dialogue, builtin_goals, question, user_in
from textgym.envs.user_simulator import DOMAINS, MAX_TURNS, SLOTS, Goal, User, understand
from textgym.errors import DataError

ENV = "tests/Dialogue-v0"
TABLE = {"people": "4", "day": "Monday", "time": "7", "name": "Anna"}
READ_BACK = " A table for 4 on Monday at 7 for Anna. Is that right?"


@pytest.fixture(scope="module")
def task():
    return Dialogue()


@pytest.fixture(autouse=True)
def registered():
    textgym.register(ENV, task=Dialogue)


def goal(told=(), **kwargs):
    return Goal("table", TABLE, {slot: TABLE[slot] for slot in told}, **{"patience": 99, **kwargs})


def sample(opening="I'd like a table.", **meta):
    return Sample("s", [{"role": "user", "content": opening}], (), {"domain": "table", "wants": TABLE, **meta})


def episode(*replies, opening="I'd like a table.", **meta):
    return Episode(sample(opening, **meta), [Turn("assistant", reply) for reply in replies])


# What the user understands


@pytest.mark.parametrize(
    ("text", "asked", "stated"),
    [
        (" What day?", {"day"}, {}),
        ("When would you like to come?", {"day", "time"}, {}),
        (" How many people, what day, what time and what name?", {"people", "day", "time", "name"}, {}),
        ("Sure! Could you tell me the date, the time and the number of guests?", {"day", "time", "people"}, {}),
        (READ_BACK, set(), TABLE),
        ("Your table for two on friday at 7:00 PM, under the name Anna?", set(),
         {"people": "2", "day": "Friday", "time": "7", "name": "Anna"}),
        ("On Monday. What time?", {"time"}, {"day": "Monday"}),
        ("What time would you like on Monday?", {"time"}, {"day": "Monday"}),
        ("Monday or Tuesday?", {"day"}, {}),
        ("I've moved it from Monday to Tuesday.", set(), {"day": "Tuesday"}),
        (" From where, to where and what day?", {"origin", "destination", "day"}, {}),
        ("Where would you like to go, and from where?", {"origin", "destination"}, {}),
        ("Where are you travelling from?", {"origin"}, {}),
        (" A train from Rome to Paris at 12.", set(), {"origin": "Rome", "destination": "Paris", "time": "12"}),
        ("From the station to the airport for 3 at noon", set(),
         {"origin": "the station", "destination": "the airport", "people": "3", "time": "12"}),
        ("For 7 o'clock?", set(), {"time": "7"}),
        ("for 11:00", set(), {}),
        ("Zqx jvw kkf.", set(), {}),
    ],
)  # fmt: skip
def test_key_words_are_understood(text, asked, stated):
    reading = understand(text)
    assert (reading.asked, reading.stated, reading.closing) == (asked, stated, False)


@pytest.mark.parametrize("text", [" Done. Goodbye.", "Good bye!", "Bye", "Have a great day!", "See you on Monday"])
def test_goodbyes_are_understood(text):
    reading = understand(text)
    assert reading.closing
    assert reading.asked == set()


@pytest.mark.parametrize("slots", [("people",), ("day", "time"), ("origin", "destination", "day", "time")])
def test_questions_and_bookings_are_understood_as_they_are_meant(slots):
    assert understand(question(slots)).asked == set(slots)


@pytest.mark.parametrize("slot", SLOTS)
def test_every_value_is_understood_as_the_domains_say_it(slot):
    for domain in DOMAINS.values():
        if slot in domain.fragments:
            for value in SLOTS[slot].values:
                assert understand(f"I'd like {domain.thing} {domain.say({slot: value})}.").stated == {slot: value}


# What the user does


def test_a_user_answers_what_is_asked_then_affirms():
    user = User(goal())
    user.hear(" How many people and what day?")
    assert user.reply.told == {"people": "4", "day": "Monday"}
    user.hear(" What time and what name?")
    assert user.reply.answered == {"time": "7", "name": "Anna"}
    user.hear(READ_BACK)
    assert user.reply.affirms
    assert user.reply.told == {}
    user.hear(" Done. Goodbye.")
    assert (user.ending, user.is_satisfied, user.turns) == ("closed", True, 4)
    assert (user.contradictions, user.repeated_questions) == (0, 0)


def test_nobody_tells_more_than_three_things_at_once():
    user = User.after(goal(volunteers=1), [" How many people, what day, what time and what name?"])
    assert list(user.reply.answered) == ["people", "day", "time"]


def test_a_user_volunteers():
    user = User.after(goal(volunteers=1), [" What time?"])
    assert user.reply.answered == {"time": "7", "people": "4"}


def test_a_user_who_is_asked_nothing_goes_on_with_the_agenda():
    user = User.after(goal(["people"]), [" A table for 4."])
    assert user.reply.affirms
    assert user.reply.answered == {"day": "Monday"}


def test_a_repeated_question_is_answered_again_and_counted():
    user = User.after(goal(["day"]), [" What day?"])
    assert (user.repeated_questions, user.spent) == (1, 2)
    assert user.reply.repeated == {"day": "Monday"}
    words = {user.reply.words(user.domain, np.random.default_rng(seed)) for seed in range(50)}
    assert words == {"I said on Monday.", "As I said, on Monday.", "On Monday, as I said."}


def test_what_the_agent_gets_wrong_is_corrected_and_counted():
    user = User.after(goal(["day"]), [" A table on Tuesday for 5. What time?"])
    assert (user.contradictions, user.spent) == (2, 3)
    assert user.reply.corrected == {"people": "4", "day": "Monday"}
    assert user.reply.answered == {"time": "7"}
    assert not user.reply.affirms


@pytest.mark.parametrize(
    ("changes_in", "told", "replies"),
    [
        (1, ["day"], [" What time?"]),
        (2, ["day"], [" What time?", " How many people?"]),
        (1, [], [" What day?", " What time?"]),
        (9, ["people", "day", "time", "name"], [" A table for 4 on Friday at 7 for Anna."]),
    ],
)
def test_a_change_of_mind_comes_when_it_is_due_at_the_latest_at_the_confirmation(changes_in, told, replies):
    told_first = {slot: {**TABLE, "day": "Friday"}[slot] for slot in told}
    changing = Goal("table", TABLE, told_first, 0, 99, "day", "Friday", changes_in)
    before = User.after(changing, replies[:-1])
    assert before.wants["day"] == "Friday"
    before.hear(replies[-1])
    assert before.reply.changed == {"day": "Monday"}
    assert not before.reply.affirms
    assert before.contradictions == 0
    words = {before.reply.words(before.domain, np.random.default_rng(seed)) for seed in range(50)}
    assert any(text.endswith("Or rather on Monday.") for text in words)
    before.hear(READ_BACK)
    assert before.reply.affirms


def test_closing_before_the_change_of_mind_misses_the_goal():
    changing = Goal("table", TABLE, {}, 0, 99, "day", "Friday", 9)
    user = User.after(changing, [" A table for 4 on Friday at 7 for Anna. Goodbye."])
    assert (user.ending, user.is_satisfied, user.contradictions) == ("closed", False, 0)


@pytest.mark.parametrize(
    ("replies", "spent"),
    [([" What day?"] * 2, 3), ([" Hm."], 2), ([" On Friday."], 2), ([" What time?", " How many people?"], 2)],
)
def test_patience_is_spent_on_turns_and_on_mistakes(replies, spent):
    assert User.after(goal(patience=spent), replies).ending is None
    assert User.after(goal(patience=spent), replies).reply.hurries
    assert not User.after(goal(patience=spent + 1), replies).reply.hurries
    assert User.after(goal(patience=spent - 1), replies).ending == "left"


def test_a_goodbye_comes_before_the_end_of_patience():
    assert User.after(goal(patience=1), [READ_BACK, " Goodbye."]).is_satisfied


def test_a_conversation_takes_a_limited_number_of_turns():
    user = User.after(goal(), [" Hm."] * (MAX_TURNS - 1))
    assert user.ending is None
    user.hear(" Hm.")
    assert (user.ending, user.is_satisfied) == ("turns", False)


def test_a_user_who_understands_nothing_says_so():
    user = User.after(goal(), [" From where?"])
    assert user.reply.told == {}
    assert user.reply.words(user.domain, np.random.default_rng(0)) in ("What?", "Sorry?")


# Clerks


def test_clerks_differ_in_what_they_cost():
    users = {
        name: [User.after(g, clerk.replies(g)) for g in map(Goal.of, builtin_goals()[:1000])]
        for name, clerk in CLERKS.items()
    }
    completion = {name: fmean(user.is_satisfied for user in of) for name, of in users.items()}
    turns = {name: fmean(user.turns for user in of) for name, of in users.items()}
    assert completion["brisk"] == 1.0
    assert 0.9 < completion["attentive"] < 1.0
    assert 0.15 < completion["form"] < 0.35
    assert turns["brisk"] < turns["attentive"] - 0.5
    for name in ("brisk", "attentive"):
        assert sum(user.contradictions + user.repeated_questions for user in users[name]) == 0
    assert sum(user.repeated_questions for user in users["form"]) > 1000
    assert sum(user.contradictions for user in users["form"]) > 100


def test_a_clerk_with_a_form_hears_only_the_answers_to_his_questions():
    asked_twice = Goal("table", TABLE, {"day": "Friday"}, 0, 99, "day", "Friday", 1)
    assert CLERKS["form"].replies(asked_twice) == [
        " How many people?",
        " What day?",
        " What time?",
        " What name?",
        READ_BACK,
        " Done. Goodbye.",
    ]
    missed = Goal("table", TABLE, {}, 0, 99, "people", "2", 2)
    replies = CLERKS["form"].replies(missed)
    assert replies[4] == READ_BACK.replace("4", "2")
    assert User.after(missed, replies).contradictions == 1


def test_a_brisk_clerk_asks_for_what_is_missing():
    assert CLERKS["brisk"].replies(goal(["day"])) == [
        " How many people, what time and what name?",
        READ_BACK,
        " Done. Goodbye.",
    ]


# The task


def test_goals_are_divided_and_all_different(task):
    sizes = {split: len(task.samples(split)) for split in ("warm_start", "train", "validation", "test", "all")}
    assert sizes["all"] == 10_000
    assert 5800 < sizes["train"] < 6200
    assert min(sizes["validation"], sizes["test"]) > 450
    wanted = {split: {tuple(s.meta["wants"].values()) for s in task.samples(split)} for split in sizes}
    assert (
        sum(len(wanted[split]) for split in ("warm_start", "train", "validation", "test"))
        == len(wanted["all"])
        == 10_000
    )


def test_goals_vary():
    goals = [Goal.of(sample) for sample in builtin_goals()]
    domains = Counter(goal.domain for goal in goals)
    assert set(domains) == set(DOMAINS)
    assert min(domains.values()) > 1500
    assert {len(goal.told) for goal in goals} == {0, 1, 2}
    assert 0.45 < fmean(goal.changed_slot is not None for goal in goals) < 0.55
    assert all(goal.wants.get("origin", "a") != goal.wants.get("destination", "b") for goal in goals)


def test_demonstrations_fit_whatever_words_the_user_chooses(task):
    env = textgym.make(ENV, level="turn")
    words = set()
    for index in range(0, len(task.samples("train")), 40):
        for seed in (index, index + 10_000):
            env.reset(seed=seed, options={"sample": index})
            replies = task.demonstration(env.unwrapped.samples[index])
            overs = []
            for reply in replies:
                answer, _, over, _, info = env.step(reply)
                overs.append(over)
                words.add(answer)
            assert overs == [False] * (len(replies) - 1) + [True]
            assert info["episode_record"]["stop_reason"] == "task"
    assert len(words) > 200


def test_conversations_are_short(task):
    env = textgym.make(ENV).unwrapped
    renderer = env.setting.renderer
    for index in range(0, 4000, 80):
        env.reset(seed=index, options={"sample": index})
        replies = [renderer.reply_ids(reply) for reply in task.demonstration(env.samples[index])]
        assert max(map(len, replies)) <= 25
        for reply in replies:
            observation, _, over, _, _ = env.step_turn(reply)
        assert over
        assert observation["attention_mask"].sum() <= 210


def test_a_chat_template_is_enough(chat_tokenizer):
    env = textgym.make(ENV, tokenizer=chat_tokenizer, max_new_tokens=128).unwrapped
    index = next(i for i, sample in enumerate(env.samples) if sample.meta["clerk"] == "brisk")
    env.reset(seed=0, options={"sample": index})
    for reply in env.task.demonstration(env.samples[index]):
        *_, info = env.step_turn(env.setting.renderer.reply_ids(reply))
    assert info["metrics"]["goal_completion"] == 1.0


def test_the_reward_of_worked_conversations():
    reward = BookingReward(goal=1.0, turn=-0.05, repeated_question=-0.1, contradiction=-0.2)
    good = episode(" How many people, what day and what time?", " What name?", READ_BACK, " Goodbye.", patience=9)
    clumsy = episode(
        " What day?", READ_BACK.replace("4", "5"), READ_BACK, " Bye.", opening="A table on Monday.", patience=9
    )
    silent, nothing = episode("", patience=9), episode(patience=9)
    scores = reward.score([good, clumsy, silent, nothing])
    assert [score.value for score in scores] == pytest.approx([0.8, 1 - 0.2 - 0.1 - 0.2, -0.05, 0.0])
    assert scores[1].parts == {"goal_reached": 1.0, "turns": 4.0, "repeated_questions": 1.0, "contradictions": 1.0}


def test_rewards_a_turn_add_up_to_those_of_the_conversation():
    total = {}
    for per_turn in (False, True):
        env = textgym.make(ENV, level="turn", reward=BookingReward(per_turn=per_turn))
        env.reset(seed=0, options={"sample": 3})
        replies = [" What day?", " What day?", " On Monday or on Tuesday for 2 at 9?", READ_BACK, " Goodbye."]
        steps = [env.step(reply) for reply in replies if env.unwrapped.episode.stop_reason is None]
        total[per_turn] = sum(step[1] for step in steps), steps[-1][4]["reward_parts"]
        assert all(step[1] < 0 for step in steps) if per_turn else all(step[1] == 0 for step in steps[:-1])
    assert total[True][0] == pytest.approx(total[False][0])
    assert total[True][1] == total[False][1]


def test_metrics_of_worked_conversations(task):
    metrics = task.metrics(
        [
            episode(READ_BACK, " Goodbye."),
            episode(" What day?", " What day?", " What day?", patience=4),
            episode(" On Friday at 8. Goodbye."),
            episode(*[" Hm."] * MAX_TURNS, patience=99),
        ]
    )
    assert metrics == pytest.approx(
        {
            "goal_completion": 0.25,
            "turns": (2 + 3 + 1 + 6) / 4,
            "contradictions": 2 / 4,
            "repeated_questions": 2 / 4,
            "left_in_anger": 0.25,
        }
    )
    assert task.metrics([]) == {}


def test_goals_of_ones_own():
    rows = [
        {"id": str(i), "prompt": "A table for four, please.", "domain": "table", "wants": TABLE, "patience": 5}
        for i in range(40)
    ]
    task = Dialogue(rows)
    first = task.samples("train")[0]
    assert Goal.of(first) == goal(["people"], patience=5)
    assert task.demonstration(first)[0] == " What day?"
    assert user_in(Episode(first, [Turn("assistant", READ_BACK), Turn("assistant", "Bye")])).is_satisfied


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"domain": "plane"}, r"'s': domain='plane' is nothing to book; there are table, train, taxi"),
        ({"wants": {"day": "Monday"}}, r"'s': wants=.*a table has the slots people, day, time, name"),
        ({"wants": {**TABLE, "day": "Someday"}}, "'s': day is 'Someday'; it may be Monday, Tuesday"),
        ({"changed_slot": "origin", "changed_from": "Rome"}, "changed_slot='origin' is none of people, day"),
        ({"changed_slot": "day"}, "day is 'None'; it may be Monday"),
        ({"patience": "5"}, "patience='5'; it is a whole number"),
        ({"opening": "A table on Friday."}, "the opening says day 'Friday', and the user wants 'Monday'"),
        ({"clerk": "rude"}, "clerk='rude'; there are form, attentive, brisk"),
    ],
)
def test_what_is_no_goal_is_refused(meta, message):
    with pytest.raises(DataError, match=message):
        Dialogue([sample(**meta)])


@pytest.mark.parametrize("reward", [None, BookingReward(per_turn=True)])
def test_environments_pass_the_checks(reward):
    textgym.check_env(textgym.make(ENV, reward=reward))
    textgym.check_env(textgym.make(ENV, level="turn", reward=reward))
