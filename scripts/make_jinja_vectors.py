#!/usr/bin/env python3
"""Writes tests/golden/jinja_more.json: templates and what Jinja2 makes of them.

Run by hand, with Jinja2 3.1 installed; the tests read the file only. The settings are those that
transformers renders chat templates with. The templates are written for this project; the large
ones follow the structure of well-known families.

    python3 scripts/make_jinja_vectors.py [tests/golden/jinja_more.json]
"""
import json
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: "26 Jul 2024"
    return env


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 1 < 2 & \"é\" 漢字? \n"},
    {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nTrue."},
    {"role": "user", "content": "Add 2 and 3"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call_1", "type": "function",
         "function": {"name": "add", "arguments": {"a": 2, "b": 3.5, "note": "it's <é>"}}}]},
    {"role": "tool", "name": "add", "tool_call_id": "call_1", "content": "{\"sum\": 5.5}"},
    {"role": "tool", "name": "add", "content": "again"},
    {"role": "assistant", "content": "It is 5.5."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {
    "name": "add", "description": "Adds \"two\" numbers\nand <more>.",
    "parameters": {"type": "object", "required": ["a"],
                   "properties": {"a": {"type": "number", "description": "first"},
                                  "b": {"type": ["number", "null"], "default": None,
                                        "enum": [1, 2.5, None, True]}}}}}]
FULL = {"messages": CHAT, "tools": TOOLS, "add_generation_prompt": True, "bos_token": "<s>",
        "eos_token": "</s>"}
NO_TOOLS = {**FULL, "tools": None, "messages": [m for m in CHAT if m["role"] != "tool" and
                                                not m.get("tool_calls")]}
SHORT = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True,
         "bos_token": "<s>", "eos_token": "</s>"}

FAMILIES = {
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # A default system turn, tools in it, calls and results as tagged JSON.
    "chatml_tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures within <tools></tools> tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nAnswer with:\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <json>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Reasoning is kept after the last question only, which a reversed walk finds.
    "chatml_thinking": """{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # Headers, dates, tools in the first user turn.
    "headers_tools": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system turn comes out of the list. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there is none!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Alternation is checked; the system text joins the last user turn.
    "inst": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is defined and tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + content|string + '}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
""",
    # Roles renamed, system refused or merged.
    "turns": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    # Types of a schema by macros that call themselves.
    "schema_macros": """{%- macro type_of(spec, depth=0) -%}
    {%- if spec.type is string -%}
        {%- if spec.type == "array" -%}
            {{- type_of(spec['items'], depth + 1) + "[]" if spec['items'] else "any[]" -}}
        {%- elif spec.type == "object" and spec.properties is defined -%}
            {{- "{\\n" }}
            {%- for name, p in spec.properties.items() -%}
                {{- "  " * (depth + 1) ~ name ~ ("?" if name not in (spec.required or []) else "") ~ ": " ~ type_of(p, depth + 1) ~ ",\\n" -}}
            {%- endfor -%}
            {{- "  " * depth ~ "}" -}}
        {%- else -%}
            {{- spec.type -}}
        {%- endif -%}
    {%- elif spec.type is iterable and spec.type | length > 0 -%}
        {{- spec.type | join(" | ") -}}
        {%- if spec.default is defined %} = {{ spec.default if spec.default is not none else 'null' }}{% endif -%}
    {%- else -%}
        any
    {%- endif -%}
{%- endmacro -%}
{%- macro render_tools(tools) -%}
    {%- for tool in tools %}
        {{- "// " + tool.function.description | replace("\\n", " ") + "\\n" }}
        {{- "type " + tool.function.name + " = (_: " }}
        {{- type_of(tool.function.parameters) + ") => any;\\n" }}
    {%- endfor %}
{%- endmacro -%}
{%- if tools -%}{{ render_tools(tools) }}{%- endif -%}
{% generation %}
{% set inside = 1 %}
answer{% endgeneration %}
{{ inside is defined }}""",
}

