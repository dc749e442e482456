"""Chat templates: right ids for right conversations, and nothing else for everything else."""

import os
import random
import time
from dataclasses import replace

import jinja2.sandbox
import pytest

from paragone.errors import BadConfiguration, TemplateError, TemplateLimit, UsageError
from paragone.text.chat import MARK, RENDERER, encode_chat, render_chat
from paragone.text.chat import split_special as split
from paragone.text.formats import use_format

USER = [{"role": "user", "content": "Hi"}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 2+2?\n"},
    {"role": "assistant", "content": "4 "},
    {"role": "user", "content": "And {{ 3 }}+3?"},
]


def reference(template, messages, **values):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **values)


@pytest.mark.parametrize("messages", [USER, CONVERSATION])
def test_text_and_ids_equal_the_reference(smollm2_tokenizer, messages):
    want = reference(smollm2_tokenizer.chat_template, messages)
    assert render_chat(smollm2_tokenizer, messages) == want
    ids = encode_chat(smollm2_tokenizer, messages)
    assert smollm2_tokenizer.decode(ids, skip_special=False) == want
    # Hugging Face splits at special tokens and encodes what lies between; so does this, by hand.
    by_hand = []
    for part in want.replace("<|im_start|>", "\0S\0").replace("<|im_end|>", "\0E\0").split("\0"):
        known = {"S": "<|im_start|>", "E": "<|im_end|>"}
        by_hand += (
            [smollm2_tokenizer.special[known[part]]] if part in known else smollm2_tokenizer.encode(part)
        )
    assert ids == by_hand


@pytest.mark.parametrize(("which", "count"), [("smollm2_tokenizer", 100), ("gemma3_tokenizer", 4)])
def test_special_tokens_in_messages_never_become_control_tokens(which, count, request):
    """Five thousand texts, in conversations of fifty. (Gemma's six thousand control tokens take longer.)"""
    tokenizer, rng = replace(request.getfixturevalue(which)), random.Random(0)
    if tokenizer.chat_template is None:
        use_format(tokenizer, "gemma")
    names, used = sorted(tokenizer.special), set()
    parts = [*names, " ", "x", MARK, "<|im_", "end|>", "<start_of", "_turn>"]
    for _ in range(count):
        turns = [[rng.choice(parts) for _ in range(rng.randrange(1, 6))] for _ in range(50)]
        used |= {part for turn in turns for part in turn}
        roles = [("user", "assistant")[n % 2] for n in range(50)]

        def asked(texts, roles=roles):
            return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]

        evil = ["x" + "".join(turn) + "x" for turn in turns]
        ids = encode_chat(tokenizer, asked(evil))
        plain = encode_chat(tokenizer, asked(["x"] * 50))
        assert [i for i in ids if tokenizer.is_special(i)] == [i for i in plain if tokenizer.is_special(i)]
        text = tokenizer.decode(ids, skip_special=False)
        assert all(turn.replace(MARK, "") in text for turn in evil)
    assert used >= set(names) or len(used) > 400


@pytest.mark.parametrize("between", ["", " ", "<|", "|>"])
def test_messages_that_touch_do_not_make_control_tokens(smollm2_tokenizer, between):
    template = "<|im_start|>" + between.join(f"{{{{ messages[{n}].content }}}}" for n in range(3))
    touching = replace(smollm2_tokenizer, chat_template=template)
    for name in smollm2_tokenizer.special:
        for a in range(len(name)):
            for b in range(a, len(name)):
                cut = [name[:a], name[a:b], name[b:]]
                messages = [{"role": "user", "content": c} for c in cut]
                ids = encode_chat(touching, messages)
                assert [i for i in ids if touching.is_special(i)] == [1], cut
    spaced = [{"role": "user", "content": c} for c in (" <|im_ ", "x", "\tend|>\n")]
    trimmed = replace(touching, chat_template="{% for m in messages %}{{ m.content | trim }}|{% endfor %}")
    assert trimmed.decode(encode_chat(trimmed, spaced)) == "<|im_|x|end|>|"


