/** Waveform of a whole file, or of the last seconds of the microphone. */

const BAR = 3; // pixels
const GAP = 2;
const BUCKETS = 4000; // peaks stored per file, more than any screen shows
const PREVIEW_RATE = 8000; // Hz
const LARGEST_PREVIEW = 60e6; // bytes; decoding needs many times as much memory
const LIVE_BAR = 800; // samples at 16 kHz, 50 ms
const LIVE_BARS = 1000; // bars stored, more than any screen shows

/**
 * Return the peaks and the duration of a file in seconds, or null if it is too large or the browser cannot decode it.
 *
 * @param {File} file
 * @returns {Promise<{peaks: Float32Array, duration: number} | null>}
 */
export async function preview(file) {
  if (file.size > LARGEST_PREVIEW) return null;
  try {
    const context = new OfflineAudioContext(1, 1, PREVIEW_RATE);
    const audio = await context.decodeAudioData(await file.arrayBuffer());
    return { peaks: peaksOf(audio), duration: audio.duration };
  } catch (error) {
    if (error instanceof DOMException) return null; // unsupported format, or the file was removed
    throw error;
  }
}

/** @param {AudioBuffer} audio */
function peaksOf(audio) {
  const peaks = new Float32Array(Math.min(BUCKETS, audio.length));
  for (let channel = 0; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((sample, index) => {
      const bucket = Math.floor((index * peaks.length) / audio.length);
      peaks[bucket] = Math.max(peaks[bucket], Math.abs(sample));
    });
  }
  return peaks;
}

export class Waveform {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Remove the waveform. */
  clear() {
    this.peaks = new Float32Array(0);
    this.fraction = 0; // transcribed fraction of the file
    this.levels = null; // peaks of the microphone, or null
    this.shown = 0; // number of visible levels; fractional while one moves in
    this.draw();
  }

  /** Show a whole file. @param {Float32Array} peaks */
  file(peaks) {
    const highest = peaks.reduce((highest, peak) => Math.max(highest, peak), 0);
    this.peaks = highest > 0 ? peaks.map((peak) => peak / highest) : peaks;
    this.draw();
  }

  /** Set the transcribed fraction of the file. @param {number} fraction 0..1 */
  progress(fraction) {
    this.fraction = fraction;
    this.draw();
  }

  /** Add samples of the microphone. @param {Int16Array} samples */
  addSamples(samples) {
    const waiting = this.levels !== null && this.shown < this.levels.length;
    this.levels ??= [];
    for (let from = 0; from + LIVE_BAR <= samples.length; from += LIVE_BAR) {
      const bar = samples.subarray(from, from + LIVE_BAR);
      const peak = bar.reduce((highest, value) => Math.max(highest, Math.abs(value)), 0);
      this.levels.push(peak / 32768);
    }
    const surplus = this.levels.length - LIVE_BARS;
    if (surplus > 0) {
      this.levels.splice(0, surplus);
      this.shown = Math.max(0, this.shown - surplus);
    }
    if (this.still.matches) {
      this.shown = this.levels.length;
      this.draw();
    } else if (!waiting) requestAnimationFrame(() => this.glide());
  }

  /** Animate the newest levels. */
  glide() {
    if (this.levels === null || this.shown >= this.levels.length) return;
    const behind = this.levels.length - this.shown;
    this.shown = behind < 0.02 ? this.levels.length : this.shown + behind * 0.12;
    this.draw();
    requestAnimationFrame(() => this.glide());
  }

  draw() {
    const { canvas, context } = this;
    const { width, height } = canvas.getBoundingClientRect();
    if (width === 0) return; // not visible
    const scale = devicePixelRatio;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    context.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const [done, rest] = ["--accent", "--wave"].map((name) => style.getPropertyValue(name));
    for (const { left, level, reached } of this.levels ? this.liveBars(width) : this.fileBars(width)) {
      const tall = Math.max(BAR, level ** 0.7 * (height - 2));
      context.fillStyle = reached ? done : rest;
      context.beginPath();
      context.roundRect(left, (height - tall) / 2, BAR, tall, BAR / 2);
      context.fill();
    }
  }

  /** @param {number} width */
  *fileBars(width) {
    const count = Math.floor((width + GAP) / (BAR + GAP));
    for (let bar = 0; bar < count; bar += 1) {
      const from = Math.floor((bar * this.peaks.length) / count);
      const to = Math.max(from + 1, Math.floor(((bar + 1) * this.peaks.length) / count));
      const level = this.peaks.subarray(from, to).reduce((highest, peak) => Math.max(highest, peak), 0);
      yield { left: bar * (BAR + GAP), level, reached: (bar + 0.5) / count <= this.fraction };
    }
  }

  /** Yield the bars of the microphone, the newest at the right. @param {number} width */
  *liveBars(width) {
    for (let index = Math.ceil(this.shown) - 1; ; index -= 1) {
      const left = width - (this.shown - index) * (BAR + GAP);
      if (left < -BAR) return;
      yield { left, level: this.levels[index] ?? 0, reached: index >= 0 }; // dots before the start
    }
  }
}
