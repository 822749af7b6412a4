/**
 * Converts the microphone's audio to 16-bit samples at 16 kHz on the browser's audio thread.
 *
 * This file has no imports, because not every browser loads a worklet's imports.
 */

const TARGET_RATE = 16000;
const CHUNK = TARGET_RATE / 10; // samples per message
const ZERO_CROSSINGS = 16; // of the filter on each side
const RESOLUTION = 64; // points of the filter table between two zero crossings

/** Streaming resampler with a windowed-sinc filter. */
export class Resampler {
  /** @param {number} from Hz @param {number} to Hz */
  constructor(from, to) {
    this.step = from / to;
    // The pass band ends a little below the lower Nyquist frequency, to leave room for the transition band.
    this.scale = Math.min(1, to / from) * 0.94;
    this.reach = Math.ceil(ZERO_CROSSINGS / this.scale);
    this.table = Float32Array.from({ length: ZERO_CROSSINGS * RESOLUTION + 2 }, (_, index) => {
      const x = index / RESOLUTION;
      if (x >= ZERO_CROSSINGS) return 0;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
      return sinc * Math.cos((Math.PI * x) / (2 * ZERO_CROSSINGS)) ** 2; // Hann
    });
    this.held = new Float32Array(this.reach); // initially silence
    this.position = this.reach; // of the next output sample, in samples of `held`
  }

  /** Return the output for `samples`, delayed by the filter's reach. @param {Float32Array} samples */
  push(samples) {
    const joined = new Float32Array(this.held.length + samples.length);
    joined.set(this.held);
    joined.set(samples, this.held.length);
    const output = [];
    for (; this.position + this.reach < joined.length; this.position += this.step) output.push(this.at(joined));
    const drop = Math.max(0, Math.floor(this.position) - this.reach);
    this.held = joined.slice(drop);
    this.position -= drop;
    return Float32Array.from(output);
  }

  /** Return the rest of the output. */
  flush() {
    return this.push(new Float32Array(this.reach + 1));
  }

  /** @param {Float32Array} samples */
  at(samples) {
    let sum = 0;
    const last = Math.floor(this.position + this.reach);
    for (let index = Math.max(0, Math.ceil(this.position - this.reach)); index <= last; index += 1) {
      const x = Math.abs(index - this.position) * this.scale * RESOLUTION;
      const below = Math.floor(x);
      if (below >= this.table.length - 1) continue;
      const weight = this.table[below] + (x - below) * (this.table[below + 1] - this.table[below]);
      sum += samples[index] * weight;
    }
    return sum * this.scale;
  }
}

/** @param {number} sample -1..1 */
function pcm16(sample) {
  return Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
}

// Tests import this file outside of a worklet to use the class above.
if (typeof registerProcessor === "function") {
  registerProcessor(
    "capture",
    class extends AudioWorkletProcessor {
      constructor() {
        super();
        this.resampler = sampleRate === TARGET_RATE ? null : new Resampler(sampleRate, TARGET_RATE);
        this.chunk = new Int16Array(CHUNK);
        this.filled = 0;
        this.ended = false;
        this.port.onmessage = () => this.end();
      }

      /** @param {Float32Array[][]} inputs */
      process([channels]) {
        if (!this.ended && channels.length) {
          const mono = Float32Array.from(channels[0], (_, index) => {
            return channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length;
          });
          this.keep(this.resampler ? this.resampler.push(mono) : mono);
        }
        return !this.ended;
      }

      /** @param {Float32Array} samples */
      keep(samples) {
        for (const sample of samples) {
          this.chunk[this.filled] = pcm16(sample);
          this.filled += 1;
          if (this.filled === CHUNK) this.send();
        }
      }

      send() {
        const samples = this.chunk.slice(0, this.filled);
        this.filled = 0;
        this.port.postMessage(samples, [samples.buffer]);
      }

      /** Send the remaining samples, then null. */
      end() {
        if (this.resampler) this.keep(this.resampler.flush());
        if (this.filled) this.send();
        this.ended = true;
        this.port.postMessage(null);
      }
    },
  );
}
