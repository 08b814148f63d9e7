#!/usr/bin/env python3
"""Golden renderings of chat templates, and which tokens of them transformers masks as the assistant's.

Writes  crates/formats/tests/golden/chat_templates.json
Run     VENV/bin/python oracles/chat_templates.py [OUT_FILE [TEMPLATE_DIR]]     (VENV made by oracles/install.sh)
        Takes a few seconds. With TEMPLATE_DIR, its `*.jinja` files in place of the templates below: for a look at
        templates that are not kept here, such as trl/chat_templates/*_training.jinja.

The tokenizer is assets/quickstart-tokenizer. `templates` has name and source; `cases` has

  template, messages, tools    the conversation; its last turn is the reply
  prompt                       apply_chat_template(messages[:-1], add_generation_prompt=True)
  text, ids                    apply_chat_template(messages)
  mask                         its return_assistant_tokens_mask, as the indices of the ones; absent without tags
"""
import json
import pathlib
import re
import sys

import transformers
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/formats/tests/golden/chat_templates.json"

PROMPT = "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
OTHERS = "{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}"

# The end of the turn is learned; what follows it is not.
END_INSIDE = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {{- '<|assistant|>\\n' }}\n"
    "        {%- generation %}{{ message.content }}<|end|>{% endgeneration %}\n"
    "        {{- '\\n' }}\n"
    "    {%- else %}\n        " + OTHERS + "\n    {%- endif %}\n"
    "{%- endfor %}\n" + PROMPT
)
END_OUTSIDE = (
    "{% for message in messages %}\n"
    "{% if message['role'] != 'assistant' %}\n"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' }}\n\n"
    "{% else %}\n"
    "{{ '<|assistant|>' }}\n\n"
    "{% generation %}\n"
    "{{ message['content'] }}\n"
    "{%- endgeneration %}\n"
    "{{ '<|end|>' }}\n\n"
    "{% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n{{ '<|assistant|>' }}\n\n{% endif %}\n"
)
# Every form of white-space control; the tags' white space is not text, and what is set inside stays inside.
CONTROLLED = (
    "{% set shown = 'outside' %}{% set turns = namespace(said='') %}\n"
    "{%- for message in messages -%}\n"
    "  {%- if message.role == 'assistant' -%}\n"
    "    {{ '<|assistant|>\\n' }}\n"
    "    {%- generation -%}\n"
    "        {%- set shown = message.content | trim -%}\n"
    "        {%- for word in shown.split(' ') -%}\n"
    "            {{ word }}{%- if not loop.last %}{{ ' ' }}{%- endif -%}\n"
    "        {%- endfor -%}\n"
    "        {{- '<|end|>' + '\\n' -}}\n"
    "        {%- set turns.said = shown if loop.index > 1 else '' -%}\n"
    "    {%- endgeneration -%}\n"
    "    {{- turns.said -}}\n"
    "    {%- if shown != 'outside' %}{{ 'leaked' }}{% endif -%}\n"
    "  {%- else -%}\n    " + OTHERS + "\n  {%- endif -%}\n"
    "{%- endfor -%}\n" + PROMPT
)
# Two spans in a turn; the frame of the reasoning is not learned.
TWO_SPANS = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {{- '<|assistant|>\\n<think>\\n' }}\n"
    "        {%- if message.reasoning_content %}{% generation %}{{ message.reasoning_content }}{% endgeneration %}{% endif %}\n"
    "        {{- '\\n</think>\\n\\n' }}\n"
    "        {%- generation %}\n"
    "        {{- message.content + '<|end|>' }}\n"
    "        {%- endgeneration %}\n"
    "        {{- '\\n' }}\n"
    "    {%- else %}\n        " + OTHERS + "\n    {%- endif %}\n"
    "{%- endfor %}\n" + PROMPT
)
# As Qwen 2.5 and Qwen 3 write tools, calls and results.
TOOLS = """\
{%- if tools %}
    {{- '<|system|>\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|system|>\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>' }}{{- '\\n' }}
        GENERATION
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>' }}
        END
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|user|>' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
""" + PROMPT
TEMPLATES = {
    "end inside": END_INSIDE,
    "end outside": END_OUTSIDE,
    "controlled": CONTROLLED,
    "two spans": TWO_SPANS,
    "tools": TOOLS.replace("GENERATION", "").replace("END\n", "\n"),
    "tools learned": TOOLS.replace("GENERATION", "{%- generation %}").replace("END\n", "{%- endgeneration %}\n"),
}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, **arguments):
    return {"type": "function", "id": "c-" + name, "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, in \"°C\" & words.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["place"],
        },
    },
}
ASKED = [turn("system", "Be brief."), turn("user", "Paris and Oslo?")]
CALLED = turn("assistant", "", tool_calls=[call("weather", place="Paris"), call("weather", place="Tromsø <N>", days=2)])
FOUND = [turn("tool", "18 °C, sun", tool_call_id="c-weather"), turn("tool", '{"t": -3}', tool_call_id="c-weather")]
PLAIN = [
    [turn("user", "What is 2 + 2?"), turn("assistant", "It is 4.")],
    [
        turn("system", "You answer in one word."),
        turn("user", "Capital of France?"),
        turn("assistant", "Paris"),
        turn("user", "  And of Norway?\n"),
        turn("assistant", "Oslo"),
        turn("user", "Sure?"),
        turn("assistant", "Yes, Oslo 🙂 é\n\nsince 1814."),
    ],
    [turn("user", "7 + 5?"), turn("assistant", "12", reasoning_content="7 + 5\n= 12")],
]
WITH_TOOLS = [
    ([*ASKED, CALLED], [WEATHER]),
    ([*ASKED, {**CALLED, "content": "Let me look."}], [WEATHER]),
    ([*ASKED, CALLED, *FOUND, turn("assistant", "Sun in Paris, frost in Tromsø.")], [WEATHER]),
    ([*ASKED[1:], CALLED, *FOUND, turn("assistant", "Sun, frost.")], None),
]


