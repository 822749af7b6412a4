/** Microphone input as 16-bit samples at 16 kHz. */

import { address } from "./api.js";

export const SAMPLE_RATE = 16000;

export class Microphone {
  /**
   * Request the microphone; the browser asks the user for permission.
   *
   * @throws {Error} with a message for the user
   */
  static async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers only allow the microphone on https or localhost. Open this page there.");
    }
    try {
      // Noise suppression and echo cancellation remove details that recognition needs; only the level is adjusted.
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
   * Start recording.
   *
   * @param {(samples: Int16Array) => void} onSamples called about ten times a second
   * @param {() => void} lost called when the microphone is disconnected
   */
  async start(onSamples, lost) {
    this.stream.getAudioTracks()[0].addEventListener("ended", lost);
    const source = await this.source();
    await this.context.audioWorklet.addModule(address("static/capture-worklet.js"));
    this.worklet = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.worklet.port.onmessage = ({ data }) => data && onSamples(data);
    source.connect(this.worklet);
    await this.context.resume();
  }

  /** Create the source node at 16 kHz or, if the browser does not support that, at the microphone's rate. */
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

  /** Stop recording. All samples have been passed on when this resolves. */
  async stop() {
    for (const track of this.stream.getTracks()) track.stop();
    if (this.worklet && this.context.state === "running") await this.handedOver();
    await this.context?.close();
    this.worklet = this.context = null;
  }

  async handedOver() {
    const { port } = this.worklet;
    const handler = port.onmessage;
    await new Promise((resolve) => {
      port.onmessage = (event) => (event.data === null ? resolve() : handler(event));
      port.postMessage("end");
    });
  }
}

/** @param {DOMException} error of getUserMedia */
function sentence(error) {
  const reasons = {
    NotAllowedError: "Access to the microphone was denied. Allow it for this page in the browser and try again.",
    NotFoundError: "No microphone was found. Connect one and try again.",
    NotReadableError: "The microphone is in use or cannot be read. Close other programs that use it and try again.",
  };
  return reasons[error.name] ?? `The microphone cannot be used: ${error.message}`;
}
