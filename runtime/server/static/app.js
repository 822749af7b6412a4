/** Controller of the page: user actions and their results. */

import { ApiError, models, transcribe } from "./api.js";
import { FORMATS, readable } from "./formats.js";
import { LiveConnection } from "./live.js";
import { Microphone, SAMPLE_RATE } from "./microphone.js";
import { TranscriptView } from "./transcript.js";
import { preview, Waveform } from "./waveform.js";

const $ = (/** @type {string} */ id) => document.getElementById(id);
const view = new TranscriptView($("segments"), $("partials"), $("empty"));
const waveform = new Waveform($("waveform"));

let key = ""; // only in memory, so that it is gone when the page is closed
let offered = []; // models of the server
let retry = null; // action to repeat once there is a key
let name = "transcript"; // base name of downloads
let duration = null; // seconds of audio, or null if unknown
let text = null; // whole text from the server, or null
let running = null; // AbortController of the file that is being transcribed
let pictured = null; // AbortSignal of the file whose waveform is shown
let recording = null; // {microphone, connection} while live
let again = null; // action of the job's button

// ── Server, models, key ────────────────────────────────────────────────────

async function connect() {
  offered = await models(key);
  $("model").replaceChildren(...offered.map(({ id }) => new Option(id)));
  $("key-form").hidden = true;
  showChoices();
}

/** Enable the options that the selected model supports. */
function showChoices() {
  const { languages = [], capabilities = {} } = offered.find(({ id }) => id === $("model").value) ?? {};
  const automatic = languages.length === 1 ? languages[0].name : "chosen by the model";
  offer("language", capabilities.language !== false, "detect", automatic);
  offer("context", capabilities.context !== false, "names and terms, such as Kris, Clare", "not used by this model");
  $("languages").replaceChildren(...languages.map(({ name }) => new Option(name)));
  view.codes = new Map(languages.map(({ name, code }) => [name.toLowerCase(), code]));
}

/** Enable a field, or disable it and show the reason as its placeholder. */
function offer(id, usable, example, reason) {
  $(id).disabled = !usable;
  $(id).placeholder = usable ? example : reason;
  if (!usable) $(id).value = "";
}

/**
 * Run an action and show its error. If a key is missing, ask for it and run the action again.
 *
 * @param {() => Promise<void>} action
 */
async function attempt(action) {
  setText("alert", "");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) {
      setText("alert", error.message);
      return;
    }
    if (key) setText("alert", error.message);
    key = "";
    retry = action;
    $("key-form").hidden = false;
    $("key").focus();
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  const action = retry ?? connect;
  retry = null;
  attempt(async () => {
    await connect();
    $("choose").focus();
    if (action !== connect) await action();
  });
});

$("model").addEventListener("change", showChoices);

function options() {
  return { model: $("model").value, language: $("language").value.trim(), context: $("context").value.trim() };
}

// ── Files ──────────────────────────────────────────────────────────────────

/** @param {File} file */
async function transcribeFile(file) {
  running?.abort();
  const abort = new AbortController();
  running = abort;
  begin(file.name, "Uploading…");
  pictured = abort.signal;
  name = file.name.replace(/\.[^.]*$/, "") || "transcript";
  $("microphone").disabled = true;
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
  showAction("Cancel", () => abort.abort());
  const drawn = showPreview(file, abort.signal);
  try {
    if (!offered.length) await connect();
    for await (const event of transcribe(file, options(), key, abort.signal, sent)) {
      if (event.type === "transcript.text.segment") {
        view.add(event);
        showTranscribed(event.end);
      } else if (event.type === "transcript.text.done") {
        text = event.text;
        duration = event.duration ?? duration;
      }
    }
    await drawn;
    if (running === abort) summarize();
  } catch (error) {
    if (running !== abort) return; // replaced by another file
    if (!abort.signal.aborted) {
      setText("status", "Stopped.");
      throw error;
    }
    setText("status", "Cancelled.");
  } finally {
    if (running === abort) {
      running = null;
      $("microphone").disabled = false;
      showAction("Transcribe again", () => attempt(() => transcribeFile(file)));
      end();
    }
  }
}

/** @param {number} fraction uploaded */
function sent(fraction) {
  setText("status", fraction < 1 ? "Uploading…" : "Transcribing…");
  if (fraction < 1) $("progress").value = fraction;
  else $("progress").removeAttribute("value"); // indeterminate until the first text
}

/** @param {File} file @param {AbortSignal} signal */
async function showPreview(file, signal) {
  const decoded = await preview(file);
  if (pictured !== signal) return;
  $("waveform").hidden = !decoded;
  $("no-preview").hidden = Boolean(decoded);
  if (!decoded) return;
  duration = decoded.duration;
  $("waveform").setAttribute("aria-label", `Waveform of ${file.name}, ${readable(duration)}`);
  waveform.file(decoded.peaks);
  showTranscribed(view.segments.at(-1)?.end ?? 0);
}

/** @param {number} seconds of the file that are transcribed */
function showTranscribed(seconds) {
  if (duration === null) {
    setText("clock", readable(seconds));
    return;
  }
  const fraction = Math.min(1, seconds / duration);
  setText("clock", `${readable(seconds)} / ${readable(duration)}`);
  waveform.progress(fraction);
  if (fraction > 0) $("progress").value = fraction;
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = ""; // so that the same file can be chosen again
  if (file) attempt(() => transcribeFile(file));
});

let depth = 0; // nesting of elements under the dragged file
const carriesFile = (/** @type {DragEvent} */ event) => event.dataTransfer.types.includes("Files");
addEventListener("dragenter", (event) => carriesFile(event) && highlight(++depth > 0));
addEventListener("dragleave", (event) => carriesFile(event) && highlight(--depth > 0));
addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  depth = 0;
  highlight(false);
  if (recording) setText("alert", "The microphone is on. Stop it first, then drop the file.");
  else for (const file of [...event.dataTransfer.files].slice(0, 1)) attempt(() => transcribeFile(file));
});

