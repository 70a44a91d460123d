"""The prefix cache: the longest known beginning, for those who may use it, within its bounds."""

from __future__ import annotations

import random

import pytest
import torch

from gptflow.engine.prefix import MIN_TOKENS, CommonBeginnings, Prefix, PrefixCache, Scope
from gptflow.heads import Generate
from gptflow.prompt import Prompt
from gptflow.request import Request

TOKEN = 2 * 1 * 1 * 1 * 4
"""Bytes of one token of `saved`."""


def saved(ids):
    """Keys and values that tell which tokens they are of."""
    return torch.tensor([ids, ids], dtype=torch.float32)[:, None, None, :, None]


def ids(*parts):
    return tuple(token for start, count in parts for token in range(start, start + count))


def test_the_longest_common_beginning_is_found():
    dice = random.Random(4)
    cache = PrefixCache(10**6)
    kept = []
    for _ in range(60):
        entry = tuple(dice.choices((1, 2), k=dice.randint(8, 20)))
        cache.put(Scope(), entry, saved(entry))
        kept.append(entry)
    for _ in range(200):
        asked = tuple(dice.choices((1, 2), k=dice.randint(1, 24)))
        longest = max(
            next((i for i, (a, b) in enumerate(zip(asked, k, strict=False)) if a != b),
                 min(len(asked), len(k))) for k in kept
        )  # fmt: skip
        found = cache.get(Prefix(asked))
        if longest < MIN_TOKENS:
            assert found is None
        else:
            assert found[0, 0, 0, :, 0].tolist() == list(asked[:longest])


def test_nobody_sees_what_is_not_theirs():
    cache = PrefixCache(10**6)
    tokens = ids((0, 20))
    cache.put(Scope(tenant="ada"), tokens, saved(tokens))
    cache.put(Scope(lora="x"), tokens, saved(tokens))
    assert cache.get(Prefix(tokens, tenant="ada")) is not None
    assert cache.get(Prefix(tokens, tenant="bob")) is None
    assert cache.get(Prefix(tokens, tenant="")) is None
    assert cache.get(Prefix(tokens, tenant="bob", lora="x")) is not None
    assert cache.get(Prefix(tokens, tenant="ada", lora="y")) is None


def test_an_entry_that_goes_on_replaces_the_shorter_one():
    cache = PrefixCache(10**6)
    for count in (10, 30, 20):
        tokens = ids((0, count))
        cache.put(Scope(), tokens, saved(tokens))
    assert len(cache) == 1
    assert cache.nbytes == 30 * TOKEN


def test_authors_prefixes_outlive_what_users_sent():
    cache = PrefixCache(100 * TOKEN, pinned=50 * TOKEN)
    author = ids((0, 40))
    cache.put(Scope(), author, saved(author))
    for start in range(1000, 9000, 1000):
        user = ids((start, 20))
        cache.put(Scope(tenant="ada"), user, saved(user))
        assert cache.nbytes <= 100 * TOKEN
    assert cache.get(Prefix(author)) is not None
    assert cache.get(Prefix(ids((8000, 20)), tenant="ada")) is not None
    assert cache.get(Prefix(ids((1000, 20)), tenant="ada")) is None
    second = ids((500, 40))  # over the quota: the first is like any other now
    cache.put(Scope(), second, saved(second))
    for start in range(10_000, 15_000, 1000):
        user = ids((start, 20))
        cache.put(Scope(tenant="ada"), user, saved(user))
    assert cache.get(Prefix(author)) is None
    assert cache.get(Prefix(second)) is not None


def test_what_is_too_large_broken_or_retired_is_not_kept():
    alive = {"x"}
    cache = PrefixCache(50 * TOKEN, serves=lambda lora: lora in alive)
    long, short = ids((0, 60)), ids((0, 20))
    cache.put(Scope(), long, saved(long))
    broken = saved(short)
    broken[0, 0, 0, 3] = float("nan")
    cache.put(Scope(), short, broken)
    cache.put(Scope("gone"), short, saved(short))
    assert len(cache) == 0
    cache.put(Scope("x"), short, saved(short))
    assert len(cache) == 1
    cache.drop("x")
    assert (len(cache), cache.nbytes, cache.pinned_bytes) == (0, 0, 0)


def test_what_a_tenant_repeats_is_noticed():
    beginnings = CommonBeginnings()
    a, b = Scope(tenant="a"), Scope(tenant="b")
    assert beginnings.find(a, ids((0, 30))) == 0
    assert beginnings.find(b, ids((0, 30))) == 0
    assert beginnings.find(a, ids((500, 30))) == 0
    assert beginnings.find(a, ids((0, 20), (700, 9))) == 20  # not only the last one counts
    assert beginnings.find(a, ids((0, 30))) == 30


def test_two_templates_share_what_they_begin_with(tiny, make_engine):
    engine = make_engine()
    start = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."
    asked = [
        Prompt(f"{start}\n{end} {{{{ text }}}}").render({"text": "warm sun"})
        for end in ("Mood:", "Answer with one word:")
    ]
    cached = []
    for prompt in asked:
        request = Request(prompt=prompt, head=Generate(max_tokens=6), ignore_eos=True)
        answer = engine.submit(request).result(30)
        tokens = tiny.vocabulary.encode(prompt)
        assert answer.continuations[0].tokens == tiny.greedy("llama", tokens, 6)
        cached.append(answer.usage.cached)
    assert cached[0] == 0
    assert cached[1] >= 15


@pytest.mark.parametrize("tenants", [("a", "a", "a"), ("a", "b", "c")])
def test_user_text_is_reused_by_the_same_tenant_only(tiny, make_engine, tenants):
    engine = make_engine()
    prompt = Prompt("Text: {{ text }}\nMood:")
    text = "Shares fell by ten percent after the company reported lower profit than expected."
    cached = []
    for tenant in tenants:
        rendered = prompt.render({"text": text})
        request = Request(
            prompt=rendered, head=Generate(max_tokens=4), tenant=tenant, ignore_eos=True
        )
        answer = engine.submit(request).result(30)
        tokens = tiny.vocabulary.encode(rendered)
        assert answer.continuations[0].tokens == tiny.greedy("llama", tokens, 4)
        cached.append(answer.usage.cached)
    alone = len(set(tenants)) == 3
    assert [count > 8 for count in cached] == [False, False, not alone]
