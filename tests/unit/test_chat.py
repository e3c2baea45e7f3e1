"""Chat templates as the head renders them, beside transformers' ``apply_chat_template``."""

from __future__ import annotations

import datetime
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import bloombee.roles.chat
from bloombee.errors import ConfigError
from bloombee.roles.chat import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "one system turn, folded into the first of the user's": """
{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}{%- set system = messages[0]['content'] -%}
{%- else -%}{%- set rest = messages -%}{%- set system = false -%}{%- endif -%}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {%- endif -%}
  {%- if loop.index0 == 0 and system -%}{%- set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] -%}
  {%- else -%}{%- set content = message['content'] -%}{%- endif -%}
  {%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {%- elif message['role'] == 'assistant' -%}{{ ' ' + content.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}""",
    "headers, the date and tools": """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}{{- '{"name": "' + call.function.name + '", "parameters": ' }}
        {{- call.function.arguments | tojson }}{{- '}' }}{%- endfor %}{{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "alternating, checked with a namespace": """{%- set ns = namespace(index=0, system='') %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{%- set ns.system = ns.system ~ message.content %}{%- continue %}{%- endif %}
  {%- if message.role == 'user' and ns.index % 2 == 1 %}{{- raise_exception('roles must alternate') }}{%- endif %}
  {%- set ns.index = ns.index + 1 %}
  {%- if message.role == 'user' %}
    {{- '[INST]' ~ (ns.system ~ '\n\n' if ns.system and loop.last else '') ~ message.content ~ '[/INST]' }}
  {%- else %}{{- ' ' ~ message.content|default('', true) ~ eos_token }}{%- endif %}
{%- endfor %}""",
    "model turns": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}""",
    "thoughts, counted backwards": """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index or reasoning_content %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' }}{{- (tool_call.function or tool_call).name }}{{- '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson(indent=2) }}{{- '}\n</tool_call>' }}
        {%- endfor %}{{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' ~ content ~ '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- else %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "one line, tags of the roles": (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "tools or none": """
{%- if tools %}{{ '[AVAILABLE_TOOLS]' ~ tools|tojson }}{% endif %}{% if documents is none %}no documents{% endif %}
{%- for m in messages %}
{{ m|tojson }}
{%- endfor %}{{ messages|tojson(indent=1, sort_keys=true, separators=(',', ':')) }}""",
    "marked for training": """
{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}
    {% set inner = 'x' %}{{ m.content }}{{ inner }}{{ eos_token }}{% endgeneration %}
{% else %}{{ m.content }}{% endif %}[{{ inner }}]
{% endfor %}""",
    "macros, breaks and filters": """
{% macro turn(role, content='') %}<{{ role|upper }}>{{ caller() if caller else content }}</{{ role }}>{% endmacro %}
{% for m in messages if m.content is string %}{% if loop.index > 3 %}{% break %}{% endif %}
{% call turn(m.role) %}{{ m.content|replace('\n', ' ')|title }}{% endcall %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}
{% else %}nobody{% endfor %}{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|length }}
{{ dict(a=1, b='ü')|tojson }}{{ dict.fromkeys(['k'], 2) }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ range(3)|list }}
{{ namespace(self=1, a='x').a }}{{ ['b', 'a']|sort|join(',') }}{{ '%s-%d'|format('n', 3) }}{{ undefined_thing }}
{{ pad_token }}{{ [1, 2]|sum }}""",
    "recursive": """{% for m in messages recursive %}{{ m.role }}{% if m.parts %}[{{ loop(m.parts) }}]{% endif %}{% endfor %}""",
    "white space":
    "  {% if true %}  \n  text\n  {%- endif %}  \n\t{% for m in messages %}\n {{ m.content }}\n{% endfor %}\n{# note #}\nend\n\n",
}  # fmt: skip

ASK = {"role": "user", "content": " What is 2 < 3 & 'so'?\n"}
CALL = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 3, "é": None}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [ASK],
    "system first": [{"role": "system", "content": "Be brief."}, ASK],
    "three turns": [ASK, {"role": "assistant", "content": "Yes. 😀"}, {"role": "user", "content": "中文 and\n\nmore"}],
    "assistant last": [ASK, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}],
    "users in a row": [ASK, ASK],
    "calls of tools": [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": true}', "tool_call_id": "abc", "name": "weather"},
        {"role": "tool", "content": [{"type": "text", "text": "more"}]},
        {"role": "assistant", "content": "Sun.", "reasoning": "the tool said so"},
        {"role": "user", "content": "Thanks"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image"}, {"type": "text", "text": "it"}]}],
    "thoughts under another name": [ASK, {"role": "assistant", "content": "Yes", "thinking": "clear"}, ASK],
    "parts in parts": [{"role": "user", "content": "", "parts": [{"role": "a", "parts": [{"role": "b"}]}, {"role": "c"}]}],
}


@pytest.fixture(scope="module")
def oracle() -> Callable[[str, Any], str]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)

    def render(template: str, messages: Any) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)

    return render


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment stands still for both."""
    import transformers.utils.chat_template_utils as theirs

    class Now(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Now:
            return cls(2020, 2, 3, 4, 5, 6, tzinfo=tz)

    monkeypatch.setattr(theirs, "datetime", Now)
    monkeypatch.setattr(bloombee.roles.chat.datetime, "datetime", Now)


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_the_text_that_transformers_makes_of_it(
    template: str, conversation: str, oracle: Callable[[str, Any], str]
) -> None:
    source, messages = TEMPLATES[template], CONVERSATIONS[conversation]
    ours = ChatTemplate("m", {"default": source}, SPECIAL)
    try:
        expected = oracle(source, messages)
    except Exception as error:
        refused = str(error)
    else:
        assert ours.render(messages) == expected
        return
    with pytest.raises(ConfigError, match=re.escape(refused)):
        ours.render(messages)


def render(source: str, messages: Any = (ASK,)) -> str:
    return ChatTemplate("m", {"default": source}, SPECIAL).render(messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(_a=1) %}",
        "{% set ns = namespace() %}{% set ns._a = 1 %}",
        "{{ dict.__class__.__bases__ }}{{ dict.mro() }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ 'a' + 1 }}",
        "{{ nothing() }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% include 'other' %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 12 * ['x'] }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_a_config_error(source: str) -> None:
    with pytest.raises(ConfigError, match=r"m: its chat template refuses these messages: ."):
        render(source)


DOUBLED = "{% set ns = namespace(a='0123456789') %}{% for i in range(60) %}{% set ns.a = DOUBLE %}{% endfor %}{{ ns.a|length }}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x'.center(10 ** 12) }}",
        "{{ 'x'.zfill(10 ** 12) }}",
        "{{ '\t'.expandtabs(tabsize=2000000000) }}",
        "{{ 'x'|center(10 ** 12) }}",
        "{{ 'x\n'|indent(10 ** 12) }}",
        "{{ messages|tojson(indent=10 ** 9) }}",
        "{{ '%01000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%.1000000000f'|format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10 ** 9) }}",
        "{% set a = 'x' * 100000 %}{{ a.replace('x', a) }}",
        "{% set a = 'x' * 100000 %}{{ a|replace('x', a) }}",
        "{% set a = 'x' * 100000 %}{{ a.join(range(99999)|map('string')) }}",
        "{% set a = 'x' * 100000 %}{{ range(99999)|join(a) }}",
        "{% set a = 'x' * 100000 %}{{ a.translate({120: a}) }}",
        "{% set a = 'x' * 100000 %}{% for i in range(9999) %}{{ a }}{% endfor %}",
        "{% set a = 'x' * 100000 %}{% set b %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endset %}",
        DOUBLED.replace("DOUBLE", "ns.a ~ ns.a"),
        DOUBLED.replace("DOUBLE", "ns.a + ns.a"),
        "{% set ns = namespace(a=3) %}{% for i in range(60) %}{% set ns.a = ns.a * ns.a %}{% endfor %}{{ ns.a > 1 }}",
    ],
)
def test_a_template_that_makes_too_much_in_one_go_is_refused_at_once(source: str) -> None:
    with pytest.raises(ConfigError, match=r"beyond all measure|too many digits|an indent of more than"):
        render(source)


