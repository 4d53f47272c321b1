// The server, as the page speaks to it: requests with the key, streams of events, and what went wrong in plain words.

const KEY = "penstock.key";
const RETRIED = [429, 503];

/** The tab alone keeps the key. */
export const readKey = () => sessionStorage.getItem(KEY) ?? "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** What went wrong, and what one can do about it. */
export class Problem extends Error {
  constructor(what, advice, status = 0) {
    super(what);
    this.advice = advice;
    this.status = status;
  }
}

const LOST = "Is the server still running? Look at its terminal, then try again.";
const ADVICE = {
  400: "Change the settings or the message, then try again.",
  401: "Put the server's key into Settings, under API key.",
  404: "Reload the page: the server may run another model now.",
  413: "Shorten the message, or begin a new conversation.",
};

export async function request(path, { body = null, signal = null } = {}) {
  const headers = { "Content-Type": "application/json" };
  if (readKey()) headers.Authorization = `Bearer ${readKey()}`;
  const sent = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await fetch(path, sent).catch((error) => lost("There is no connection to the server.", error));
  if (!response.ok) throw await problemOf(response);
  return response;
}

function lost(what, error) {
  throw error.name === "AbortError" ? error : new Problem(what, LOST);
}

async function problemOf(response) {
  const { status } = response;
  const said = await response.json().catch(() => null);
  const what = status === 401 ? "" : said?.error?.message ?? `The server answered with status ${status}.`;
  const problem = new Problem(what, ADVICE[status] ?? "Try again; the server's log says more.", status);
  problem.retrySeconds = Number(response.headers.get("Retry-After")) || 2;
  return problem;
}

/** The same, but wait while the queue is full or the model loads; `waiting(problem, seconds)` hears of each second. */
async function patientRequest(path, options, waiting) {
  for (;;) {
    try {
      return await request(path, options);
    } catch (problem) {
      if (!RETRIED.includes(problem.status)) throw problem;
      for (let left = Math.ceil(problem.retrySeconds); left > 0; left -= 1) {
        waiting(problem, left);
        await pause(1000, options.signal);
      }
    }
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/** The data of server-sent events, one by one; comments (the server's pings) are left out. */
export async function* eventsOf(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    lost("The connection to the server was lost.", error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Chunks of an answer: `{text, reasoning, tokens, finish, usage}`, whichever of the two endpoints gives them. */
export async function* streamAnswer(path, body, signal, waiting) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await patientRequest(path, { body: whole, signal }, waiting);
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error.message, "What has come stays. Try again.");
    yield plainChunk(chunk);
  }
  throw new Problem("The connection ended in the middle of the answer.", LOST);
}

function plainChunk(chunk) {
  const choice = chunk.choices?.[0] ?? {};
  const delta = choice.delta ?? {};
  return {
    text: choice.text ?? delta.content ?? "",
    reasoning: delta.reasoning_content ?? "",
    tokens: choice.logprobs?.content ?? completionTokens(choice.logprobs),
    finish: choice.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

/** The log-probabilities of /v1/completions, in the shape that chats have. */
function completionTokens(logprobs) {
  const named = ([token, logprob]) => ({ token, logprob });
  return (logprobs?.tokens ?? []).map((token, index) => ({
    token,
    logprob: logprobs.token_logprobs[index],
    top_logprobs: Object.entries(logprobs.top_logprobs[index]).map(named),
  }));
}
