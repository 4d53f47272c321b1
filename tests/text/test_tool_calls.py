"""What a model writes of reasoning and calls becomes the same deltas, however its text is cut into pieces."""

import json
from random import Random
from typing import Any

import pytest
from support.conversations import TEMPLATES

from pipeline.text.chat import Chat, ChatOptions
from pipeline.text.chat_templates import ChatTemplates
from pipeline.text.tool_calls.deltas import ArgumentsDelta, CallDelta, Delta, ReasoningDelta, TextDelta
from pipeline.text.tool_calls.formats import FORMATS, THINK, ToolFormat, find_format

TEXT = {"type": "string"}
KINDS = {"city": TEXT, "days": {"type": "integer"}, "units": {"type": "array", "items": TEXT}}
PARAMETERS = {"type": "object", "properties": KINDS, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "It.", "parameters": PARAMETERS}}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "clock"}}]
OSLO = {"city": 'Oslo "N"\n{1}', "days": 2, "units": ["C"]}
WHERE = '{"city": "Oslo"}'
THOUGHT, CALLED = ("reasoning", "a b"), ("call", "weather", {"city": "Oslo"})
CLOCKED = ("call", "clock", {})
SHOWN = {
    "hermes_tools": "hermes",
    "qwen25_tools": "hermes",
    "qwen3_thinking": "hermes",
    "qwen3_coder_xml": "qwen3-coder",
    "llama31_tools": "llama3",
    "mistral_v3_tools": "mistral",
    "ministral3": "mistral-args",
    "gemma4_tools": "gemma4",
    "olmo3_tools": "olmo3",
    "glm45_thinking": "glm4.5",
    "granite3": "granite",
    "granite33_thinking": "granite",
    "phi4_mini_tools": "granite",
    "glm4": "glm4",
    "deepseek_r1": "reasoning",
    "deepseek_v31": "reasoning",
    "smollm3_generation": "reasoning",
}
JSON_CALL, CLOCK = f'{{"name": "weather", "arguments": {WHERE}}}', '{"name": "clock", "arguments": {}}'
THOUGHT_FIRST = "<think>\na b\n</think>\n\n"
BROKEN = "Hi  <tool_call>\nno\n</tool_call>\n"
QUOTED = '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}'
ANSWERS: list[tuple[str, str, list[Any]]] = [
    ("hermes", f"Well.\n<tool_call>\n{JSON_CALL}\n</tool_call>", ["Well.", CALLED]),
    (
        "hermes",
        '<tool_call>{"name": "clock"}</tool_call>\n<tool_call>{"arguments": {}, "name": "clock"}',
        [CLOCKED] * 2,
    ),
    ("hermes", f"<tool_call>{QUOTED}</tool_call> so", [CALLED, "so"]),
    ("hermes", THOUGHT_FIRST + BROKEN, [THOUGHT, BROKEN]),
    ("hermes", "a < b <tool <think> c", ["a < b <tool <think> c"]),
    ("qwen3-coder", "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>", [CALLED]),
    ("qwen3-coder", "So <function=clock></function></tool_call> <function=x y", ["So", CLOCKED, "<function=x y"]),
    ("llama3", f"{JSON_CALL.replace('arguments', 'parameters')}; {CLOCK}", [CALLED, CLOCKED]),
    ("llama3", f"<|python_tag|>{JSON_CALL}", [CALLED]),
    ("llama3", 'Hm <|python_tag|>weather.call(city="Oslo")', ["Hm", CALLED]),
    ("llama3", '{"name": "other", "parameters": {}}', ['{"name": "other", "parameters": {}}']),
    ("llama3", '{"city": 1}', ['{"city": 1}']),
    ("mistral", f'[TOOL_CALLS] [{JSON_CALL[:-1]}, "id": "abc"}}, {{"name": "clock"}}]', [CALLED, CLOCKED]),
    ("mistral", f"I.[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{WHERE}[TOOL_CALLS]clock[ARGS]{{}}", ["I.", CALLED, CLOCKED]),
    ("mistral", f"[TOOL_CALLS]weather{WHERE}", [CALLED]),
    ("gemma4", '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>', [CALLED]),
    ("gemma4", '<|tool_call>call:weather{<|"|>city<|"|>: <|"|>Oslo<|"|>}<tool_call|>', [CALLED]),
    ("gemma4", "<|tool_call>call:weather{city:<tool_call|>", ["<|tool_call>call:weather{city:<tool_call|>"]),
    ("functiongemma", "<start_function_call>call:weather{city:<escape>Oslo<escape>}<end_function_call>", [CALLED]),
    ("granite", f"<|tool_call|>[{JSON_CALL}]", [CALLED]),
    ("granite", f"functools[{JSON_CALL},\n{CLOCK}]", [CALLED, CLOCKED]),
    ("granite", '<|tool_call|>[{"name": "clock"}, 1]', [CLOCKED, ", 1]"]),
    ("granite", '<|tool_call|>[{"name": "clock"}, {1}]', [CLOCKED, ", {1}]"]),
    ("olmo3", '<function_calls>\nweather(city="Oslo")\nclock()\n</function_calls>', [CALLED, CLOCKED]),
    ("olmo3", "<function_calls>weather(Oslo)</function_calls>", ["<function_calls>weather(Oslo)</function_calls>"]),
    ("glm4", f"weather\n{WHERE}", [CALLED]),
    ("glm4", f"weather\n{WHERE}<|assistant|>clock\n{{}}", [CALLED, CLOCKED]),
    ("glm4", "Yes\n{1}", ["Yes\n{1}"]),
    ("glm4.5", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>", [CALLED]),
]
SCRAPS = [
    "weather",
    "clock",
    "\n",
    " ",
    '"name"',
    '"arguments"',
    ":",
    ",",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    "(",
    ")",
    "é",
]
SCRAPS += ["<think>", "</think>", "<function=", "</function>", "<parameter=city>", "</tool_call>", ".call(", "city="]


def test_templates_show_their_formats() -> None:
    found = {name: format_.name for name, text in TEMPLATES.items() if (format_ := find_format(text))}
    assert found == SHOWN


def test_what_templates_write_of_a_call_is_read_back() -> None:
    silent = ("granite", "glm4", "reasoning")  # they show calls in no message
    for name in [name for name, shown in SHOWN.items() if shown not in silent]:
        for arguments in (OSLO, {"city": "5"}):
            function = {"name": "weather", "arguments": arguments}
            call = {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "function": function}]}
            user = {"role": "user", "content": "Hi"}
            before, after = rendered(name, [user]), rendered(name, [user, call])
            format_ = find_format(TEMPLATES[name])
            answer = after.removeprefix(before).removeprefix("<|im_start|>assistant\n")
            for end in ("<|im_end|>\n", "<|im_end|>", "</s>", "<turn|>\n", "<|eot_id|>"):
                answer = answer.removesuffix(end)
            [*_, read] = outcome(format_, [answer])
            assert read == ("call", "weather", arguments), (name, answer)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer[0]}-{answer[1][:30]}")
