"""The page in a real browser: by mouse, by keyboard, and without a request to anybody else."""

import os
from pathlib import Path

import pytest

from tests.serve.browser import browsing, chromium

LOG = "document.querySelectorAll('.log')"


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    if chromium() is None and not os.environ.get("PARAGONE_NEEDS_CHROMIUM"):
        pytest.skip("no Chromium on this machine; continuous integration has one")
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        found.open(server.url)
        found.until("document.querySelector('.model').options.length === 2")
        yield found


def send(page, text):
    page.run("document.getElementById('ask').focus()")
    page.type(text)
    page.press("Enter")


def done(page, answers):
    page.until(
        f"document.querySelectorAll('.turn.assistant').length === {answers} && document.getElementById('stop').disabled"
    )


def test_an_answer_comes_and_its_tokens_tell_how_likely_they_were(page):
    page.run("document.getElementById('max_tokens').value = 24")
    page.run("document.getElementById('seed').value = 1")
    send(page, "Hello there")
    done(page, 1)
    page.run("document.getElementById('seed').value = ''")
    text = page.run("document.querySelector('.turn.user .body').textContent")
    assert text == "Hello there"
    # How many are shown together depends on what arrives together; each of them is told.
    told = page.run("[...document.querySelectorAll('.turn.assistant .token')].map((t) => t.told).join('')")
    assert told.count("was taken") >= 20  # the last ones may be half a character
    page.point_at(".turn.assistant .token")
    tip = page.until("!document.getElementById('tip').hidden && document.getElementById('tip').textContent")
    assert "was taken" in tip
    assert tip.count("%") == 6
    assert "tokens," in page.run("document.querySelector('.speed').textContent")


def test_by_keyboard_alone(page):
    page.run("document.querySelector('.turn.assistant').focus()")
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")
    page.press("ArrowRight")
    first = page.run("document.getElementById('tip').textContent")
    page.press("ArrowRight")
    second = page.run("document.getElementById('tip').textContent")
    assert first
    assert second
    assert (
        page.run("[...document.querySelectorAll('.token')].findIndex((t) => t.classList.contains('chosen'))")
        == 1
    )
    page.press("Escape")
    reached = set()
    page.run("document.activeElement.blur()")
    for _ in range(40):
        page.press("Tab")
        reached.add(page.run("document.activeElement.id || document.activeElement.className"))
    assert {"ask", "send", "clear", "both", "temperature", "model", "regenerate", "prompt"} <= reached


def test_everything_has_a_name(page):
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "checkbox", "spinbutton"}
    nameless = [
        n
        for n in nodes
        if n.get("role", {}).get("value") in roles and not n["ignored"] and not n["name"].get("value")
    ]
    assert nameless == []
    assert any(n.get("role", {}).get("value") == "log" for n in nodes)


def test_again(page):
    before = page.run("document.querySelector('.turn.assistant .body').textContent")
    page.run("document.querySelector('.regenerate').click()")
    done(page, 1)
    assert page.run("document.querySelector('.turn.assistant .body').textContent") != before


def test_stopped(page, server):
    page.run("document.getElementById('max_tokens').value = 400")
    page.run("document.getElementById('temperature').value = 0")  # what is drawn may end at once
    send(page, "And now a long one")
    page.until("document.querySelectorAll('.turn.assistant').length === 2 && "
               "document.querySelectorAll('.turn.assistant')[1].textContent.length > 20")  # fmt: skip
    page.run("document.getElementById('stop').click()")
    page.until("document.getElementById('stop').disabled")
    server.idle()
    page.run("document.getElementById('max_tokens').value = 24")
    page.run("document.getElementById('temperature').value = ''")
    page.run("document.getElementById('seed').value = 1")


def test_what_the_model_sees(page):
    page.run("document.querySelector('.prompt').click()")
    text = page.until(
        "document.getElementById('seen').open && document.getElementById('seen-text').textContent"
    )
    assert text.startswith("<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n")
    assert "tokens" in page.run("document.getElementById('seen-count').textContent")
    page.run("document.getElementById('seen').close()")


def test_two_side_by_side(page):
    page.run("document.getElementById('clear').click(); document.getElementById('both').click()")
    send(page, "Which of you?")
    done(page, 2)
    names = page.run("[...document.querySelectorAll('.turn.assistant .who')].map((e) => e.textContent)")
    assert names == ["tiny", "other"]
    page.picture(Path(os.environ["PARAGONE_PICTURES"]) / "page.png") if os.environ.get(
        "PARAGONE_PICTURES"
    ) else None


def test_the_state_of_the_machine(page):
    text = page.until("document.getElementById('machine').innerText")
    for word in ("Engine", "Running", "Cache", "Memory", "Loaded"):
        assert word in text


def test_an_error_is_shown(page):
    page.run("document.getElementById('temperature').value = 9")
    send(page, "Too hot")
    told = page.until(
        "document.querySelector('.turn.error .body') && document.querySelector('.turn.error .body').textContent"
    )
    assert "temperature" in told
    page.run("document.getElementById('temperature').value = ''")


def test_what_a_model_says_is_never_code(page):
    """A message with markup is text."""
    page.run("document.getElementById('clear').click()")
    send(page, "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>")
    done(page, 2)
    assert page.run("window.hacked") is None
    assert page.run("document.querySelectorAll('.log img, .log script').length") == 0


def test_nobody_else_is_asked(page, server):
    """And nothing was refused by the page's own policy, nor said in the console."""
    asked = [t["params"]["request"]["url"] for t in page.told if t["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5
    assert all(url.startswith((server.url, "data:")) for url in asked), asked
    problems = [t for t in page.told if t["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert problems == []
