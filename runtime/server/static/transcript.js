/** The transcript on the page: segments that are final, and below them what is being heard. */

import { joinTexts, readable } from "./formats.js";

const CODE = /^[a-z]{2,3}(-[a-z]+)?$/i; // of a language, where it is not given by name
const NEAR = 120; // pixels from the page's end that count as being there
const page = document.documentElement;

export class TranscriptView {
  /**
   * @param {HTMLOListElement} list of final segments, read out as they come
   * @param {HTMLElement} partials of what is being heard, not read out: it changes too often
   * @param {HTMLElement} empty shown where there is nothing
   */
  constructor(list, partials, empty) {
    this.list = list;
    this.partials = partials;
    this.empty = empty;
    this.codes = new Map(); // names of languages to their codes
    this.top = 0; // of the page, as last scrolled
    this.clear();
    addEventListener("scroll", () => this.scrolled(), { passive: true });
  }

  clear() {
    /** @type {import("./formats.js").Segment[]} */
    this.segments = [];
    this.following = true; // what is new is scrolled to
    this.list.replaceChildren();
    this.clearPartials();
  }

  /** @param {import("./formats.js").Segment} segment */
  add({ start, end, text, language = null }) {
    if (!text.trim()) return;
    this.segments.push({ start, end, text, language });
    const item = element("li", "segment");
    const times = element("span", "times");
    times.append(time(start), " – ", time(end));
    const words = paragraph();
    words.textContent = text;
    // So that a screen reader speaks it in its language.
    if (language) words.lang = this.codes.get(language.toLowerCase()) ?? (CODE.test(language) ? language : "");
    item.append(times, words);
    this.keepingTheEnd(() => this.list.append(item));
    this.settle();
  }

  /**
   * What is heard so far of a segment; the first call opens it.
   *
   * @param {string} id
   * @param {{stable: string, unstable: string, start?: number}} partial
   */
  hear(id, { stable, unstable, start }) {
    let row = [...this.partials.children].find((row) => row.dataset.id === id);
    this.keepingTheEnd(() => {
      if (!row) {
        row = element("div", "segment");
        row.dataset.id = id;
        row.append(element("span", "times"), paragraph());
        this.partials.append(row);
      }
      const [times, words] = row.children;
      if (start !== undefined) times.replaceChildren(time(start));
      const tail = element("span", "unstable");
      tail.textContent = unstable || (stable ? "" : "…");
      words.replaceChildren(stable, tail);
    });
    this.settle();
  }

  /** Take away what was heard of a segment, for its final text or because there will be none. @param {string} id */
  drop(id) {
    [...this.partials.children].find((row) => row.dataset.id === id)?.remove();
    this.settle();
  }

  clearPartials() {
    this.partials.replaceChildren();
    this.settle();
  }

  settle() {
    this.empty.hidden = this.list.children.length + this.partials.children.length > 0;
  }

  /** Show what is new, unless somebody has scrolled up to read. */
  keepingTheEnd(/** @type {() => void} */ change) {
    change();
    if (this.following) page.scrollTop = page.scrollHeight;
  }

  /** Somebody, or this page itself, has scrolled. */
  scrolled() {
    const atEnd = page.scrollHeight - page.clientHeight - page.scrollTop < NEAR;
    if (atEnd) this.following = true;
    else if (page.scrollTop < this.top) this.following = false;
    this.top = page.scrollTop;
  }

  /** @returns {string} */
  get text() {
    return joinTexts(this.segments.map((segment) => segment.text));
  }

  /** The language of most of the speech. @returns {string | null} */
  get language() {
    const seconds = new Map();
    for (const { language, start, end } of this.segments) {
      if (language) seconds.set(language, (seconds.get(language) ?? 0) + end - start);
    }
    return [...seconds].reduce((most, entry) => (entry[1] > most[1] ? entry : most), [null, -1])[0];
  }
}

/** @param {number} seconds */
function time(seconds) {
  const made = element("time");
  made.dateTime = `PT${seconds.toFixed(3)}S`;
  made.textContent = readable(seconds, 1);
  return made;
}

function paragraph() {
  const made = element("p");
  made.dir = "auto"; // the text's own direction
  return made;
}

/** @param {string} name */
function element(name, className = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}