def test_what_templates_make_in_one_go_is_as_without_limits() -> None:
    assert render("{{ 'a'.center(5) }}|{{ 'a'|center(5) }}|{{ 'x\ny'|indent(2) }}") == "  a  |  a  |x\n  y"
    assert render("{{ 'a' ~ 1 ~ none }}|{{ '-'.join(['a', 'b']) }}|{{ ['a', 1]|join('-') }}") == "a1None|a-b|a-1"
    assert render("{{ 'Time: 12345678 %s %5.1f' % ('x', 2) }}|{{ '{{\"a\": {{1234567}}}} {:>3}'.format(1) }}") == (
        'Time: 12345678 x   2.0|{"a": {1234567}}   1'
    )
    assert (
        render("{{ 'aXb'.replace('X', '--') }}|{{ 'aXb'|replace('X', '--') }}|{{ 7 * 6 }}|{{ [1] + [2] }}")
        == "a--b|a--b|42|[1, 2]"
    )
    assert (
        render("{{ range(5)|batch(2)|list|length }}|{{ {'a': 1}|join('-') }}|{{ 1700000000000|string }}") == "3|a|1700000000000"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_without_end_is_stopped_and_holds_up_no_other_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloombee.roles.chat, "RENDER_S", 0.5)
    turns = []
    over = threading.Event()

    def others() -> None:
        while not over.is_set():
            turns.append(time.monotonic())
            over.wait(0.001)

    other = threading.Thread(target=others)
    other.start()
    try:
        with pytest.raises(ConfigError, match=r"took longer than 0\.5 s"):
            render(source)
    finally:
        over.set()
        other.join()
    assert len(turns) > 20


