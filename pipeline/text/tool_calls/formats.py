"""Which format a model writes reasoning and calls of tools in, as its chat template shows it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.text.tool_calls.deltas import Calls, Steps
from pipeline.text.tool_calls.forced import forced_calls
from pipeline.text.tool_calls.growing_text import GrowingText, compiled
from pipeline.text.tool_calls.json_calls import json_calls, named_call
from pipeline.text.tool_calls.parser import AnswerParser, CallFormat, ReasoningMarks
from pipeline.text.tool_calls.written_calls import Tools, complete_calls, gemma, python, python_call, tagged

GLM_HEAD = compiled(r"\s*(?P<name>[\w.\-]{1,256})\s*\n\s*(?=\{)")
MISTRAL_HEAD = compiled(r"\s*(?P<name>[\w.\-]{1,256})\s*(?:\[CALL_ID\]\s*\w{1,64}\s*)?(?:\[ARGS\])?\s*(?=\{)")
QWEN_NAME = compiled(r"([^>\n]{1,256})>\s*")
QWEN_PARAMETER = compiled(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>")
GLM_NAME = compiled(r"\s*([\w.\-]{1,256})\s*")
GLM_PARAMETER = compiled(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolFormat:
    """What a chat template shows: how the model calls tools, and how it marks its reasoning; None for not at all."""

    name: str
    calls: CallFormat | None
    reasoning: ReasoningMarks | None

    @property
    def marks(self) -> tuple[str, ...]:
        """What a parser must see of the answer even where it is a special token, which otherwise has no text."""
        return (self.calls.marks if self.calls else ()) + (self.reasoning.marks if self.reasoning else ())

    @property
    def may_open_reasoning(self) -> bool:
        """Whether a prompt may end within reasoning, so that a parser must be given the end of it."""
        return self.reasoning is not None

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether the text of a prompt ends within reasoning."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.begin.rstrip())

    def parser(self, tools: Sequence[Mapping[str, Any]] = (), prompt: str = "") -> AnswerParser:
        """Return a parser of one answer to `prompt`, of which the end is enough; without `tools`, calls are text.

        `tools` are JSON schemas of functions, as chats have them.
        """
        opened = self.opens_reasoning(prompt)
        return AnswerParser(self.reasoning, self.calls if tools else None, parameters_of(tools), opened=opened)

    def forced(
        self, tools: Sequence[Mapping[str, Any]], tool_choice: object, *, parallel_tool_calls: bool = True
    ) -> dict[str, Any]:
        """Return the argument `response_format` under which an answer is a call of a tool.

        `tool_choice` is "required", for a call of any of the tools, or an object that names a function; without
        `parallel_tool_calls` there is one call only. Raises RequestError where it is neither, for a function that is
        none of the tools, and where calls of this format cannot be forced.
        """
        parallel, marks = parallel_tool_calls, self.marks
        return forced_calls(self.name, marks, parameters_of(tools), tool_choice, parallel_tool_calls=parallel)


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> Tools:
    """The schemas of the parameters of each tool, by their names; of a tool that is malformed none."""
    functions = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    named = {one["name"]: one.get("parameters") for one in functions if isinstance(one.get("name"), str)}
    return {name: schema if isinstance(schema, Mapping) else {} for name, schema in named.items()}


def find_format(template: str) -> ToolFormat | None:
    """Return the format that the text of a chat template shows; None where it shows neither calls nor reasoning."""
    name = next((one for one, shown in SHOWN.items() if any(text in template for text in shown)), None)
    reasoning = next((marks for shown, marks in REASONING.items() if shown in template), None)
    if name is None and reasoning is None:
        return None
    return ToolFormat(name=name or "reasoning", calls=FORMATS[name] if name else None, reasoning=reasoning)


def _objects(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    return (yield from json_calls(source, calls))


def _llama(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    if (yield from json_calls(source, calls, known=tools)):
        return True
    return (yield from python_call(source, calls))


def _mistral(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    return (yield from named_call(source, calls, MISTRAL_HEAD)) or (yield from json_calls(source, calls))


def _glm4(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    return (yield from named_call(source, calls, GLM_HEAD, known=tools))


def _qwen_xml(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    read = functools.partial(tagged, QWEN_NAME, QWEN_PARAMETER, tools)
    return (yield from complete_calls(source, calls, "</function>", read))


def _glm_xml(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    read = functools.partial(tagged, GLM_NAME, GLM_PARAMETER, tools)
    return (yield from complete_calls(source, calls, "</tool_call>", read))


def _python(source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    return (yield from complete_calls(source, calls, "</function_calls>", python))


def _gemma(quote: str, end: str, source: GrowingText, calls: Calls, tools: Tools) -> Steps[bool]:
    return (yield from complete_calls(source, calls, end, functools.partial(gemma, quote)))


MISTRAL_MARKS = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
FORMATS = {
    "gemma4": CallFormat(
        begin=compiled(r"\s*<\|tool_call>call:"),
        read=functools.partial(_gemma, '<|"|>', "<tool_call|>"),
        marks=("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "functiongemma": CallFormat(
        begin=compiled(r"\s*<start_function_call>call:"),
        read=functools.partial(_gemma, "<escape>", "<end_function_call>"),
        marks=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    "glm4.5": CallFormat(begin=compiled(r"\s*<tool_call>"), read=_glm_xml, marks=("<tool_call>", "</tool_call>")),
    "qwen3-coder": CallFormat(
        begin=compiled(r"\s*(?:<tool_call>\s*)?<function="),
        read=_qwen_xml,
        end=compiled(r"\s*</tool_call>"),
        marks=("<tool_call>", "</tool_call>"),
    ),
    "mistral": CallFormat(begin=compiled(r"\s*\[TOOL_CALLS\]"), read=_mistral, marks=MISTRAL_MARKS),
    "mistral-args": CallFormat(begin=compiled(r"\s*\[TOOL_CALLS\]"), read=_mistral, marks=MISTRAL_MARKS),
    "hermes": CallFormat(
        begin=compiled(r"\s*<tool_call>"),
        read=_objects,
        end=compiled(r"\s*</tool_call>"),
        marks=("<tool_call>", "</tool_call>"),
    ),
    "granite": CallFormat(
        begin=compiled(r"\s*(?:<\|tool_call\|>|<tool_call>|functools(?=\[))"),
        read=_objects,
        end=compiled(r"\s*(?:<\|/tool_call\|>|</tool_call>)"),
        marks=("<|tool_call|>", "<|/tool_call|>", "<tool_call>", "</tool_call>"),
    ),
    "olmo3": CallFormat(begin=compiled(r"\s*<function_calls>"), read=_python),
    "llama3": CallFormat(begin=compiled(r"\s*<\|python_tag\|>"), read=_llama, at_start=True, marks=("<|python_tag|>",)),
    "glm4": CallFormat(begin=compiled(r"\s*<\|assistant\|>"), read=_glm4, at_start=True, marks=("<|assistant|>",)),
}
"""By the name under which each is known. Granite 3 and Phi 4 mini write a list behind a mark of theirs."""
SHOWN = {
    "gemma4": ("<|tool_call>",),
    "functiongemma": ("<start_function_call>",),
    "glm4.5": ("<arg_key>",),
    "qwen3-coder": ("<function=",),
    "mistral-args": ("[ARGS]",),
    "mistral": ("[TOOL_CALLS]",),
    "hermes": ("<tool_call>",),
    "granite": ("<|tool_call|>", "<|tool|>", "available_tools<|end_of_role|>"),
    "olmo3": ("<function_calls>",),
    "llama3": ("<|python_tag|>", "ipython"),
    "glm4": ("<|observation|>",),
}
"""Texts one of which a template of the format has; the first format that fits counts."""
THINK = ReasoningMarks("<think>", "</think>", ("<think>", "</think>"))
REASONING = {
    "<|channel>": ReasoningMarks("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),
    "[THINK]": ReasoningMarks("[THINK]", "[/THINK]", ("[THINK]", "[/THINK]")),
    "</think>": THINK,
    "<think>": THINK,
}
"""What the templates of models that reason have."""
