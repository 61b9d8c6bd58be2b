// What the page asks of the server, and what can go wrong with it.

const KEY = "chancellor-api-key";

/** The API key: in this tab's storage only, or in memory where the browser has none. */
export const key = {
  memory: "",
  get value() {
    try {
      return sessionStorage.getItem(KEY) ?? this.memory;
    } catch {
      return this.memory;
    }
  },
  set value(text) {
    this.memory = text;
    try {
      text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY);
    } catch {
      // It stays in memory.
    }
  },
};

const ADVICE = {
  401: "Enter the server's API key below.",
  403: "Enter another API key below.",
  404: "Choose another model in the settings.",
  413: "Shorten the question, or start a new conversation.",
  context_length_exceeded: "Shorten the question, or start a new conversation.",
};

/** Why there is no answer, or only a part of one: what happened, and what to do. */
export class Problem extends Error {
  constructor(message, advice, { status = 0, retryAt = 0 } = {}) {
    super(message);
    Object.assign(this, { advice, status, retryAt });
  }

  static lost(partial) {
    return partial
      ? new Problem("The connection was lost before the answer was complete.", "What has come so far is kept.")
      : new Problem("The server cannot be reached.", "Check that `chancellor serve` runs, then ask again.");
  }

  static unreadable() {
    return new Problem("The server has sent what this page cannot read.", "Reload the page, and ask again.");
  }

  /** An error in OpenAI's shape; anything else is shown as it is, cut short. */
  static of(body, { status = 0, retryAfter = null } = {}) {
    const error = body?.error ?? {};
    const said = typeof error.message === "string" ? error.message : String(body?.text ?? "").slice(0, 300);
    const advice = ADVICE[error.code] ?? ADVICE[status] ?? (error.message ? "" : "The server's log may say why.");
    return new Problem(said || `The server answered with status ${status}.`, advice, { status, retryAt: when(retryAfter) });
  }

  static async from(response) {
    const text = await response.text().catch(() => "");
    let body = { text };
    try {
      body = JSON.parse(text);
    } catch {
      // Not ours: some proxy's page.
    }
    return Problem.of(body, { status: response.status, retryAfter: response.headers.get("retry-after") });
  }
}

/** Retry-After is a number of seconds or a date; return the time in ms, or 0. */
function when(retryAfter) {
  if (!retryAfter) return 0;
  const time = /^\d+$/.test(retryAfter) ? Date.now() + 1000 * Number(retryAfter) : Date.parse(retryAfter);
  return Number.isFinite(time) ? Math.min(time, Date.now() + 3_600_000) : 0;
}

/** Fetch with the key; rejects with a Problem, or with an AbortError. */
async function reach(path, options, accepted = []) {
  const headers = { ...options.headers };
  if (key.value) headers.authorization = `Bearer ${key.value}`;
  let response;
  try {
    // Relative, so that a proxy may put the page under a path of its own.
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    throw error.name === "TypeError" ? Problem.lost(false) : error;
  }
  if (!response.ok && !accepted.includes(response.status)) throw await Problem.from(response);
  return response;
}

/** GET; a status beside 2xx that is in `accepted` is an answer, too. */
export const get = (path, { signal, accepted } = {}) => reach(path, { signal }, accepted);

/** Ask for a streamed answer; returns the response once its headers are there. */
export const ask = (body, signal) =>
  reach("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });

/** Yield the data of each server-sent event of a stream of bytes, however these are cut. Leaving it ends the stream. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/); // a CR at the end may be half of a CRLF
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