def case(tokenizer, name, source, messages, tools):
    def rendered(turns, **options):
        return tokenizer.apply_chat_template(turns, chat_template=source, tools=tools, **options)

    tagged = re.search(r"{%[-+]?\s*generation\s*-?%}", source) is not None
    out = rendered(messages, return_dict=True, return_assistant_tokens_mask=tagged)
    result = {"template": name, "messages": messages}
    if tools:
        result["tools"] = tools
    result["prompt"] = rendered(messages[:-1], add_generation_prompt=True, tokenize=False)
    result["text"] = rendered(messages, tokenize=False)
    result["ids"] = out["input_ids"]
    if tagged:
        result["mask"] = [t for t, masked in enumerate(out["assistant_masks"]) if masked]
    return result


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    templates = TEMPLATES
    if len(sys.argv) > 2:
        templates = {p.stem: p.read_text("utf-8") for p in sorted(pathlib.Path(sys.argv[2]).glob("*.jinja"))}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets/quickstart-tokenizer")
    cases = []
    for name, source in templates.items():
        conversations = [(messages, None) for messages in PLAIN]
        if "reasoning_content" not in source:
            # Where it is put then is no matter of transformers'.
            conversations.pop()
        if "tool_calls" in source:
            conversations += WITH_TOOLS
        for messages, tools in conversations:
            try:
                cases.append(case(tokenizer, name, source, messages, tools))
            except Exception as error:
                if templates is TEMPLATES:
                    raise
                print(f"{name}: {type(error).__name__}: {str(error)[:100]}")
    doc = {
        "written_by": "oracles/chat_templates.py",
        "transformers": transformers.__version__,
        "templates": [{"name": name, "source": source} for name, source in templates.items()],
        "cases": cases,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {rows(value)}" for key, value in doc.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(cases)} cases of {len(templates)} templates: {out.stat().st_size} bytes")


def rows(value):
    """A list one item a line, anything else on one line."""
    if isinstance(value, list):
        return "[\n  " + ",\n  ".join(json.dumps(v, ensure_ascii=False) for v in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
