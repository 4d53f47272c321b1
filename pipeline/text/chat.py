"""Chat messages become the text of a prompt by a template of the checkpoint, as transformers renders it."""

import itertools
import traceback
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from pipeline.errors import CheckpointError, RequestError, shown
from pipeline.text.chat_templates import ChatTemplates
from pipeline.text.going_on import going_on
from pipeline.text.prompts import TokenIds, id_slices
from pipeline.text.tokenizer import Tokenizer
from pipeline.text.tool_calls.formats import find_format

Messages = Sequence[Mapping[str, Any]]
"""A list of messages, each with its "role" and its "content"."""
MOST_VALUES = 100_000
"""Texts, numbers, lists and objects of one call: they are looked through on the event loop, in a tenth of a second."""
DEEPEST = 32
LONGEST_TEMPLATE = 1 << 20
OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which the reasoning of a message is given, the first of which most templates read."""
LONGEST_MARK = 32
"""Tokens of the mark with which a prompt may begin reasoning."""
GOES_ON = "THE-ANSWER-GOES-ON-HERE "
"""Marks the end of a last message that is to be continued. A template that trims it takes its space away."""


class ChatVariables(TypedDict, total=False):
    """What a chat may give beside its messages, each with its type; None counts as not given."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    earlier_ids: TokenIds | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """How messages become a prompt. Raises RequestError for a value that can never work.

    Attributes:
        tools: JSON schemas of functions that the model may call, for a template that knows tools.
        documents: objects with "title" and "text", for a template that knows documents.
        chat_template: the text of a template, or the name of one of the checkpoint's; None takes the checkpoint's own.
        chat_template_kwargs: more variables of the template, such as {"enable_thinking": False}.
        continue_final_message: whether the answer goes on with the last message, instead of beginning one.
        add_generation_prompt: whether the template begins an answer; where the last message is continued it never does.
        earlier_ids: the token ids of the turn before, of its prompt and its answer. They are kept as far as the text of
            the messages is the same, so that their KV blocks are found: of an answer's text others may be made.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    earlier_ids: TokenIds | None = None

    def __post_init__(self) -> None:
        for name in ("tools", "documents"):
            value = getattr(self, name)
            if value is not None and not (_is_list(value) and all(isinstance(one, Mapping) for one in value)):
                raise _error(name, "a list of objects", value)
        template = self.chat_template
        if template is not None and not (isinstance(template, str) and 0 < len(template) <= LONGEST_TEMPLATE):
            raise _error("chat_template", f"the text of a template, of 1 to {LONGEST_TEMPLATE} characters", template)
        variables = self.chat_template_kwargs
        if variables is not None and not isinstance(variables, Mapping):
            raise _error("chat_template_kwargs", "an object of variables by their names", variables)
        if own := [name for name in OWN_VARIABLES if name in (variables or {})]:
            raise RequestError(f"chat_template_kwargs: {own[0]} is set by the call itself; leave it out")
        for name in ("continue_final_message", "add_generation_prompt"):
            if not isinstance(getattr(self, name), bool):
                raise _error(name, "true or false", getattr(self, name))


class Chat:
    """The messages of one call, checked and copied, and how they become the text of a prompt.

    Raises RequestError for messages or options that no template can take, and where there is no template.
    """

    def __init__(self, messages: object, options: ChatOptions, templates: ChatTemplates) -> None:
        plain = _Plain()
        self.messages = [_with_reasoning(one) for one in _checked(messages, plain)]
        self._variables = {**templates.special_tokens, **plain.copy(options.chat_template_kwargs or {}, "")}
        self._variables |= {
            "messages": self.messages,
            "tools": plain.copy(options.tools, "tools"),
            "documents": plain.copy(options.documents, "documents"),
            "add_generation_prompt": options.add_generation_prompt and not options.continue_final_message,
        }
        self.characters = plain.characters
        self._earlier_ids = options.earlier_ids
        self._source = templates.choose(options.chat_template, with_tools=options.tools is not None)
        self._where = templates.where if options.chat_template is None else "chat_template"
        self._final = _mark(self.messages[-1]) if options.continue_final_message else None

    def render(self, most_characters: int) -> str:
        """Return the text: usually in a millisecond, at most in some seconds, while other threads can run.

        Raises RequestError for messages that the template refuses, or fails on, and CheckpointError for a template of
        the checkpoint that is none.
        """
        from pipeline.text import template_sandbox  # with Jinja2, which only chats need

        try:
            text = template_sandbox.rendered(self._source, self._variables, most_characters)
        except MemoryError:
            raise
        except template_sandbox.TemplateSyntaxError as error:
            kind = RequestError if self._where == "chat_template" else CheckpointError
            raise kind(f"{self._where}: line {error.lineno} is in no chat template: {error}; correct it") from error
        except Exception as error:  # a template can raise what Python can
            frames = traceback.extract_tb(error.__traceback__)
            line = next((frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), None)
            place = f" at line {line}" if line is not None else ""
            own = isinstance(error, template_sandbox.TooMuchError) or type(error) is template_sandbox.TemplateError
            what = str(error) if own else f"{type(error).__name__}: {error}"
            raise RequestError(f"{self._where}: the chat template stops{place}: {what}") from error
        return text if self._final is None else self._cut(text, self._final)

    def ids(self, tokenizer: Tokenizer, check: Callable[[str], None] = lambda rendered: None) -> "array[int]":
        """Return the token ids of the text, which is given to `check` before it is tokenised. Raises as `render`."""
        rendered = self.render(tokenizer.longest_text)
        check(rendered)
        ids = tokenizer.chat_ids(rendered)
        if self._earlier_ids is None:
            return ids
        parts = id_slices(self._earlier_ids, tokenizer.vocabulary_size, "earlier_ids")
        return going_on(tokenizer, array("i", itertools.chain.from_iterable(parts)), ids)

    def open_thought(self, tokenizer: Tokenizer, ids: "array[int]") -> str | None:
        """Return the mark that ends the reasoning in which a prompt of these ids ends; None where it ends in none."""
        format_ = find_format(self._source)
        end = b"".join(map(tokenizer.token_bytes, ids[-LONGEST_MARK:])).decode(errors="replace")
        opened = format_ is not None and format_.opens_reasoning(end)
        return format_.reasoning.end if opened and format_ is not None and format_.reasoning is not None else None

    def _cut(self, text: str, final: str) -> str:
        """The text up to where the last message ends; what a template has trimmed there stays away."""
        mark = GOES_ON.strip()
        if final.strip() not in text or mark not in text:
            raise RequestError(
                f"continue_final_message: {self._where}: the chat template changes or leaves out the last message; "
                "end with another one, or give continue_final_message=False"
            )
        end = text.rindex(mark)
        return text[:end] if text.startswith(GOES_ON, end) else text[:end].rstrip()