/** @param {boolean} over */
function highlight(over) {
  $("choose").classList.toggle("over", over && !recording);
}

// ── Microphone ─────────────────────────────────────────────────────────────

async function listen() {
  recording = {}; // from now on, the button stops
  showRecording(true);
  begin("Microphone", "Waiting for the microphone…");
  name = `microphone-${new Date().toISOString().slice(0, 19).replace(/[T:]/g, "-")}`;
  showAction("Stop", () => stopListening());
  duration = 0;
  const mine = recording;
  try {
    if (!offered.length) await connect();
    mine.microphone = await Microphone.open();
    setText("status", "Connecting…");
    mine.connection = await openConnection();
    await mine.microphone.start(onSamples, () => stopListening("The microphone was disconnected."));
    if (mine.unwanted) await stopListening();
    else if (!mine.stopping) setText("status", "Listening.");
  } catch (error) {
    if (mine.stopping) return; // `stopListening` has shown the reason
    await mine.microphone?.stop();
    mine.connection?.close();
    over("Stopped.");
    throw error;
  }
}

/** @param {Int16Array} samples */
function onSamples(samples) {
  recording?.connection.append(samples);
  waveform.addSamples(samples);
  duration += samples.length / SAMPLE_RATE;
  setText("clock", readable(duration));
}

async function openConnection() {
  try {
    return await LiveConnection.open(options(), key, {
      speech: (id) => view.setPartial(id, { stable: "", unstable: "" }),
      partial: (id, partial) => view.setPartial(id, partial),
      final(id, segment) {
        view.drop(id);
        view.add(segment);
      },
      failed: (message) => stopListening(message),
    });
  } catch (error) {
    if (error instanceof DOMException) {
      throw new ApiError("This key has characters that a WebSocket cannot carry. Use another key.");
    }
    await connect(); // shows the reason, which a WebSocket does not: no key, or no server
    throw new ApiError("The server does not accept live audio now. Try again in a moment.");
  }
}

/** @param {string} problem reason, if the user did not stop it */
async function stopListening(problem = "") {
  if (problem) setText("alert", problem);
  const mine = recording;
  if (!mine || mine.stopping) return;
  if (!mine.connection) {
    mine.unwanted = true; // checked by `listen`
    return;
  }
  mine.stopping = true;
  showAction(null);
  $("microphone").setAttribute("aria-disabled", "true");
  setText("status", "Finishing…");
  await mine.microphone.stop();
  await mine.connection.finish();
  view.clearPartials();
  over();
}

/** @param {string} status message instead of the summary */
function over(status = "") {
  recording = null;
  showRecording(false);
  showAction(null);
  if (status) setText("status", status);
  else summarize();
  end();
}

/** @param {boolean} on */
function showRecording(on) {
  $("microphone").classList.toggle("on", on);
  $("microphone").removeAttribute("aria-disabled");
  $("choose").disabled = on;
  setText("microphone-title", on ? "Stop" : "Use the microphone");
  setText("microphone-hint", on ? "and keep the transcript" : "text appears as you speak");
}

$("microphone").addEventListener("click", () => (recording ? stopListening() : attempt(listen)));

// ── Shared by both ──────────────────────────────────────────────────────────

/** @param {string} title @param {string} status */
function begin(title, status) {
  view.clear();
  text = duration = pictured = null;
  $("job").hidden = false;
  $("job").classList.add("busy");
  $("exports").hidden = true;
  $("progress").hidden = true;
  $("waveform").hidden = false;
  $("waveform").setAttribute("aria-label", `Waveform of ${title}`);
  $("no-preview").hidden = true;
  setText("job-name", title);
  $("job-name").title = title; // shown in full on hover
  setText("status", status);
  setText("clock", "");
  waveform.clear();
}

function summarize() {
  const count = view.segments.length;
  if (duration !== null) {
    setText("clock", readable(duration));
    waveform.progress(1);
  }
  setText("status", count ? `Done: ${count} ${count === 1 ? "segment" : "segments"}.` : "Done. No speech was found.");
}

function end() {
  $("job").classList.remove("busy");
  $("progress").hidden = true;
  $("exports").hidden = view.segments.length === 0;
}

/** Set the job's button. @param {string | null} label null hides it @param {() => void} action */
function showAction(label, action = null) {
  again = action;
  if (label === null && document.activeElement === $("job-action")) $("microphone").focus();
  $("job-action").hidden = label === null;
  setText("job-action", label ?? "");
}

$("job-action").addEventListener("click", () => again());

/** @returns {import("./formats.js").Transcript} */
function transcript() {
  return { text: text ?? view.text, language: view.language, duration, segments: view.segments };
}

$("copy").addEventListener("click", async () => {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(transcript().text);
    setText("status", "Copied.");
  } else {
    // Browsers only allow the clipboard on https or localhost.
    getSelection().selectAllChildren($("segments"));
    setText("status", "Text selected. Copy it with the keyboard or the menu.");
  }
});

for (const button of $("exports").querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const { write, type } = FORMATS[button.dataset.format];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([write(transcript())], { type: `${type};charset=utf-8` }));
    link.download = `${name}.${button.dataset.format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    setText("status", `Saved ${link.download}.`);
  });
}

/** @param {string} id @param {string} words */
function setText(id, words) {
  if ($(id).textContent === words) return;
  $(id).textContent = words;
  if (id === "alert" && words) $(id).scrollIntoView({ block: "nearest" });
}

attempt(connect);
