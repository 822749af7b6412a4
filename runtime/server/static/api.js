/** HTTP requests of the page. URLs are relative, so that a proxy may add a path prefix. */

const UNREACHABLE = "The server cannot be reached, or the file can no longer be read. Try again.";
const BROKEN = "The connection ended before the transcript was complete. Try again.";

/** Error with a message for the user. `status` is the HTTP status, or 0 without a response. */
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
 * List the models of the server, the default first.
 *
 * @param {string} key
 * @returns {Promise<{id: string, languages?: {name: string, code: string}[]}[]>}
 */
export async function models(key) {
  return (await get("v1/models", key)).data;
}

/**
 * Upload a file and yield the events of its transcription as they arrive: `transcript.text.segment`, and
 * `transcript.text.done` last.
 *
 * @param {File} file
 * @param {{model: string, language: string, context: string}} options
 * @param {string} key
 * @param {AbortSignal} signal cancels the transcription
 * @param {(fraction: number) => void} sent called with the uploaded fraction, 0..1
 */
export async function* transcribe(file, options, key, signal, sent) {
  const form = new FormData();
  form.append("model", options.model);
  form.append("response_format", "verbose_json");
  form.append("stream", "true");
  if (options.language) form.append("language", options.language);
  if (options.context) form.append("prompt", options.context);
  form.append("file", file); // last, so that a server can check the other fields first
  for await (const event of serverSentEvents(post("v1/audio/transcriptions", form, key, signal, sent))) {
    if (event.type === "error" || event.error) throw new ApiError(event.error?.message ?? "The server failed.", 500);
    yield event;
    if (event.type === "transcript.text.done") return;
  }
  throw new ApiError(BROKEN);
}

/** @param {string} path @param {string} key */
async function get(path, key) {
  let response;
  try {
    response = await fetch(address(path), { headers: authorization(key) });
  } catch {
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw refusal(response.status, await response.text());
  return response.json();
}

/**
 * Post a form and stream the response. XMLHttpRequest, because `fetch` does not report upload progress.
 *
 * @param {string} path
 * @param {FormData} form
 * @param {string} key
 * @param {AbortSignal} signal
 * @param {(fraction: number) => void} sent
 * @returns {ReadableStream<string>} fails with an ApiError if the server answers with an error
 */
function post(path, form, key, signal, sent) {
  const request = new XMLHttpRequest();
  const ended = new AbortController(); // removes the listener of `signal`
  let passed = 0; // characters of the response that were passed on
  return new ReadableStream({
    start(controller) {
      signal.throwIfAborted();
      const pass = () => {
        if (request.status !== 200) return; // an error is read when it is complete
        if (passed < request.responseText.length) controller.enqueue(request.responseText.slice(passed));
        passed = request.responseText.length;
      };
      const fail = (/** @type {Error} */ error) => {
        ended.abort();
        controller.error(error);
      };
      request.upload.onprogress = ({ loaded, total }) => sent(total ? loaded / total : 1);
      request.upload.onload = () => sent(1);
      request.onprogress = pass;
      request.onerror = () => fail(passed ? new ApiError(BROKEN) : new ApiError(UNREACHABLE));
      request.onload = () => {
        if (request.status !== 200) return fail(refusal(request.status, request.responseText));
        pass();
        ended.abort();
        controller.close();
      };
      request.open("POST", address(path));
      for (const [name, value] of Object.entries(authorization(key))) request.setRequestHeader(name, value);
      const abort = () => {
        request.abort();
        fail(signal.reason);
      };
      signal.addEventListener("abort", abort, { signal: ended.signal });
      request.send(form);
    },
    cancel() {
      ended.abort();
      request.abort();
    },
  });
}

/** @param {string} key */
function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** @param {number} status @param {string} answer */
function refusal(status, answer) {
  let message = `The server answered with status ${status}.`;
  try {
    message = JSON.parse(answer).error.message ?? message;
  } catch {
    // The response is not from the server but from a proxy; its page is not shown.
  }
  return new ApiError(message, status);
}

/**
 * Yield the JSON objects of a server-sent event stream.
 *
 * @param {ReadableStream<string>} body
 */
export async function* serverSentEvents(body) {
  let pending = "";
  const reader = body.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      // A chunk may end between the CR and LF of a line ending; the CR then waits for the next chunk.
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
    await reader.cancel(); // cancels the request if the caller stops before the end
  }
}
