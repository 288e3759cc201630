"""An agent behind a server that speaks OpenAI's protocol over HTTP, with faults."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import textgym
from textgym import Episode, Sample, Task, Turn
from textgym.agent import Observation
from textgym.agents.baselines import BestOfN
from textgym.agents.openai_agent import OpenAIAgent
from textgym.benchmarking import benchmark
from textgym.errors import ConfigurationError

KEY = "sk-0123456789"


class Sums(Task):
    reward = staticmethod(lambda response, references: float(response == references[0]))

    def samples(self, split):
        return [Sample(str(i), f"{i}+1", (str(i + 1),)) for i in range(12)]


class Server(ThreadingHTTPServer):
    """Adds one; ``faults[prompt]`` are what it does before, in order: a status, a text, or ``"hang"``."""

    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.faults, self.requests = {}, []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.busy = self.busiest = 0

    def handle_error(self, request, client_address):
        """The client may be gone."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            faults = self.server.faults.get(prompt, [])
            fault = faults.pop(0) if faults else None
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        time.sleep(0.02)
        with self.server.lock:
            self.server.busy -= 1
        if fault == "hang":
            self.server.closing.wait(10)
            self.close_connection = True
        elif isinstance(fault, str):
            self.answer(200, fault)
        elif fault is not None:
            self.answer(fault, f"no, {self.headers['Authorization']}")
        else:
            number = int(prompt.partition("+")[0]) + 1
            cut = "length" if body.get("max_tokens") == 1 else "stop"
            choice = {"message": {"role": "assistant", "content": str(number)}, "finish_reason": cut}
            usage = {"prompt_tokens": 10, "completion_tokens": 2}
            self.answer(200, json.dumps({"choices": [choice], "usage": usage}))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def observations():
    return [Observation(Episode(sample), Sums()) for sample in Sums().samples("test")]


def test_conversations_are_sent_at_once_and_answered_in_order(server):
    agent = OpenAIAgent(server.url, "adder", api_key=KEY, system="Add.", concurrency=4, request={"temperature": 0})
    replies = agent.act(observations())
    assert [reply.text for reply in replies] == [str(i + 1) for i in range(12)]
    assert 1 < server.busiest <= 4
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("adder", 0)
    assert body["messages"][0] == {"role": "system", "content": "Add."}
    assert KEY not in repr(agent)


def test_a_conversation_goes_on_with_all_of_its_turns(server):
    episode = Episode(Sample("a", "1+1"), [Turn("assistant", "2"), Turn("user", "5+1")])
    assert OpenAIAgent(server.url, "adder").act([Observation(episode, Sums())])[0].text == "6"
    assert [message["role"] for message in server.requests[0][2]["messages"]] == ["user", "assistant", "user"]


def test_tokens_and_costs_are_counted_and_cut_replies_end_the_episode(server):
    agent = OpenAIAgent(server.url, "adder", prices=(1.0, 500_000.0), request={"max_tokens": 1})
    reply = agent.act(observations()[:1])[0]
    assert reply.stop_reason == "length"
    assert reply.usage == {"prompt_tokens": 10, "completion_tokens": 2, "cost": pytest.approx(1.00001)}


def test_faults_that_pass_are_tried_again_and_others_fail_their_episode_alone(server, tmp_path):
    server.faults = {
        "1+1": [500, 429],
        "2+1": ["hang"],
        "3+1": ["garbage"],
        "4+1": [401],
        "5+1": [503, 503, 503],
        "6+1": [json.dumps({"choices": [{"message": {"content": None}}]})],
    }
    textgym.register("demo/Sums-v0", task=Sums)
    agent = OpenAIAgent(server.url, "adder", api_key=KEY, timeout=1.0, retries=2, backoff=0.01)
    summary = benchmark({"adder": agent}, ["demo/Sums-v0"], out=tmp_path, seeds=1)
    figures = summary["agents"]["adder"]["demo/Sums-v0"]
    assert (figures["episodes"], figures["failed"]) == (12, 4)
    assert (figures["reward"]["value"], figures["reward"]["n"]) == (1.0, 8)
    assert figures["usage"] == {"prompt_tokens": 80, "completion_tokens": 16}
    reasons = " ".join(figures["reasons"])
    for part in ("no chat completion", "HTTP 401", "HTTP 503", "attempt 3, the last", "gave no text"):
        assert part in reasons
    assert KEY not in (tmp_path / "episodes.jsonl").read_text() + (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("message", "usage", "counted"),
    [
        ({"content": None}, {"prompt_tokens": 10, "completion_tokens": 2}, (10, 2)),
        ({}, {"prompt_tokens": 10, "completion_tokens": 2}, (10, 2)),
        ({"content": "2"}, {"prompt_tokens": -5, "completion_tokens": True}, (0, 0)),
        ({"content": "2"}, {"prompt_tokens": 10**400, "completion_tokens": "2"}, (0, 0)),
        ({"content": "2"}, 7, (0, 0)),
    ],
)
def test_what_the_endpoint_counted_is_paid_whatever_it_answers(server, message, usage, counted):
    server.faults = {"0+1": [json.dumps({"choices": [{"message": message}], "usage": usage})]}
    (reply,) = OpenAIAgent(server.url, "adder", prices=(1e6, 2e6)).act(observations()[:1])
    assert (reply.failure is None) == ("2" in message.values())
    assert (reply.usage["prompt_tokens"], reply.usage["completion_tokens"]) == counted
    assert reply.usage["cost"] == counted[0] + 2 * counted[1]


def test_a_benchmark_asks_as_many_at_a_time_as_are_under_way():
    agent = OpenAIAgent("http://localhost:1/v1", "m", concurrency=6)
    assert (agent.at_a_time, BestOfN(agent, n=4).at_a_time) == (6, 1)


def test_nothing_there_fails_every_episode_and_none_is_a_zero(tmp_path):
    textgym.register("demo/Sums-v0", task=Sums)
    agent = OpenAIAgent("http://127.0.0.1:9/v1", "nobody", retries=0)
    figures = benchmark({"nobody": agent}, ["demo/Sums-v0"], out=tmp_path, seeds=1)["agents"]["nobody"]["demo/Sums-v0"]
    assert figures["failed"] == 12
    assert "reward" not in figures


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "nowhere"},
        {"base_url": "http://[::1/v1"},
        {"concurrency": 0},
        {"api_key": "$NO_SUCH_NAME"},
        {"prices": (1.0,)},
        {"prices": ("a", "b")},
        {"prices": (1.0, -1.0)},
        {"prices": 3},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        OpenAIAgent(**{"base_url": "http://localhost:1/v1", "model": "m"} | arguments)