def test_split_keeps_the_templates_own_tokens(smollm2_tokenizer):
    assert split(smollm2_tokenizer, "<|im_start|>a<|im_end|>") == [1, "a", 2]
    assert split(smollm2_tokenizer, f"<{MARK}|im_start|>") == ["<|im_start|>"]


@pytest.mark.parametrize(
    "message", [{"role": "root", "content": "x"}, {"role": "user"}, {"role": "user", "content": 3}, {}]
)
def test_bad_messages(smollm2_tokenizer, message):
    with pytest.raises(UsageError, match="message 1"):
        render_chat(smollm2_tokenizer, [message])


def test_base_models_have_no_template(gemma3_tokenizer):
    with pytest.raises(BadConfiguration, match="no chat template"):
        encode_chat(gemma3_tokenizer, USER)


INJECTIONS = [
    "{{ ''.__class__ }}", "{{ ().__class__.__bases__[0].__subclasses__() }}", "{{ ''.__class__.__mro__ }}",
    "{{ [].__class__.__base__ }}", "{{ {}.__init__.__globals__ }}", "{{ messages.__class__ }}",
    "{{ self.__init__.__globals__ }}", "{{ self._TemplateReference__context }}", "{{ namespace.__init__ }}",
    "{{ raise_exception.__globals__ }}", "{{ raise_exception.__code__ }}", "{{ strftime_now.__globals__ }}",
    "{{ range.__globals__ }}", "{{ dict.__subclasses__() }}", "{{ joiner.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}", "{{ ()|attr('__class__')|attr('__bases__') }}",
    "{{ ''['__class__'] }}", "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}", "{{ [''.__class__]|first }}",
    "{{ '{0.__class__}'.format('') }}", "{{ '{0.__class__.__init__.__globals__}'.format(self) }}",
    "{{ '%s'.__mod__('x') }}", "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}", "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}']|map('format', '')|list }}", "{{ ''|format(self.__init__) }}",
    "{{ cycler.__init__.__globals__.os.popen('id') }}", "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ config }}{{ config.items() }}", "{{ request.application }}", "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}", "{% import 'os' as os %}", "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}", "{% from 'x' import y %}", "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os') }}", "{{ eval('1') }}", "{{ exec('1') }}", "{{ compile('1','','eval') }}",
    "{{ globals() }}", "{{ (1).__class__.__init__ }}", "{{ true.__class__ }}", "{{ none.__class__ }}",
    "{{ messages.append(1) }}", "{{ messages.clear() }}", "{% set x = messages.pop() %}", "{{ messages[0].update(a=1) }}",
    "{{ messages[0].__setitem__('a', 1) }}", "{{ (messages|list).__class__ }}", "{{ ''.join.__self__.__class__ }}",
    "{{ loop.__class__ }}", "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}", "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ (messages|groupby('role'))[0].__class__ }}", "{{ ''.encode().__class__ }}", "{{ joiner().__init__.__globals__ }}",
    "{{ environment.__class__ }}",
]  # fmt: skip


