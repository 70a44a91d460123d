"""Which engine the settings load, and what they must say for it."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptflow import config
from gptflow.errors import ConfigError, MissingDependency, ServerUnavailable
from gptflow.queue.engine_factory import load_engine


class _Chats(BaseHTTPRequestHandler):
    """The least that a model server can do: list one model and answer a chat."""

    keys: list = []  # noqa: RUF012

    def do_GET(self):
        self.keys.append(self.headers["Authorization"])
        self._send({"data": [{"id": "big", "owned_by": "somebody"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "Hi"}
        known = self.path == "/v1/chat/completions"
        self._send({"choices": [{"index": 0, "message": message}]}, 200 if known else 404)

    def _send(self, fields, status=200):
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Chats)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def remote(**settings):
    return config.load(engine="openai", openai_wait=0, **settings)


def test_a_model_server_is_connected_to_as_the_settings_say(url):
    settings = remote(openai_url=url, openai_api_key="s3cret", openai_context=777)
    engine = load_engine(settings)
    assert (engine.model.id, engine.model.context) == ("big", 777)
    assert engine.adapters() == {}
    assert _Chats.keys[-1] == "Bearer s3cret"
    engine.close()


def test_a_model_server_must_be_named():
    with pytest.raises(ConfigError, match="no server is named") as caught:
        load_engine(remote())
    assert "GPTFLOW_OPENAI_URL" in caught.value.hint


def test_a_model_server_must_be_there():
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        load_engine(remote(openai_url="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("openai", "httpx2", "openai"), ("torch", "torch", "runtime")]
)
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, engine, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    settings = config.load(engine=engine, openai_url="http://127.0.0.1:1")
    with pytest.raises(MissingDependency, match=package) as caught:
        load_engine(settings)
    assert f"gptflow[{extra}]" in caught.value.hint


def test_the_doctor_shows_what_a_model_server_can_do(url, monkeypatch, capsys):
    from gptflow.cli import main

    for name, value in {"ENGINE": "openai", "OPENAI_URL": url, "OPENAI_CONTEXT": "777"}.items():
        monkeypatch.setenv(f"GPTFLOW_{name}", value)
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["model"]["detail"] == "big on OpenAI-compatible server, 777 tokens"
    assert "scoring" in found["model server"]["detail"]
    assert "package torch" not in found


def test_a_scripted_engine_answers_at_once_or_at_a_pace():
    at_once = load_engine(config.load(model="scripted"))
    assert "steps" not in at_once.stats()
    paced = load_engine(config.load(model="scripted:200", slots=3))
    assert paced.stats()["slots"] == 3
    paced.close()


@pytest.mark.parametrize("model", ["scripted:", "scripted:fast", "scripted:-1", "scripted:nan"])
def test_a_pace_is_a_number(model):
    with pytest.raises(ConfigError, match="at a pace") as caught:
        load_engine(config.load(model=model))
    assert "scripted:200" in caught.value.hint