# name: template, without variables
SMALL = {
    # numbers
    "division": "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ -7 // -2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ -7 % -3 }} {{ 6 / 3 }} {{ 1 / 3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 2 ** 10 }} {{ 2 ** -2 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ 2.5 ** 3 }}",
    "precedence": "{{ 1 + 2 * 3 - 4 / 2 }} {{ (1 + 2) * 3 }} {{ 2 * 3 % 4 }} {{ '1' ~ 2 ~ 2 * 3 }} {{ 'a' + 2 ~ 3 }} {{ 2 * 3 ~ 4 }} {{ -1|abs }} {{ 1 - -1 }} {{ not 1 == 2 }} {{ not true and false }} {{ 1 or 0 and 0 }} {{ -5 % 3 }} {{ 'a' ~ 'b' in 'xaby' }} {{ 1 + 1 == 2 }}",
    "comparisons": "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ 'é' > 'z' }} {{ [1, 2] < [1, 3] }} {{ [1] == [1] }} {{ (1,) == [1] }} {{ {'a': 1} == {'a': 1.0} }} {{ none == none }} {{ x == y }} {{ 1 != '1' }} {{ 2 in (1, 2) }} {{ 'a' in {'a': 0} }} {{ 'ab' not in 'cab' }} {{ 3 >= 3 > 2 != 1 }} {{ [1,2] <= [1,2] }} {{ [] < [0] }}",
    "floats": "{{ 1.0 }} {{ 0.1 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789012345680.0 }} {{ 1e-4 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 1.5e300 }} {{ 1e22 }} {{ 100.0 }} {{ 3.14159 }} {{ 5e-324 }} {{ 1.7976931348623157e308 }} {{ -0.0 }} {{ 1e308 * 10 }} {{ 2.5e-7 }} {{ 12345.678 }} {{ 1_000.5 }} {{ 1E3 }} {{ 9007199254740993.0 }}",
    "integers": "{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_000_000 }} {{ 9223372036854775807 }} {{ -9223372036854775807 }} {{ true + true }} {{ +5 }} {{ - 5 }} {{ 00 }}",
    "rounding": "{{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 2.1|round(method='ceil') }} {{ 2.9|round(0, 'floor') }} {{ -2.5|round|int }} {{ 7|round }} {{ 1.25|round(1) }} {{ 12.345|round(2, 'ceil') }}",
    "to_int": "{{ '42'|int }} {{ ' 7 '|int }} {{ '3.9'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 3.99|int }} {{ -3.99|int }} {{ none|int }} {{ true|int }} {{ '1e3'|int }} {{ '1.5'|float }} {{ 'q'|float }} {{ 3|float }} {{ '-12'|int }} {{ '2'|float }} {{ [1]|int(9) }} {{ ''|int }}",
    # texts
    "strip": "[{{ '  a b  '.strip() }}][{{ 'xxaxx'.strip('x') }}][{{ 'abcba'.strip('ab') }}][{{ '\u00a0\u2003é\u3000'.strip() }}][{{ 'ééaé'.lstrip('é') }}][{{ 'aéé'.rstrip('éa') }}][{{ ''.strip() }}][{{ ' a '.lstrip() }}][{{ ' a '.rstrip() }}][{{ '\x1c a \x85'.strip()|length }}][{{ 'a'.strip('') }}][{{ 'a'.strip(none) }}]",
    "split": "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ '  a  b  c '.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'abc'.split('abc') }} {{ 'aaa'.split('aa') }} {{ 'a.b.c'.rsplit('.', 1) }} {{ 'aaa'.rsplit('aa') }} {{ ' a b  c '.rsplit(none, 1) }} {{ 'a b'.split(maxsplit=0) }} {{ 'x-y-z'.rsplit('-') }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ 'é–é'.split('–') }} {{ 'ab'.partition('b') }} {{ 'ab'.partition('x') }} {{ 'a.b.c'.rpartition('.') }} {{ 'abc'.rpartition('x') }} {{ 'a\u2003b c'.split() }}",
    "search": "{{ 'hello'.find('l') }} {{ 'hello'.rfind('l') }} {{ 'hello'.find('z') }} {{ 'ééa'.find('a') }} {{ 'hello'.find('l', 3) }} {{ 'hello'.find('l', -1) }} {{ 'hello'.find('') }} {{ 'hello'.rfind('') }} {{ 'hello'.count('l') }} {{ 'aaaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'hello'.index('o') }} {{ 'hello'.startswith('he') }} {{ 'hello'.endswith(('x', 'lo')) }} {{ 'hello'.startswith(('x', 'y')) }} {{ 'a'.startswith('') }} {{ 'hello'.find('e', 0, 1) }} {{ 'ababab'.rfind('ab', 0, 5) }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ 'x'.find('', 5) }}",
    "replace": "{{ 'aaa'.replace('a', 'b', 2) }} {{ 'abc'.replace('', '-') }} {{ 'é'.replace('', '.') }} {{ ''.replace('', 'x') }} {{ 'abc'.replace('x', 'y') }} {{ 'a b'|replace(' ', '') }} {{ 'aXbX'|replace('X', 1) }} {{ 'abc'.replace('b', '') }} {{ 'aaa'|replace('a', 'b', 1) }} {{ 'abc'.replace('', '-', 2) }} {{ 12|replace(1, 3) }}",
    "case": "{{ 'straße Ünï'.upper() }} {{ 'ÀÉ'.lower() }} {{ \"it's o'neil x2y\".title() }} {{ \"it's o'neil x2y\"|title }} {{ 'hello WORLD'.capitalize() }} {{ 'éCOLE'|capitalize }} {{ 'foo-bar (baz) [x'|title }} {{ ''.capitalize() }} {{ 'ABC'.islower() }} {{ 'ABC1'.isupper() }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' \t'.isspace() }} {{ ''.isdigit() }} {{ 'é'.isalpha() }}",
    "join": "{{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }} {{ [1, none, 'x', 2.5]|join('|') }} {{ []|join(',') }} {{ [{'a': 1}, {'a': 2}]|join(',', attribute='a') }} {{ 'abc'|join(' ') }} {{ {'x': 1, 'y': 2}|join('+') }}",
    "code_points": "{{ 'héllo漢字😀'|length }} {{ 'héllo漢字😀'[::-1] }} {{ 'héllo'[1] }} {{ '漢字😀'[-1] }} {{ '漢字😀'[1:] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[5:1:-2] }} {{ 'abc'[10:] }} {{ 'abc'[-10:2] }} {{ 'abc'[:-1] }} {% for c in 'é漢' %}<{{ c }}>{% endfor %} {{ 'abc'[5] }}| {{ 'ab' * 2 }} {{ 0 * 'ab' }}| {{ -1 * 'x' }}| {{ 'x'[0][0][0] }} {{ 'e\u0301'|list }}",
    "repr": "{{ ['a', \"it's\", 'say \"x\"', 'both \\' \"', 'n\\n t\\t b\\\\ \\x01 \\x7f é \\u200b 漢 \\U0001F600 \\xa0 \\xad'] }} {{ {'k': [1, 2.0, (), (1,), (1, 2)], 2: none, none: true} }} {{ [undefd] }} {{ {} }} {{ [] }} {{ ((1, 2), 3) }}",
    "escapes": "{{ 'a\\x41\\u00e9\\U0001F600\\101\\1\\q\\/\\a' }}|{{ 'one' 'two' \"three\" }}|{{ \"\\\"\" }}|{{ 'line\\\nnext' }}|{{ 'a\nb' }}",
    "html": "{{ '<a href=\"x\">&\\'</a>'|e }} {{ '<'|safe + '<' }} {{ '<' + '<'|safe }} {{ ('<'|e) ~ '<' }} {{ '<'|e|e }} {{ '<'|safe|string + 'x<' }}",
    "concat": "{{ 1 ~ 2 ~ none ~ true ~ [1] ~ undefd ~ 1.5 }} {{ 'a' ~ 'b' 'c' }}",
    "indent": "[{{ 'a\nb\n\nc'|indent }}][{{ 'a\nb'|indent(2, true) }}][{{ 'a\n\nb'|indent(1, blank=true) }}][{{ 'a\nb\n'|indent('> ') }}][{{ ''|indent(3, true) }}][{{ 'x'|indent(first=true) }}]",
    # lists and dictionaries
    "lists": "{{ [1, 2] + [3] }} {{ [0] * 3 }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][::-1] }} {{ [1, 2, 3][5] }}| {{ [1, 2, 3, 4][-3:-1] }} {{ [1, [2, 3]][1][0] }} {{ (1, 2) + (3,) }} {{ [1, 2, 3].index(2) }} {{ [1, 1].count(1) }} {{ [3, 1, 2]|sort }} {{ ['b', 'A', 'c']|sort }} {{ ['b', 'A', 'c']|sort(case_sensitive=true) }} {{ [1, 2, 3]|sort(reverse=true) }} {{ [1, 2, 3]|reverse|list }} {{ 'abc'|reverse }} {{ [1, 2]|first }} {{ []|first }}| {{ [1, 2]|last }} {{ [1, 1, 2, 'a', 'A']|unique|list }} {{ [3, 1]|min }} {{ [3, 1]|max }} {{ [1, 2]|sum }} {{ [1, 2, 3][true] }} {{ [[1, 2], [0]]|sort }} {{ [1.5, 1]|sum }} {{ [1,2,3,4,5,6][1:-1:2] }} {{ [1,2,3][-1:0:-1] }} {{ []|max }}|",
    "sort_by": "{{ [{'a': 2, 'b': 'x'}, {'a': 1, 'b': 'y'}]|sort(attribute='a')|map(attribute='b')|list }} {{ [{'a': {'b': 2}}, {'a': {'b': 1}}]|sort(attribute='a.b') }} {{ [{'a': 2}, {'a': 1}]|max(attribute='a') }} {{ [{'a': 2}, {'a': 1}]|sum(attribute='a') }} {{ [['x', 2], ['y', 1]]|sort(attribute=1) }} {{ [{'a': 1, 'k': 1}, {'a': 1, 'k': 2}, {'a': 0, 'k': 3}]|sort(attribute='a', reverse=true)|map(attribute='k')|list }} {{ [['x', 2], ['y', 1]]|map(attribute='1')|list }}",
    "dicts": "{% set d = {'b': 1, 'a': [2], 'items': 3} %}{{ d.b }} {{ d['b'] }} {{ d['items'] }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d.keys()|list }} {{ d.values()|list }} {{ d.items()|list }} {{ d|length }} {{ d|list }} {{ d|dictsort }} {{ d.zz is defined }} {{ d['zz'] }}| {{ 'b' in d }} {{ {'a': 1, 'a': 2} }} {{ {1: 'x'}[1] }} {{ {true: 'x'}[1] }} {{ {'a': 1}|items|list }} {{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {% for k in d %}{{ k }}{% endfor %} {{ {'B': 1, 'a': 2}|dictsort(true) }} {{ {'x': 2, 'y': 1}|dictsort(false, 'value') }} {{ {'x': 2, 'y': 1}|dictsort(reverse=true) }} {{ {'a': none}|tojson }} {{ {'a': 1}.copy() }} {{ undefd|items|list }}",
    "filters_map": "{{ [1, 2, 3]|map('string')|join }} {{ ['a', 'b']|map('upper')|list }} {{ [[3, 1], [2]]|map('sort')|list }} {{ ['a,b', 'c']|map('replace', ',', ';')|list }} {{ [{'a': 1}, {}]|map(attribute='a', default=0)|list }} {{ [{'a': {'b': 5}}]|map(attribute='a.b')|list }} {{ [1, 2, 3, 4]|select('even')|list }} {{ [1, 2, 3]|select('gt', 1)|list }} {{ [0, 1, '', 'x', none]|select|list }} {{ [0, 1]|reject|list }} {{ [1, 2, 3]|reject('in', [1, 3])|list }} {{ [{'a': 1, 'b': 0}, {'a': 0}]|selectattr('a')|list }} {{ [{'a': 1}, {'a': 2}]|rejectattr('a', 'eq', 1)|list }} {{ [{'a': 1}, {'b': 2}]|selectattr('a', 'defined')|list }} {{ ['x', none]|map('default', 'd')|list }} {{ [none]|map('default', 'd', true)|list }} {{ ['1', '2']|map('int')|sum }}",
    "generators": "{% if []|select %}true{% endif %}{% if []|select|list %}{% else %}false{% endif %}{{ [1]|map('string')|list + ['2'] }}{{ 'y' if []|map('upper') else 'n' }}{{ 'y' if [1]|selectattr('x')|list else 'n' }}",
    "json": "{{ {'b': [1, 2.5, 1e100, true, none, 'x\"\\\\/'], 'a': {}, 'é': '漢😀\\u2028\\x7f'}|tojson }}\n{{ {'b': [1, {'c': []}], 'a': {}}|tojson(indent=2) }}\n{{ ['é😀\\x1f']|tojson(ensure_ascii=true) }}\n{{ {'b': 1, 'a': [1, 2]}|tojson(separators=(',', ':'), sort_keys=true) }}\n{{ [1, [2]]|tojson(indent='\t') }} {{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }} {{ (1, 2)|tojson }} {{ 'a'|tojson }} {{ []|tojson(indent=4) }} {{ -0.0|tojson }} {{ {'a': [1]}|tojson(indent=0) }} {{ '</script>&\\''|tojson }}",
    # scopes
    "set": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}{% set (x, y) = (3, 4) %}{{ x + y }}{% set z %}  <{{ a }}>{% endset %}{{ z }}{% set u | upper | replace('A', 'b') %}xa{% endset %}{{ u }}{% if true %}{% set a = 9 %}{% endif %}{{ a }}{% for i in [1] %}{% set a = 10 %}{{ a }}{% endfor %}{{ a }}",
    "namespaces": "{% set ns = namespace(n=0, items=[]) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% set ns.items = ns.items + [i] %}{% endfor %}{{ ns.n }} {{ ns.items }} {{ ns.zz is defined }} {{ ns }} {% set ns.new = 'x' %}{{ ns.new }} {% set m = namespace({'q': 1}, r=2) %}{{ m.q + m.r }}",
    "loops": "{% for x in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.cycle('o', 'e') }}{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for x in [1, 2, 3] if x != 2 %}{{ loop.index }}{{ x }}{{ loop.length }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}{% for x in undefd %}{% else %}undef{% endfor %}{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}{% for i in range(10, 0, -3) %}{{ i }} {% endfor %}{{ range(3)|list }}{{ range(2, 5)|list }}",
    "loop_scope": "{% set x = 'out' %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% for i in [1] %}{% for j in [2] %}{{ i }}{{ j }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}{{ i is defined }}{{ loop is defined }}{% set q = 5 %}{% for q in [1] %}{{ q }}{% endfor %}{{ q }}",
    "controls": "{% for i in range(10) %}{% if i % 2 %}{% continue %}{% endif %}{% if i > 6 %}{% break %}{% endif %}{{ i }}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}:{{ j }}{% endfor %}{% else %}never{% endfor %}",
    "macros": "{% set g = 1 %}{% macro f(a, b=2, c='x' ~ a) %}{{ a }}{{ b }}{{ c }}{{ g }}{% endmacro %}{{ f(1) }} {{ f(1, c=3) }} {{ f(b=5, a=6) }} {{ f() }} {% set g = 7 %}{{ f(1) }} {% macro v(x) %}{{ x }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ v(1, 2, 3, k=4) }} {% macro fact(n) %}{{ n * fact(n - 1)|int if n > 1 else 1 }}{% endmacro %}{{ fact(6) }} {% macro s() %}{% set g = 'in' %}{{ g }}{% endmacro %}{{ s() }}{{ g }} {{ f(1)|length }} {{ f is callable }} {{ f.zz is defined }}",
    "macro_in_loop": "{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}{{ m is defined }}",
    "call_blocks": "{% macro box(t) %}[{{ t }}:{{ caller() }}]{% endmacro %}{% call box('x') %}in{{ 1 }}{% endcall %}{% macro each(l) %}{% for i in l %}{{ caller(i, 2) }}{% endfor %}{% endmacro %}{% call(v, w) each([1, 2]) %}<{{ v }}{{ w }}>{% endcall %}",
    "blocks": "{% filter upper %}a{{ 'b' }}{% endfilter %}{% filter replace('a', 'b')|upper %}xay{% endfilter %}{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}{% generation %}g{{ 1 }}{% endgeneration %}",
    "conditions": "{{ 'a' if true }}{{ 'a' if false }}|{{ 'a' if false else 'b' if false else 'c' }}{{ ('a' if true else 'b') ~ 'x' }}{{ 1 if 0 else 2 }}{{ [1 if true else 2, 3] }}{% if 0 %}{% elif '' %}{% elif 'x' %}elif{% else %}{% endif %}{% if not x %}nox{% endif %}{% if x is not defined and 1 %}und{% endif %}{% if (1 if true else 0) %}y{% endif %}",
    "undefined": "[{{ x }}][{{ x is defined }}][{{ x|default('d') }}][{{ x|length }}][{{ x ~ 'a' }}][{{ x == y }}][{{ not x }}][{{ x or 'z' }}][{{ 1 in x }}][{{ x|list }}][{{ none|default('n') }}][{{ none|default('n', true) }}][{{ ''|d('e', boolean=true) }}][{{ x is none }}][{{ none is defined }}][{{ {}.a is undefined }}][{{ x|string }}][{{ x|join }}][{{ x|upper }}][{{ x|first }}][{{ [x]|length }}][{{ x is iterable }}{{ x is sequence }}{{ x is mapping }}{{ x is string }}]",
    "tests": "{{ 1 is number }}{{ 1.5 is float }}{{ 1 is integer }}{{ true is integer }}{{ true is number }}{{ true is boolean }}{{ 0 is false }}{{ false is false }}{{ none is none }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is mapping }}{{ () is sequence }}{{ {} is sequence }}{{ 'a' is sequence }}{{ 1 is sequence }}{{ 1 is iterable }}{{ 3 is odd }}{{ 3 is even }}{{ 9 is divisibleby 3 }}{{ 9 is divisibleby(2) }}{{ 1 is eq 1 }}{{ 1 is ne(2) }}{{ 2 is gt 1 }}{{ 2 is lessthan 1 }}{{ 2 is in [1, 2] }}{{ 2 is not in [1] }}{{ 'a' is lower }}{{ 'A1' is upper }}{{ range is callable }}{{ 1 is sameas 1 }}{{ none is not none }}{{ 'x' is defined and 'y' is defined }}{{ 1 is not string }}{{ 'upper' is filter }}{{ 'nope' is test }}{{ 2 is ge 2 }}{{ 2 is le 1 }}{{ 'b' is in 'abc' }}",
    "logic": "{{ 0 or '' or 'x' }}{{ 1 and 'y' }}{{ [] and 1 }}{{ not [] }}{{ true and not false }}{{ none or none }}{{ (0 or 5) + 1 }}{{ 1 and 2 and 3 }}",
    "literals": "{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1,) }}{{ () }}{{ true }}{{ True }}{{ none }}{{ None }}{{ [] }}{{ {} }}{{ 1, 2 }}{{ {'a': {'b': {'c': 1}}}.a.b.c }}{{ {'}}': '%}'} }}{{ '{{ x }}' }}",
    "calls": "{{ 'a,b'.split(',')[0] }}{{ 'x'.join(['a', 'b']).upper() }}{{ ('a' ~ 'b').upper() }}{{ 'a-b'.split('-')|join('+')|upper }}{{ [1, 2]|map('string')|list|join('') }}{{ 'abc'|list|last|upper }}{{ 'A'.lower().upper().lower() }}{{ range(5)[1:3]|list }}{{ [range(3)|list, 1][0][2] }}",
    "strftime": "{{ strftime_now('%Y') is string }}{{ strftime_now is defined }}{{ raise_exception is defined }}",
    # white space
    "ws_lstrip": "a\n    {% if true %}\n    b\n    {%+ if true %}\n  c\n    {%- endif %}\n  d {% endif %}\n\n e\n\t {# c #}\n f\n  {{ 1 }}\n g",
    "ws_dash": "a \n {%- if true -%} \n b \n {%- endif -%} \n c {{- ' d ' -}} \n e {#- x -#} \n f",
    "ws_plus": "a\n  {%+ set x = 1 +%}\n  b\n  {%+ if x +%}\n c{% endif +%}\nd {{+ x }}",
    "ws_trim": "{% set x = 1 %}\n\n{% set y = 2 %}  \n{{ x }}\n\n{{ y }}\n{# c #}\n\nz\n\n",
    "ws_newlines": "a\r\nb\rc\n{% if 1 %}\r\nd{% endif %}\r\n",
    "ws_comment_only": "{#- a -#}\n  {# b #}  x{# multi\nline {{ y }} {% if %} #}\ny",
    "ws_raw": "a\n  {% raw %}\n  {{ x }} {% if %}\n  {% endraw %}\nb {%- raw -%}  {% x %}  {%- endraw -%}  c",
    "ws_inline": "x {% if true %} y {% endif %} z\n  text {% if true %}\nq{% endif %}",
    "ws_block_in_line": "  {% if true %}a{% endif %}  {% if true %}b{% endif %}\n  {% set x = 1 %}  {{ x }}\n",
    "ws_nothing": "",
    "ws_only_newline": "\n",
    "ws_two_newlines": "a\n\n",
    "ws_strings": "{{ '  %} ' }}{{ \"}}\" }}{% set a = '%}' %}{{ a }}{{ '#}' }}{# ' #}x",
    "ws_nbsp": "a\n\u00a0 {% if true %}b{% endif %}\u00a0{%- if true %}c{% endif %}",
    "ws_minus_numbers": "{{ 3 -1 }}{{-1}}{{ -1 -}} x {{ 2-1 }}",
    "ws_empty_blocks": "{% if true %}{% endif %}{% for x in [1] %}{% endfor %}{% macro m() %}{% endmacro %}[{{ m() }}]",
    "braces": "{ {{ 1 }} } {{ {'a': {'b': 1}} }} {{ [[1]] }} { % x % } {{ {} }}{{ {'a':{}} }}",
}

