/** Live transcription over a WebSocket with OpenAI's realtime transcription events. */

import { address } from "./api.js";
import { SAMPLE_RATE } from "./microphone.js";

const MOST_BUFFERED = 2_000_000; // bytes waiting to be sent, about 45 s of audio; above it the network is too slow
const LONGEST_WAIT = 60_000; // ms to wait for the last texts after the end of the audio
const PAUSE = 800; // ms of silence that end a segment
const COMMIT = "commit"; // id of the event that commits the last audio

/**
 * @typedef {object} Handlers
 * @property {(id: string) => void} speech speech has started
 * @property {(id: string, partial: {stable: string, unstable: string, start: number}) => void} partial
 * @property {(id: string, segment: import("./formats.js").Segment) => void} final
 * @property {(message: string) => void} failed the connection has ended, or the server sent an error
 */

export class LiveConnection {
  /**
   * Connect and configure the session.
   *
   * @param {{model: string, language: string, context: string}} options
   * @param {string} key
   * @param {Handlers} handlers
   * @returns {Promise<LiveConnection>} rejects with null if the connection fails; browsers do not report the reason
   */
  static open(options, key, handlers) {
    const url = address("v1/realtime");
    url.protocol = url.protocol.replace("http", "ws");
    url.search = new URLSearchParams({ intent: "transcription", partials: "true", model: options.model }).toString();
    const protocols = ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])];
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url, protocols);
      socket.onclose = () => reject(null);
      socket.onopen = () => resolve(new LiveConnection(socket, options, handlers));
    });
  }

  /** @param {WebSocket} socket open WebSocket */
  constructor(socket, options, handlers) {
    this.socket = socket;
    this.handlers = handlers;
    this.open = new Set(); // items with speech but without final text
    this.committed = false; // the server has handled the last commit
    this.finished = null; // called when the last text has arrived
    socket.onmessage = (event) => this.receive(JSON.parse(event.data));
    socket.onclose = (event) => this.closed(event);
    const transcription = { model: options.model };
    if (options.language) transcription.language = options.language;
    if (options.context) transcription.prompt = options.context;
    const input = {
      format: { type: "audio/pcm", rate: SAMPLE_RATE },
      transcription,
      turn_detection: { type: "server_vad", silence_duration_ms: PAUSE },
    };
    this.send({ type: "session.update", session: { type: "transcription", audio: { input } } });
  }

  /** @param {Int16Array} samples */
  append(samples) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > MOST_BUFFERED) {
      this.fail("The connection is too slow for live audio.");
      return;
    }
    const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
    this.send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...bytes)) });
  }

  /** End the audio, wait for the last texts, and close. */
  async finish() {
    if (this.socket.readyState === WebSocket.OPEN) {
      this.send({ type: "input_audio_buffer.commit", event_id: COMMIT });
      // Events are handled in order. The answer to the commit looks like the events of a pause just before it,
      // and with nothing to commit there is only an error. The answer to the clear comes exactly once and last.
      this.send({ type: "input_audio_buffer.clear" });
      await new Promise((resolve) => {
        const timer = setTimeout(() => this.fail("The server did not send the last text in time."), LONGEST_WAIT);
        this.finished = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.close();
  }

  /** Close the connection at once. */
  close() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close(1000);
    this.finished?.();
  }

  /** @param {object} event */
  send(event) {
    this.socket.send(JSON.stringify(event));
  }

  /** @param {any} event server event */
  receive(event) {
    const { item_id: id } = event;
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.open.add(id);
        this.handlers.speech(id);
        break;
      case "input_audio_buffer.committed":
        this.open.add(id);
        break;
      case "input_audio_buffer.cleared":
        this.committed = true;
        break;
      case "conversation.item.input_audio_transcription.partial":
        this.handlers.partial(id, event);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.open.delete(id);
        this.handlers.final(id, { ...event, text: event.transcript, language: event.language ?? null });
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.open.delete(id);
        this.handlers.final(id, { start: 0, end: 0, text: "", language: null });
        this.handlers.failed(event.error.message);
        break;
      case "error":
        // There was nothing to commit, which is expected here.
        if (event.error.event_id !== COMMIT) this.fail(event.error.message);
        break;
    }
    if (this.committed && this.open.size === 0) this.finished?.();
  }

  /** @param {CloseEvent} event */
  closed(event) {
    this.fail(event.reason || "The connection to the server was lost. Speech since the last text is lost.");
  }

  /** @param {string} message */
  fail(message) {
    this.close();
    this.handlers.failed(message);
  }
}