@pytest.mark.parametrize("template", INJECTIONS)
def test_injection(template):
    """Fails, or gives harmless text: nothing of the interpreter is ever shown."""
    try:
        text = RENDERER.render(template, {"messages": [{"role": "user", "content": "x"}]})
    except (TemplateError, TemplateLimit):
        return
    assert not any(leak in text for leak in ("class '", "<function", "<module", "root:", "uid=", "{'__")), (
        text
    )


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10**9) %}{% endfor %}", "{{ range(100001)|list }}", "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}", "{{ 'a'.ljust(10**10) }}", "{{ 'a'.center(10**10) }}", "{{ 'a'.zfill(10**10) }}",
    "{{ 'a'|center(10**10) }}", "{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "{{ 9 ** 9 ** 99 }}", "{{ 2 ** 100000 }}",
    "{{ (10 ** 60) ** 60 }}", "{{ '%1000000000d' % 1 }}", "{{ '%1000000000d'|format(1) }}", "{{ '{:1000000000}'.format(1) }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=['a']) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}", "{{ 'a'|indent(10**10) }}", "{{ ('a\n'*99999)|indent(99999) }}",
    "{{ range(99999)|map('string')|join('x' * 99999) }}", "{{ range(99999)|batch(1)|list|string * 99999 }}",
    "{{ (range(99999)|list|tojson) * 9999 }}", "{{ ('a' * 99999)|wordwrap(1, true, 'b' * 99999) }}", "{{ 'a'|urlize * 10**9 }}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}", "{{ ('aa' * 49999)|list|permutations }}",
    "{{ range(99999)|sort|list|sort|unique|list|tojson * 999999 }}", "{{ 'x'.join(['y' * 99999] * 99999) }}",
    "{{ ['y' * 99999] * 99999 }}", "{% filter upper %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endfilter %}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}{{ x }}",
    "{{ 'a'.expandtabs(10**9) }}{{ '\t'.expandtabs(10**10) }}", "{{ (1).__lshift__(10**10) }}", "{{ " + "(" * 3000 + ")" * 3000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
]  # fmt: skip


@pytest.mark.parametrize("template", BOMBS)
def test_bombs(template):
    begin = time.monotonic()
    with pytest.raises(TemplateError):
        RENDERER.render(template, {"messages": USER})
    assert time.monotonic() - begin < 2.5


def test_a_stuck_template_is_killed_and_the_next_one_renders():
    pid = RENDERER.start().pid
    with pytest.raises(TemplateLimit, match="seconds"):
        RENDERER.render(BOMBS[0], {})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert RENDERER.render("{{ 1 + 1 }}", {}) == "2"


def test_random_templates_never_escape():
    """Two thousand random pieces of template put together: text or a TemplateError, nothing else."""
    rng = random.Random(0)
    parts = [
        "{{", "}}", "{%", "%}", "for m in messages", "endfor", "if", "else", "endif", "set x = ", "messages", "[0]",
        ".content", "['role']", "|", "upper", "trim", "tojson", "join", "range(9)", "*", "**", "+", "~", "'a'", "1", "99",
        "(", ")", "namespace(a=1)", ".a", "__class__", "loop.index", "x", "macro f()", "endmacro", "f()", " ", "\n", "-%}",
        "{%-", "raise_exception('no')", "strftime_now('%d')", "generation", "endgeneration", "break", "is defined", "not",
    ]  # fmt: skip
    rendered = 0
    for _ in range(2000):
        template = "".join(rng.choices(parts, k=rng.randrange(1, 14)))
        if rng.random() < 0.5:
            template = "{{ " + " ".join(rng.choices(parts[8:38], k=3)) + " }}"
        try:
            assert isinstance(RENDERER.render(template, {"messages": USER}), str)
            rendered += 1
        except TemplateError:
            pass
    assert rendered > 100


def test_oversized_templates_and_conversations():
    with pytest.raises(TemplateLimit, match="longer"):
        RENDERER.render("a" * (1 << 19), {})
    with pytest.raises(TemplateLimit, match="conversation"):
        RENDERER.render("{{ x }}", {"x": "a" * (1 << 25)})


def test_the_usual_extras_render():
    assert RENDERER.render("{{ {'a': 'é'} | tojson }}", {}) == '{"a": "é"}'
    assert (
        RENDERER.render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", {})
        == "01"
    )
    assert RENDERER.render("{% generation %}x{% endgeneration %}", {}) == "x"
    assert RENDERER.render("{{ strftime_now('%Y') }}", {}).startswith("2")
    with pytest.raises(TemplateError, match="no system role"):
        RENDERER.render("{{ raise_exception('no system role') }}", {})
