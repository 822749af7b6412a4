/** What the page asks of the server over HTTP. Addresses are relative, so that a proxy may put a path before them. */

/** What went wrong, in a sentence for people. `status` is HTTP's, 0 where no answer came. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** @param {string} path */
export function address(path) {
  return new URL(path, document.baseURI);
}

/**
 * The models that the server offers, the default one first.
 *
 * @param {string} key
 * @returns {Promise<{id: string, languages?: {name: string, code: string}[]}[]>}
 */
export async function models(key) {
  return (await (await request("v1/models", key)).json()).data;
}

/**
 * Send a file and yield the events of its transcription as they come: `transcript.text.segment`, and
 * `transcript.text.done` last.
 *
 * @param {File} file
 * @param {{model: string, language: string, context: string}} options
 * @param {string} key
 * @param {AbortSignal} signal gives the transcription up
 * @param {() => void} accepted called when the server has the file and begins to answer
 */
export async function* transcribe(file, options, key, signal, accepted) {
  const form = new FormData();
  form.append("model", options.model);
  form.append("response_format", "verbose_json");
  form.append("stream", "true");
  if (options.language) form.append("language", options.language);
  if (options.context) form.append("prompt", options.context);
  form.append("file", file); // last, so that a server may judge the rest before the audio arrives
  const response = await request("v1/audio/transcriptions", key, { method: "POST", body: form, signal });
  accepted();
  for await (const event of serverSentEvents(response.body)) {
    if (event.type === "error" || event.error) throw new ApiError(event.error?.message ?? "The server failed.", 500);
    yield event;
    if (event.type === "transcript.text.done") return;
  }
  throw new ApiError("The connection ended before the transcript was complete. Try again.");
}

/** @param {string} path @param {string} key @param {RequestInit} init */
async function request(path, key, init = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(address(path), { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached, or the file can no longer be read. Try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** @param {Response} response one that is not ok */
async function refusal(response) {
  const answer = await response.text();
  let message = `The server answered with status ${response.status}.`;
  try {
    message = JSON.parse(answer).error.message ?? message;
  } catch {
    // Something in between has answered, such as a proxy: its page is nothing to show.
  }
  return new ApiError(message, response.status);
}

/**
 * The JSON objects of a server-sent event stream.
 *
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* serverSentEvents(body) {
  let pending = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      // A chunk may end between the two characters of a line's end; the rest then waits for the next one.
      const complete = pending.endsWith("\r") ? pending.length - 1 : pending.length;
      const blocks = pending.slice(0, complete).replace(/\r\n?/g, "\n").split("\n\n");
      pending = blocks.pop() + pending.slice(complete);
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel(); // tells the server, where somebody stops reading before the end
  }
}
