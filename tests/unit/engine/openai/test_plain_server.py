"""A server that knows OpenAI's API and nothing more: what it lacks is refused, not made up."""

import json

import pytest

from gptflow.engine.openai import connect
from gptflow.engine.openai.tokens import at_most
from gptflow.errors import ConfigError, UnsupportedHead
from gptflow.heads import Choose, Embed, Generate, Json
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Request

SECONDS = 30
CHAT = "/v1/chat/completions"
ASK = Prompt("user:\n{{ text }}\nassistant:\n").render({"text": "Hello"})


def chat_only(request):
    """Chats, one at a time, without log-probabilities, schemas or streams."""
    if request.path == "/v1/models":
        return {"answer": json.dumps({"data": [{"id": "m", "owned_by": "somebody"}]})}
    if request.path != CHAT or request.body.get("stream"):
        return {"status": 404}
    message = {"role": "assistant", "content": f"Hi {request.body.get('seed', 0)}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"answer": json.dumps({"choices": [choice]})}


@pytest.fixture
def remote(make_server):
    server = make_server()
    server.script = chat_only
    engine = connect(server.url, context=512, wait=0)
    server.requests.clear()
    yield engine, server
    engine.close()


def answer(remote, prompt, head, **options):
    return remote[0].submit(Request(prompt=prompt, head=head, **options)).result(SECONDS)


def test_a_context_that_nobody_tells_must_be_set(make_server):
    server = make_server()
    server.script = chat_only
    with pytest.raises(ConfigError, match="GPTFLOW_OPENAI_CONTEXT"):
        connect(server.url, wait=0)


def test_only_what_it_did_when_tried_is_believed(remote):
    capabilities = remote[0].stats()["capabilities"]
    can = {name for name, value in capabilities.items() if value is True}
    assert can == {"chat", "seed"}
    assert capabilities["scoring"] == ""


def test_several_samples_are_asked_for_one_by_one_with_a_seed_each(remote):
    generated = answer(remote, ASK, Generate(n=3, temperature=1.0), seed=5)
    assert [c.text for c in generated.continuations] == ["Hi 5", "Hi 6", "Hi 7"]
    assert generated.continuations[0].mean_logprob == 0
    assert all("n" not in body for body in remote[1].asked(CHAT))


def test_text_arrives_in_one_piece_where_the_server_cannot_stream(remote):
    pieces = []
    answer(remote, ASK, Generate(), on_delta=pieces.append)
    assert [piece.text for piece in pieces] == ["Hi 0"]


@pytest.mark.parametrize(
    ("prompt", "head", "lacks"),
    [
        (ASK, Generate(temperature=1.0, top_k=5), "top_k"),
        (ASK, Generate(temperature=1.0, min_p=0.1), "min_p"),
        (ASK, Generate(repetition_penalty=1.1), "repetition_penalty"),
        (ASK, Generate(logprobs=True), "log-probabilities"),
        (ASK, Json(schema={"type": "integer"}), "no JSON schema"),
        (ASK, Choose(labels=("a", "b")), "log-probabilities"),
        (RenderedPrompt.plain("a"), Generate(), "completions of plain text"),
        ((1, 2), Generate(), "completions of token ids"),
        ((1, 2), Choose(labels=("a", "b")), "log-probabilities"),
        (RenderedPrompt.plain("a"), Embed(), "/v1/embeddings"),
    ],
)
def test_what_the_server_lacks_is_refused_by_name(remote, prompt, head, lacks):
    with pytest.raises(UnsupportedHead, match=lacks):
        answer(remote, prompt, head)
    assert not remote[1].asked(CHAT)


def test_tokens_are_counted_at_most_where_nobody_can_tell(remote):
    assert remote[0].count_tokens(ASK) == at_most(ASK) > len("Hello")
