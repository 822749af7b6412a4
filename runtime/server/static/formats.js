/**
 * Export formats of transcripts. txt, srt and vtt equal the output of the command line.
 *
 * @typedef {{start: number, end: number, text: string, language: string | null}} Segment times in seconds
 * @typedef {{text: string, language: string | null, duration: number | null, segments: Segment[]}} Transcript
 */

/** Whitespace of Python's `str.split()`; `\s` differs in four characters. */
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;

/** Scripts written without spaces between words. */
const UNSPACED = new RegExp(
  "[\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3000-\\u312f\\u31a0-\\u31ff\\u3400-\\u4dbf\\u4e00-\\u9fff" +
    "\\uf900-\\ufaff\\uff00-\\uff9f\\uffe0-\\uffef\\u{20000}-\\u{323af}]",
  "u",
);
const CLOSING = new Set(",.;:!?)]}，。；：！？）」』】》、");
const OPENING = new Set("([{¿¡（「『【《");
const WORD = /[\p{L}\p{N}]/u;

/**
 * Join the texts of consecutive segments with spaces, except between scripts without spaces, before closing
 * punctuation, and after opening brackets. Must equal runtime/pipeline/join_text.py.
 *
 * @param {string[]} texts
 */
export function joinTexts(texts) {
  let joined = "";
  for (const text of texts.map(stripped).filter(Boolean)) {
    joined += (joined && needsSpace(joined, text) ? " " : "") + text;
  }
  return joined;
}

/** @param {string} before @param {string} after */
function needsSpace(before, after) {
  const left = [...before].reverse();
  const right = [...after];
  const closes = CLOSING.has(right[0]) && !after.startsWith("..");
  if (OPENING.has(left[0]) || closes) return false;
  const sides = [left, right].map((side) => side.find((char) => WORD.test(char) || UNSPACED.test(char)) ?? " ");
  return !sides.every((char) => UNSPACED.test(char));
}

/** @param {string} text */
function words(text) {
  return text.split(SPACE).filter(Boolean);
}

/** Strip whitespace at both ends. @param {string} text */
function stripped(text) {
  return text.replace(new RegExp(`^${SPACE.source}|${SPACE.source}$`, "gu"), "");
}

/** Text without times. @param {Transcript} transcript */
export function asText(transcript) {
  return transcript.text + "\n";
}

/** SubRip subtitles with one cue per segment with text. @param {Transcript} transcript */
export function asSrt(transcript) {
  return cues(transcript)
    .map(({ start, end, text }, index) => `${index + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${text}\n`)
    .join("\n");
}

/** WebVTT subtitles; markup characters are escaped. @param {Transcript} transcript */
export function asVtt(transcript) {
  const escaped = (/** @type {string} */ text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const body = cues(transcript).map(
    ({ start, end, text }) => `\n${clock(start, ".")} --> ${clock(end, ".")}\n${escaped(text)}\n`,
  );
  return "WEBVTT\n" + body.join("");
}

/** JSON object with text, language, duration and segments. @param {Transcript} transcript */
export function asJson(transcript) {
  return JSON.stringify(transcript, null, 2) + "\n";
}

/** Writer and media type by format. */
export const FORMATS = {
  txt: { write: asText, type: "text/plain" },
  srt: { write: asSrt, type: "application/x-subrip" },
  vtt: { write: asVtt, type: "text/vtt" },
  json: { write: asJson, type: "application/json" },
};

/**
 * Return the segments with text, with times in milliseconds and the text on one line. Cues last at least 1 ms, because
 * players drop a cue without a duration.
 *
 * @param {Transcript} transcript
 */
function cues(transcript) {
  return transcript.segments.flatMap((segment) => {
    const text = words(segment.text).join(" ");
    const start = Math.round(segment.start * 1000);
    return text ? [{ start, end: Math.max(Math.round(segment.end * 1000), start + 1), text }] : [];
  });
}

/** @param {number} milliseconds @param {string} separator before the fraction */
function clock(milliseconds, separator) {
  const [hours, minutes, seconds] = parts(Math.floor(milliseconds / 1000));
  return `${pad(hours)}:${pad(minutes)}:${pad(seconds)}${separator}${pad(milliseconds % 1000, 3)}`;
}

/** Format seconds as `1:02`, with `digits` decimals; hours only if there are any. */
export function readable(/** @type {number} */ time, digits = 0) {
  const units = Math.floor(time * 10 ** digits + 1e-6);
  const [hours, minutes, seconds] = parts(Math.floor(units / 10 ** digits));
  const fraction = digits ? "." + pad(units % 10 ** digits, digits) : "";
  return (hours ? `${hours}:${pad(minutes)}` : `${minutes}`) + `:${pad(seconds)}${fraction}`;
}

/** @param {number} seconds */
function parts(seconds) {
  return [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
}

function pad(/** @type {number} */ value, width = 2) {
  return String(value).padStart(width, "0");
}
