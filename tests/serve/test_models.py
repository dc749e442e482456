"""Which models a server has in memory, without a server."""

import asyncio
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paragone.serve.call import decode
from paragone.serve.errors import ApiError
from paragone.serve.models import Models, ServedModel
from paragone.serve.schemas import CompletionRequest


@pytest.fixture
def link():
    """An engine that is told of models and does nothing."""
    made = SimpleNamespace(up=True, loads=[], unloads=[])
    made.load, made.unload = made.loads.append, made.unloads.append
    return made


def models(link, sizes, options=None, memory_bytes=100):
    """So many bytes each; all but the last are loaded, and nobody uses them."""
    served = [ServedModel(name, Path(name), name, None, bytes=size) for name, size in sizes.items()]
    for model in served[:-1]:
        model.loaded = SimpleNamespace()
    log = SimpleNamespace(event=lambda *_, **__: None)
    return Models(link, served, options or {}, log, memory_bytes=memory_bytes), served[-1]


def test_the_longest_unused_make_room(link):
    held, wanted = models(link, {"a": 40, "b": 50, "c": 45})
    held.get("a").used = 2.0
    held.get("b").used = 1.0
    held._make_room(wanted)
    assert link.unloads == ["b"]


def test_nothing_is_unloaded_for_a_model_that_cannot_fit(link):
    """However often it is asked for."""
    held, wanted = models(link, {"a": 40, "b": 50, "c": 101})
    for _ in range(3):
        with pytest.raises(ApiError, match="beside those in use") as caught:
            held._make_room(wanted)
    assert caught.value.headers["Retry-After"]
    assert link.unloads == []


@pytest.mark.parametrize(("memory", "cache"), [(100, 7), (None, None)])
def test_a_limit_of_memory_bounds_the_cache_too(link, memory, cache):
    """An engine that is told nothing takes its share of the machine's."""
    held, wanted = models(link, {"a": 40, "b": 50}, {"max_num_seqs": 4}, memory)
    wanted.cache_bytes = 7

    async def begin():
        held._begin(wanted)

    asyncio.run(begin())
    (load,) = link.loads
    assert load.options.get("kv_cache_bytes") == cache
    assert load.options["max_num_seqs"] == 4


PIECES = ["..", ".", "/", "\\", "a", "b", "%2e%2e", "%00", "\0", "C:", "//host/share", "~", "é", "．．", "／", "etc", "passwd",
          "-", "_", "\n", " ", "CON", "a" * 130, "\u202e", "${HOME}", "`id`", "file:", "hf:", "?", "#"]  # fmt: skip


def test_no_name_of_a_hundred_thousand_leads_to_a_file(link):
    """A name is looked up among those that are served, and nothing else is done with it."""
    held, _ = models(link, {"a": 1, "b": 1})
    rng, opened, watching, taken = random.Random(3), [], True, 0
    sys.addaudithook(lambda event, args: opened.append(args) if watching and event == "open" else None)
    for _ in range(100_000):
        name = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 4)))
        try:
            request = decode(json.dumps({"model": name, "prompt": "x"}).encode(), CompletionRequest)
            taken += held.get(request.model).name == name
        except ApiError as err:
            plain = re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name)
            assert (err.status, err.code) == ((404, "model_not_found") if plain else (400, "invalid_value"))
        else:
            assert name in ("a", "b")
    watching = False
    assert [args for args in opened if "/encodings/" not in str(args[0])] == []  # Python's own codecs
    assert taken > 1000