def test_a_template_that_was_stopped_renders_the_next_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = "{% for a in range(m.n|default(1)) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = f"{{% for m in messages %}}{loops}ok{{% endfor %}}"
    template = ChatTemplate("m", {"default": source}, SPECIAL)
    monkeypatch.setattr(bloombee.roles.chat, "RENDER_S", 0.05)
    with pytest.raises(ConfigError, match="took longer"):
        template.render([{**ASK, "n": 99999}])
    monkeypatch.setattr(bloombee.roles.chat, "RENDER_S", 60.0)
    assert template.render([ASK]) == "ok"


def test_several_threads_render_at_once() -> None:
    template = ChatTemplate("m", {"default": TEMPLATES["chatml"]}, SPECIAL)
    alone = [template.render([{"role": "user", "content": f"{n} " * n}]) for n in range(64)]
    found: dict[int, str] = {}

    def one(n: int) -> None:
        found[n] = template.render([{"role": "user", "content": f"{n} " * n}])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(64)] == alone


@pytest.mark.parametrize(
    ("templates", "says"),
    [
        ({}, "m has no chat template"),
        ({"tool_use": "x", "rag": "y"}, "chat templates rag, tool_use and none named default"),
        ({"default": "{% for m in messages %}"}, "its chat template is broken: "),
        ({"default": "{{ 'a' | no_such_filter }}"}, "no_such_filter"),
    ],
)
def test_what_is_no_template_is_refused_when_it_is_needed(templates: dict[str, str], says: str) -> None:
    chat = ChatTemplate("m", templates, {})
    with pytest.raises(ConfigError, match=says):
        chat.render([ASK])


def test_of_several_templates_the_default_is_used() -> None:
    assert ChatTemplate("m", {"tool_use": "x", "default": "{{ bos_token }}y"}, SPECIAL).render([ASK]) == "<s>y"


def _loop() -> dict[str, Any]:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    return message


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASK, "hello"], r"messages\[1\] is of type str"),
        ([ASK, 5], r"messages\[1\] is of type int"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([{"role": None, "content": "x"}], r"messages\[0\] has no role"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] has no role"),
        ([{"role": "user"}], r"messages\[0\] has a role, 'user', and nothing else"),
        ([{"role": "user", "content": None}], "nothing else"),
        ([{"role": "user", "content": "a\ud83d"}], r"messages\[0\]\.content has a lone surrogate at character 1"),
        ([{"role": "us\ud83der", "content": "a"}], r"messages\[0\]\.role has a lone surrogate at character 2"),
        ([{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}], r"messages\[0\]\.content\[0\]\.text has a lone"),
        ([{"role": "user", "content": "x", "k\udc00": 1}], "lone surrogate"),
        ([{"role": "user", "content": "x", "calls": [{"f": {"arguments": {1: 2}}}]}], "a key of type int: keys must be text"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\]\.content is of type bytes"),
        ([{"role": "user", "content": {"x"}}], "is of type set"),
        ([{"role": "user", "content": object()}], "is of type object"),
        ([_loop()], "nested more than 100 deep"),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(messages: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        render("{% for m in messages %}{{ m.content }}{% endfor %}", messages)


def test_values_are_what_json_has() -> None:
    message = {"role": np.str_("user"), "content": ("a", np.int64(3), np.bool_(False), 1.5, None, True)}
    assert render("{{ messages[0].content|tojson }}{{ messages[0].role }}", [message]) == '["a", 3, false, 1.5, null, true]user'