# Templates that fail, in Jinja2 and here.
ERRORS = {
    "endless_if": "{% if true %}",
    "endless_for": "{% for x in y %}",
    "endif_alone": "{% endif %}",
    "open_print": "{{ 1",
    "open_comment": "{# x",
    "open_raw": "{% raw %} x",
    "open_text": "{{ 'a }}",
    "empty_print": "{{ }}",
    "unknown_tag": "{% frob %}",
    "bad_set": "{% set 1 = 2 %}",
    "set_constant": "{% set true = 2 %}",
    "for_without_in": "{% for x of y %}{% endfor %}",
    "bad_bracket": "{{ [1, 2 }}",
    "bad_bracket_kind": "{{ [1) }}",
    "bad_char": "{{ 1 ? 2 }}",
    "two_values": "{{ 1 2 }}",
    "unknown_filter": "{{ 1|nope }}",
    "unknown_test": "{{ 1 is nope }}",
    "unknown_function": "{{ nope() }}",
    "unknown_method": "{{ 'a'.nope() }}",
    "undefined_attribute": "{{ a.b.c }}",
    "undefined_item": "{{ a['b'] }}",
    "undefined_add": "{{ a + 1 }}",
    "undefined_less": "{{ a < 1 }}",
    "undefined_call": "{{ {}.x() }}",
    "text_plus_int": "{{ 'a' + 1 }}",
    "int_plus_text": "{{ 1 + 'a' }}",
    "list_plus_text": "{{ [1] + 'a' }}",
    "none_plus": "{{ none + 1 }}",
    "compare_kinds": "{{ 1 < 'a' }}",
    "compare_none": "{{ none < 1 }}",
    "sort_kinds": "{{ [1, 'a']|sort }}",
    "divide_by_zero": "{{ 1 / 0 }}",
    "modulo_zero": "{{ 1 % 0 }}",
    "floor_by_zero": "{{ 1 // 0 }}",
    "in_int": "{{ 1 in 2 }}",
    "int_in_text": "{{ 1 in 'a' }}",
    "loop_over_int": "{% for x in 5 %}{% endfor %}",
    "loop_over_none": "{% for x in none %}{% endfor %}",
    "unpack_few": "{% for a, b in [[1]] %}{% endfor %}",
    "unpack_many": "{% set a, b = 1, 2, 3 %}",
    "slice_of_int": "{{ n[1:] }}{% set n = 5 %}{{ n[1:] }}",
    "undefined_to_int": "{{ x|int }}",
    "indent_of_int": "{{ 5|indent }}",
    "list_as_key": "{{ [1] in {} }}",
    "length_of_int": "{{ 1|length }}",
    "slice_step_zero": "{{ 'abc'[::0] }}",
    "empty_separator": "{{ 'abc'.split('') }}",
    "index_missing": "{{ 'abc'.index('x') }}",
    "join_ints": "{{ ','.join([1]) }}",
    "macro_many": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "macro_keyword": "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "macro_twice": "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "namespace_other": "{% set d = {} %}{% set d.x = 1 %}",
    "list_key": "{{ {[1]: 2} }}",
    "json_undefined": "{{ x|tojson }}",
    "json_function": "{{ range|tojson }}",
    "raise": "{{ raise_exception('stop') }}",
    "range_big": "{{ range(1000000)|list }}",
    "range_step": "{{ range(1, 2, 0)|list }}",
    "items_of_list": "{{ [1]|items|list }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ().__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "call_int": "{{ 1() }}",
    "negate_text": "{{ -'a' }}",
    "bad_escape": "{{ '\\x4' }}",
    "keyword_first": "{{ dict(a=1, 2) }}",
    "endfor_if": "{% if true %}{% endfor %}",
    "dict_colon": "{{ {'a' 1} }}",
    "abs_text": "{{ 'a'|abs }}",
    "include": "{% include 'x' %}",
}


