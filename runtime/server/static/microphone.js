/** The microphone as 16-bit samples at 16 kHz. */

import { address } from "./api.js";

export const SAMPLE_RATE = 16000;

export class Microphone {
  /**
   * Ask for the microphone; the browser asks the person.
   *
   * @throws {Error} with a sentence that says why there is none
   */
  static async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give the microphone only to pages on https or localhost. Open this page there.");
    }
    try {
      // Cleaning up for human ears takes away what a recognizer hears well; only the level is evened out.
      const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
      return new Microphone(await navigator.mediaDevices.getUserMedia({ audio }));
    } catch (error) {
      throw new Error(sentence(error));
    }
  }

  /** @param {MediaStream} stream */
  constructor(stream) {
    this.stream = stream;
    this.context = null;
    this.worklet = null;
  }

  /**
   * Begin to listen.
   *
   * @param {(samples: Int16Array) => void} heard called about ten times a second
   * @param {() => void} lost called when the microphone goes away by itself
   */
  async start(heard, lost) {
    this.stream.getAudioTracks()[0].addEventListener("ended", lost);
    const source = await this.source();
    await this.context.audioWorklet.addModule(address("static/capture-worklet.js"));
    this.worklet = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.worklet.port.onmessage = ({ data }) => data && heard(data);
    source.connect(this.worklet);
    await this.context.resume();
  }

  /** The stream in a context at the rate that is wanted, or where a browser cannot, at the microphone's own. */
  async source() {
    this.context = new AudioContext({ sampleRate: SAMPLE_RATE });
    try {
      return this.context.createMediaStreamSource(this.stream);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      await this.context.close();
      this.context = new AudioContext();
      return this.context.createMediaStreamSource(this.stream);
    }
  }

  /** Stop listening; when this is done, everything that was heard has been handed over. */
  async stop() {
    for (const track of this.stream.getTracks()) track.stop();
    if (this.worklet && this.context.state === "running") await this.handedOver();
    await this.context?.close();
    this.worklet = this.context = null;
  }

  async handedOver() {
    const { port } = this.worklet;
    const heard = port.onmessage;
    await new Promise((resolve) => {
      port.onmessage = (event) => (event.data === null ? resolve() : heard(event));
      port.postMessage("end");
    });
  }
}

/** @param {DOMException} error of getUserMedia */
function sentence(error) {
  const reasons = {
    NotAllowedError: "The microphone was not allowed. Allow it in the browser's settings for this page, and try again.",
    NotFoundError: "No microphone was found. Connect one and try again.",
    NotReadableError: "The microphone is in use elsewhere, or cannot be read. Close what uses it and try again.",
  };
  return reasons[error.name] ?? `The microphone cannot be used: ${error.message}`;
}
