"""What an open model answers: prompts and chats, whole or token by token."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar, Unpack, overload

from pipeline.engine.supervisor import Supervisor
from pipeline.errors import ClosedError, RequestError, unknown_name
from pipeline.generation.chunks import Chunk, Output
from pipeline.generation.folder import no_tokenizer
from pipeline.generation.grammar import Grammars
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.requests import CHAT_OPTIONS, Call, CallArguments, CallOptions, ChatArguments
from pipeline.generation.samples import chunks_of, outputs_of
from pipeline.generation.sequence import MOST_UNREAD, RunningSequence
from pipeline.system.limits import limits_named
from pipeline.system.signatures import shows
from pipeline.text.chat import Chat, ChatOptions, ChatVariables, Messages
from pipeline.text.prompts import Prompt
from pipeline.text.tokenizer import ModelTokenizer, Tokenizer
from pipeline.text.tool_calls.formats import ToolFormat, find_format

Made = TypeVar("Made")


class Answering:
    """The half of `Model` that serves calls, while it is open."""

    def __init__(self, runtime: ModelRuntime, defaults: dict[str, Any]) -> None:
        self._runtime = runtime
        self._defaults = defaults
        self._tokenizer: Tokenizer | None = None
        self._grammars = Grammars(runtime.config.vocabulary_size, runtime.config.eos_ids)
        self._loop = asyncio.get_running_loop()
        self._supervisor = Supervisor(runtime, runtime.admission)
        self._refuses = False

    @property
    def defaults(self) -> dict[str, Any]:
        """The sampling defaults that the checkpoint's generation_config.json states."""
        return dict(self._defaults)

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Text to token ids and back, as `generate` does it. Raises CheckpointError where the folder has none."""
        if self._tokenizer is None:
            raise no_tokenizer(self._runtime.folder) if not self._refuses else ClosedError("the model is closed")
        return self._tokenizer

    @property
    def serves(self) -> bool:
        """Whether calls are served: the model is not closed, and its line has not ended for good."""
        return not (self._refuses or self._supervisor.done())

    @property
    def runtime(self) -> ModelRuntime:
        """Everything that the model owns, for measuring and for custom tools."""
        return self._runtime

    @overload
    async def generate(self, prompt: Prompt, *, n: None = None, **arguments: Unpack[CallArguments]) -> Output: ...

    @overload
    async def generate(self, prompt: Prompt, *, n: int, **arguments: Unpack[CallArguments]) -> list[Output]: ...

    @shows(SamplingParameters, CallOptions)
    async def generate(
        self, prompt: Prompt, *, n: int | None = None, **arguments: Unpack[CallArguments]
    ) -> Output | list[Output]:
        """Continue a prompt, which is text or token ids, and return the whole output; with `n`, a list of n samples.

        Arguments are those of `SamplingParameters` and `CallOptions`. Cancelling the call frees everything that it
        held. When a sample fails, so does the call.

        Raises:
            RequestError: the request can never be served as asked, or its next token cannot be chosen or looked up.
            Busy: more than `max_waiting` requests would wait.
            ActorFailed: an actor of the line failed twice in a row, or lost a KV block of this request, or a stage or
                policy of yours raised; later calls work again. Its cause is a ResourceError where a limit of the
                process was reached.
            ClosedError: the model was closed before the request had finished.
        """
        return await self._outputs(prompt, {**arguments, "n": n})

    @shows(SamplingParameters, CallOptions)
    def stream(
        self, prompt: Prompt, *, n: int | None = None, **arguments: Unpack[CallArguments]
    ) -> AsyncGenerator[Chunk, None]:
        """Continue a prompt as `generate` does, giving one chunk per token as soon as it is known.

        With `n`, chunks of all samples come as they are known, each with the `index` of its sample; when a sample
        fails, so does the stream.

        While 64 chunks are not read the request pauses; it goes on, with the same tokens, when some have been. A wait
        for a chunk that is cancelled or timed out ends the stream, as it does every asynchronous generator.

        Arguments, and what a glance at the prompt shows, are refused at the call; what only its tokens show (that a
        text has too many, ids behind the first 16,384) when the first chunk is asked for.
        """
        return self._chunks(prompt, {**arguments, "n": n})

    @overload
    async def chat(self, messages: Messages, *, n: None = None, **arguments: Unpack[ChatArguments]) -> Output: ...

    @overload
    async def chat(self, messages: Messages, *, n: int, **arguments: Unpack[ChatArguments]) -> list[Output]: ...

    @shows(SamplingParameters, CallOptions, ChatOptions)
    async def chat(
        self, messages: Messages, *, n: int | None = None, **arguments: Unpack[ChatArguments]
    ) -> Output | list[Output]:
        """Answer chat messages, each an object with a "role" and "content": a text, or a list of parts with text.

        The checkpoint's chat template makes a prompt of them, as transformers does with `add_generation_prompt`, whose
        special tokens are all its own: no BOS token is put before it. It is rendered in a sandbox, on the thread that
        makes ids of texts, and limited in steps and in the length of its text; it takes about a millisecond, and a
        template that goes on for ever ends in some seconds with RequestError.

        Arguments are those of `generate` and of `ChatOptions`. Raises as `generate` does; and RequestError where there
        is no template or no tokenizer, or the template refuses the messages, CheckpointError where it is broken.
        """
        chat, others = self._chat(messages, arguments)
        return await self._outputs(chat, {**others, "n": n})

    @shows(SamplingParameters, CallOptions, ChatOptions)
    def stream_chat(
        self, messages: Messages, *, n: int | None = None, **arguments: Unpack[ChatArguments]
    ) -> AsyncGenerator[Chunk, None]:
        """Answer chat messages as `chat` does, giving chunks as `stream` does.

        Messages and arguments are refused at the call; what their template finds when the first chunk is asked for.
        """
        chat, others = self._chat(messages, arguments)
        return self._chunks(chat, {**others, "n": n})

    @shows(ChatOptions)
    async def chat_ids(self, messages: Messages, **arguments: Unpack[ChatVariables]) -> list[int]:
        """Return the token ids of the prompt that `chat` makes of these messages, and answers.

        Arguments are those of `ChatOptions`. Raises as `chat` does for messages that no template can take.
        """
        return (await self._prompt(messages, arguments, Chat.ids)).tolist()

    @shows(ChatOptions)
    async def chat_prompt(self, messages: Messages, **arguments: Unpack[ChatVariables]) -> str:
        """Return the text of the prompt that `chat` makes of these messages. Arguments and errors as in `chat_ids`."""
        return await self._prompt(messages, arguments, lambda chat, tokenizer: chat.render(tokenizer.longest_text))

    async def _prompt(
        self, messages: Messages, arguments: Mapping[str, Any], make: Callable[[Chat, Tokenizer], Made]
    ) -> Made:
        chat, others = self._chat(messages, arguments)
        if others:
            raise RequestError(unknown_name("argument", min(others), CHAT_OPTIONS))
        tokenizer = self._chat_tokenizer
        with limits_named():
            return await self._runtime.admission.tokenized(
                lambda tokenizing: tokenizing.run(chat.characters, lambda: make(chat, tokenizer))
            )

    def tool_format(self, chat_template: str | None = None, *, with_tools: bool = False) -> ToolFormat | None:
        """Return how the model writes reasoning and calls of tools, as its chat template shows it; None where not.

        `chat_template` is that of the call, and `with_tools` whether it has any: some checkpoints have two templates.
        A call to whose answer a parser of the format is given must have `shown_tokens=format.marks`. Raises
        RequestError where there is no template or no tokenizer.
        """
        templates = self._chat_tokenizer.chat_templates
        return find_format(templates.choose(chat_template, with_tools=with_tools))

    async def prepare_grammars(self) -> None:
        """Make now what the first `response_format` waits for, where llguidance is installed.

        For a vocabulary of 128,000 tokens it takes some 0.3 s, in most of which no thread of the process can run, and
        some 30 MB of host memory, in no plan.
        """
        if self._tokenizer is not None:
            await self._grammars.prepare(self._tokenizer)

    def _call(self, prompt: Prompt | Chat, arguments: Mapping[str, object]) -> Call:
        if self._refuses:
            raise ClosedError("the model is closed")
        return Call(self._runtime, self._tokenizer, self._grammars, self._defaults, prompt, arguments)

    def _chat(self, messages: Messages, arguments: Mapping[str, Any]) -> tuple[Chat, dict[str, object]]:
        """The messages as a prompt, and the arguments that are not about how they become one."""
        own = {name: arguments[name] for name in CHAT_OPTIONS if arguments.get(name) is not None}
        chat = Chat(messages, ChatOptions(**own), self._chat_tokenizer.chat_templates)
        return chat, {name: value for name, value in arguments.items() if name not in CHAT_OPTIONS}

    @property
    def _chat_tokenizer(self) -> Tokenizer:
        if self._refuses:
            raise ClosedError("the model is closed")
        if self._tokenizer is None:
            raise RequestError("messages: chat needs a tokenizer, and the folder has none; give token ids to generate")
        return self._tokenizer

    async def _outputs(self, prompt: Prompt | Chat, arguments: Mapping[str, object]) -> Output | list[Output]:
        self._runtime.admission.batcher.check_room(1)
        async with self._serving(self._call(prompt, arguments)) as sequences:
            outputs = await outputs_of(sequences)
        return outputs[0] if arguments["n"] is None else outputs

    def _chunks(self, prompt: Prompt | Chat, arguments: Mapping[str, object]) -> AsyncGenerator[Chunk, None]:
        self._runtime.admission.batcher.check_room(1)
        return self._stream(self._call(prompt, arguments))

    async def _stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        async with self._serving(call) as sequences, contextlib.aclosing(chunks_of(sequences)) as chunks:
            for sequence in sequences:
                sequence.most_unread = MOST_UNREAD
            async for chunk in chunks:
                self._runtime.admission.resume()
                yield chunk

    @contextlib.asynccontextmanager
    async def _serving(self, call: Call) -> AsyncGenerator[list[RunningSequence], None]:
        """Let the samples of a call run for as long as their caller is there."""
        if self._refuses:
            raise ClosedError("the model is closed")
        self._supervisor.check_serves()
        if asyncio.get_running_loop() is not self._loop:
            raise RequestError("the model was opened on another event loop; call it from there, or open another one")
        admission = self._runtime.admission
        with limits_named():
            sequences = await admission.tokenized(call.sequences)
        admission.submit(sequences)
        try:
            yield sequences
        finally:
            for sequence in sequences:
                admission.withdraw(sequence)
