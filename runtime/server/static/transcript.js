/** View of the transcript: final segments, and below them the partial text of open ones. */

import { joinTexts, readable } from "./formats.js";

const CODE = /^[a-z]{2,3}(-[a-z]+)?$/i; // code of a language, in contrast to its name
const NEAR = 120; // pixels from the end of the page that count as the end
const page = document.documentElement;

export class TranscriptView {
  /**
   * @param {HTMLOListElement} list final segments, announced by screen readers
   * @param {HTMLElement} partials partial text, not announced because it changes too often
   * @param {HTMLElement} empty shown while there is no text
   */
  constructor(list, partials, empty) {
    this.list = list;
    this.partials = partials;
    this.empty = empty;
    this.codes = new Map(); // code by lower-case name of the language
    this.top = 0; // scroll position of the page
    this.clear();
    addEventListener("scroll", () => this.scrolled(), { passive: true });
  }

  clear() {
    /** @type {import("./formats.js").Segment[]} */
    this.segments = [];
    this.following = true; // scroll to new text
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
    // Lets a screen reader use the right language.
    if (language) words.lang = this.codes.get(language.toLowerCase()) ?? (CODE.test(language) ? language : "");
    item.append(times, words);
    this.keepingTheEnd(() => this.list.append(item));
    this.settle();
  }

  /**
   * Show the partial text of a segment; the first call adds its row.
   *
   * @param {string} id
   * @param {{stable: string, unstable: string, start?: number}} partial
   */
  setPartial(id, { stable, unstable, start }) {
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

  /** Remove the partial text of a segment. @param {string} id */
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

  /** Apply a change and scroll to the end, unless the user has scrolled up. */
  keepingTheEnd(/** @type {() => void} */ change) {
    change();
    if (this.following) page.scrollTop = page.scrollHeight;
  }

  /** Handle scrolling by the user or by this page. */
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

  /** Language with the longest speech. @returns {string | null} */
  get language() {
    const seconds = new Map();
    for (const { language, start, end } of this.segments) {
      if (language) seconds.set(language, (seconds.get(language) ?? 0) + end - start);
    }
    return [...seconds].reduce((longest, entry) => (entry[1] > longest[1] ? entry : longest), [null, -1])[0];
  }
}

/** @param {number} seconds */
function time(seconds) {
  const node = element("time");
  node.dateTime = `PT${seconds.toFixed(3)}S`;
  node.textContent = readable(seconds, 1);
  return node;
}

function paragraph() {
  const node = element("p");
  node.dir = "auto"; // direction of the text
  return node;
}

/** @param {string} name */
function element(name, className = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}
