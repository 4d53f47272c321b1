"""Random conversations with all that chat templates look at, and templates of the shapes of published models."""

from pathlib import Path
from random import Random
from typing import Any

TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}
"""Written here, in the structures of chat models that are published."""
TEXTS = [
    "Hello",
    " two  spaces ",
    "Straße & <b>bold</b> 'q' \"d\"\n\nnew paragraph\n",
    "你好 😀",
    "{{ no_template }} {% raw %} \\n",
    "<think>\nfirst\n</think>\n\nsecond",
    "[INST] <|im_end|> </s>",
    "",
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says <how> it's & will be.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": 'the Stadt für "heute"'},
                "days": {"type": ["integer", "null"], "minimum": 1, "default": None},
                "units": {"type": "array", "items": {"type": "string"}, "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}
DOCUMENTS = [{"title": "One", "text": "It rains."}, {"doc_id": 7, "title": "Zwei", "text": "Größe <5>"}]
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"thinking": True, "date_string": "01 Jan 2030"},
    {"tools_in_user_message": False, "controls": {"length": "long"}, "citation_mode": "fast"},
    {"bos_token": "<own>", "builtin_tools": ["code_interpreter", "weather"], "reasoning_effort": "high"},
]


def random_chat(random: Random) -> dict[str, Any]:
    """The arguments of a chat, beside its template: half are plain turns to and fro, as strict templates demand."""
    wild = random.random() < 0.5
    messages = [_message(random, "system", wild)] if random.random() < 0.3 else []
    roles = ["user", "assistant"] * random.randrange(1, 4)
    if wild and random.random() < 0.2:
        random.shuffle(roles)
    for role in roles:
        messages.append(_message(random, role, wild))
        if wild and role == "assistant" and random.random() < 0.4:
            messages += _tool_turn(random)
    if not (continued := random.random() < 0.3):
        messages.append(_message(random, "user", wild))
    return {
        "messages": messages,
        "tools": [TOOL] * random.randrange(1, 3) if random.random() < 0.4 else None,
        "documents": DOCUMENTS if random.random() < 0.2 else None,
        "variables": random.choice(VARIABLES),
        "continue_final_message": continued,
    }


def _message(random: Random, role: str, wild: bool) -> dict[str, Any]:
    text = random.choice(TEXTS) + random.choice(TEXTS)
    message: dict[str, Any] = {"role": role, "content": text}
    kind = random.random() if wild else 1.0
    if kind < 0.2:
        message["content"] = [{"type": "text", "text": text}, {"type": "text", "text": random.choice(TEXTS)}]
    elif kind < 0.5 and role == "assistant":
        message[random.choice(["reasoning_content", "thinking", "reasoning"])] = random.choice(TEXTS)
    elif kind < 0.6:
        message |= {"name": None, "tool_calls": None, "metadata": "x"}
    return message


def _tool_turn(random: Random) -> list[dict[str, Any]]:
    arguments = {"city": random.choice(TEXTS), "days": random.choice([1, 2.5, None, True])}
    call = {"id": random.choice(["abcdefghi", "short"]), "type": "function"}
    called = {"role": "assistant", "content": random.choice([None, "", "Let me see."])}
    called["tool_calls"] = [call | {"function": {"name": "weather", "arguments": arguments}}] * random.choice([1, 1, 2])
    answer: Any = random.choice(["22 °C", {"temperature": 22.0, "content": "mild"}, ["mild", {"output": 1}]])
    return [called, {"role": "tool", "tool_call_id": call["id"], "name": "weather", "content": answer}]