def test_any_cut_of_an_answer_gives_the_same_deltas(answer: tuple[str, str, list[Any]]) -> None:
    name, text, want = answer
    format_ = ToolFormat(name=name, calls=FORMATS[name], reasoning=THINK)
    assert outcome(format_, [text]) == [("text", one) if isinstance(one, str) else one for one in want]
    for end in range(len(text) + 1):  # an answer may end anywhere
        check_cuts(format_, text[:end])


@pytest.mark.parametrize("name", FORMATS)
def test_no_nonsense_is_lost(name: str) -> None:
    random, format_ = Random(name), ToolFormat(name=name, calls=FORMATS[name], reasoning=THINK)
    scraps = SCRAPS + [*FORMATS[name].marks] * 3 + [text for kind, text, _ in ANSWERS if kind == name]
    for _ in range(100):
        check_cuts(format_, "".join(random.choices(scraps, k=random.randrange(1, 12))))


def test_reasoning_that_the_prompt_opens_ends_at_its_mark() -> None:
    format_ = find_format(TEMPLATES["deepseek_r1"])
    parser = format_.parser(prompt="<think>\n")
    assert merged([*parser.push("a b\n</think>\n\nSo"), *parser.flush()]) == [THOUGHT, ("text", "So")]
    assert merged(format_.parser(prompt="<think></think>").push("Soup.")) == [("text", "Soup.")]


def test_without_tools_calls_are_text() -> None:
    parser = ToolFormat(name="hermes", calls=FORMATS["hermes"], reasoning=None).parser()
    assert merged(parser.push('<tool_call>{"name": "clock"}</tool_call>'))[0][0] == "text"


def rendered(name: str, messages: list[dict[str, Any]]) -> str:
    last = messages[-1]["role"] == "user"
    templates = ChatTemplates(named={"default": TEMPLATES[name]}, special_tokens={"bos_token": "", "eos_token": "</s>"})
    chat = Chat(messages, ChatOptions(tools=[WEATHER]), templates)
    chat._variables["add_generation_prompt"] = last
    return chat.render(1 << 20)


def check_cuts(format_: ToolFormat, text: str) -> None:
    """Any cut gives the same, and where nothing is a call or reasoning, all is text."""
    random, whole = Random(text), outcome(format_, [text])
    if {kind for kind, *_ in whole} == {"text"} and "<think>" not in text:
        assert whole == [("text", text)]
    for pieces in ([*text], cut(random, text), cut(random, text)):
        assert outcome(format_, pieces) == whole, pieces


def cut(random: Random, text: str) -> list[str]:
    places = sorted(random.choices(range(len(text) + 1), k=random.randrange(1, 8)))
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


def outcome(format_: ToolFormat, pieces: list[str]) -> list[Any]:
    parser = format_.parser(TOOLS)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.flush()
    return merged(deltas)


def merged(deltas: list[Delta]) -> list[Any]:
    """What all pieces are together, with arguments as JSON where they are complete."""
    found: list[Any] = []
    for delta in deltas:
        match delta:
            case TextDelta(text) | ReasoningDelta(text):
                kind = "text" if isinstance(delta, TextDelta) else "reasoning"
                same = bool(found) and found[-1][0] == kind
                found[len(found) - same :] = [(kind, (found[-1][1] if same else "") + text)]
            case CallDelta(index, id_, name):
                assert index == sum(one[0] == "call" for one in found)
                assert id_.isalnum()
                assert len(id_) == 9
                found.append(("call", name, ""))
            case ArgumentsDelta(index, text):
                place = [place for place, one in enumerate(found) if one[0] == "call"][index]
                found[place] = (*found[place][:2], found[place][2] + text)
    return [(*one[:2], loaded(one[2])) if one[0] == "call" else one for one in found]


def loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