def _checked(messages: object, plain: "_Plain") -> list[dict[str, Any]]:
    """The messages as plain data, without what is None in them."""
    if not isinstance(messages, list | tuple):
        also = "; a text alone is continued by generate" if isinstance(messages, str) else ""
        raise RequestError(f"messages: need a list of messages, have {type(messages).__name__}{also}")
    if not messages:
        raise RequestError("messages: need at least one, have none")
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        copied = plain.copy(message, where)
        if not isinstance(copied, dict):
            raise _error(where, "an object with role and content", message)
        copied = {name: value for name, value in copied.items() if value is not None}
        role = copied.get("role")
        if not isinstance(role, str) or not role:
            raise _error(f"{where}.role", "a text, such as system, user or assistant", role)
        _check_content(copied, role, where)
        checked.append(copied)
    return checked


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as plain data, none too. Raises RequestError as a chat does."""
    return _checked(messages, _Plain()) if messages else []


def _check_content(message: Mapping[str, Any], role: str, where: str) -> None:
    """A text, or parts with text; what a tool has answered may be anything. Beside calls of tools it may be missing."""
    content = message.get("content")
    if isinstance(content, str) or role in ("tool", "ipython", "function"):
        return
    if content is None and len(message) > 1:
        return
    if not isinstance(content, list | tuple):
        raise _error(f"{where}.content", "a text, or a list of parts with text", content)
    for index, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise RequestError(f"{where}.content[{index}]: need a part of the type 'text', have {shown(kind)}")
        if not isinstance(part.get("text"), str):
            raise _error(f"{where}.content[{index}].text", "a text", part.get("text"))


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read, whichever it has."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark(message: dict[str, Any]) -> str:
    """Put the mark at the end of the text, and return the text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + GOES_ON
        return content
    parts = content if isinstance(content, list | tuple) else ()
    for part in reversed(parts):
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            part["text"] = text + GOES_ON
            return text
    raise RequestError("continue_final_message: the last message has no text to continue; give it content")


class _Plain:
    """Copies what a call gives as plain data: a template must find no methods of anything else."""

    def __init__(self) -> None:
        self.characters = 0
        self._left = MOST_VALUES

    def copy(self, value: Any, where: str, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RequestError(f"{where}: need at most {MOST_VALUES} values in all of a chat, have more")
        if depth > DEEPEST:
            raise RequestError(f"{where}: need at most {DEEPEST} lists and objects in each other, have more")
        if isinstance(value, str):
            self.characters += len(value)
            return str.__str__(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if callable(dump := getattr(value, "model_dump", None)):  # messages of the openai package
            value = dump()
        if isinstance(value, Mapping):
            return {self._key(key, where): self.copy(one, f"{where}.{key}", depth + 1) for key, one in value.items()}
        if isinstance(value, list | tuple):
            items = [self.copy(one, f"{where}[{index}]", depth + 1) for index, one in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else items
        also = "; give the JSON schema of a function" if callable(value) else ""
        raise RequestError(f"{where}: need texts, numbers, lists and objects, have {type(value).__name__}{also}")

    def _key(self, key: object, where: str) -> str:
        if not isinstance(key, str):
            raise _error(where, "texts as keys", key)
        return self.copy(key, where)  # type: ignore[no-any-return]


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _error(name: str, need: str, have: object) -> RequestError:
    return RequestError(f"{name}: need {need}; have {shown(have)}")