def main():
    env = environment()
    render, errors = [], []

    def add(name, template, context):
        render.append({"name": name, "template": template, "context": context,
                       "output": env.from_string(template).render(**context)})

    for name, template in FAMILIES.items():
        for kind, context in (("full", FULL), ("plain", NO_TOOLS), ("short", SHORT)):
            try:
                add(f"{name}_{kind}", template, context)
            except jinja2.exceptions.TemplateError as e:
                errors.append({"name": f"{name}_{kind}", "template": template, "context": context,
                               "error": f"{type(e).__name__}: {e}"})
    for name, template in SMALL.items():
        add(name, template, {})
    for name, template in ERRORS.items():
        try:
            env.from_string(template).render()
        except Exception as e:  # whatever kind Python raises
            errors.append({"name": name, "template": template, "context": {},
                           "kind": type(e).__name__})
        else:
            sys.exit(f"{name}: Jinja2 renders {template!r}")
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/jinja_more.json"
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"about": f"written by scripts/make_jinja_vectors.py with Jinja2 "
                            f"{jinja2.__version__}",
                   "render": render, "errors": errors}, f, ensure_ascii=True, indent=1)
        f.write("\n")
    print(f"{len(render)} templates and {len(errors)} errors -> {path}")


if __name__ == "__main__":
    main()
