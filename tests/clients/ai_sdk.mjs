// A chat of the unmodified AI SDK against a real edge: `AbstractChat` is what `useChat` runs. The argument is a JSON object:
//   url       the address of the edge
//   sdk       the package: "ai" or "ai6"
//   transport "http" or "websocket"
//   scenario  one of the functions below
//   chat      the id of the chat
//   body      fields that are sent with the message
//   after     a scenario that interrupts the answer does it after this many characters
// Prints `{"begun": true}` once there are that many, and what the page would show, one JSON line each.
import { createRequire } from "node:module";
const load = createRequire(new URL("../../.tools/node/package.json", import.meta.url));

const { url, sdk, transport: kind, scenario, chat: id, body = {}, after = 40 } = JSON.parse(process.argv[2]);
const { AbstractChat, DefaultChatTransport, WebSocketChatTransport } = load(sdk);

const print = (value) => console.log(JSON.stringify(value));
const textOf = (message) => (message?.parts ?? []).filter((part) => part.type === "text").map((part) => part.text).join("");

/** The state that a hook of React would keep. */
class State {
  status = "ready";
  error = undefined;
  messages = [];
  experimental_queuedMessages = [];
  pushMessage = (message) => this.replaceMessage(this.messages.length, message);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => {
    this.messages = [...this.messages.slice(0, index), structuredClone(message), ...this.messages.slice(index + 1)];
    if (message.role === "assistant" && textOf(message).length >= after) begin();
  };
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {}

let begin;
const begun = new Promise((resolve) => (begin = resolve)).then(() => print({ begun: true }));

/** A network that breaks once, after some bytes of an answer. */
// Fewer than the text alone has, which may be one event.
let bytesLeft = scenario === "cut" ? 700 : Infinity;
async function breakingFetch(input, init) {
  const response = await fetch(input, init);
  if (!response.body || bytesLeft === Infinity) return response;
  const broken = new TransformStream({
    transform(chunk, controller) {
      bytesLeft -= chunk.length;
      if (bytesLeft > 0) return controller.enqueue(chunk);
      bytesLeft = Infinity;
      controller.error(new TypeError("network error"));
    },
  });
  return new Response(response.body.pipeThrough(broken), { status: response.status, headers: response.headers });
}

const transport =
  kind === "http"
    ? new DefaultChatTransport({ api: `${url}/api/chat`, fetch: breakingFetch })
    : new WebSocketChatTransport({ url: `${url}/ws`, protocols: ["ai-sdk.chat.v1"], webSocket: load("ws").WebSocket });
const chat = new Chat({ id, transport, state: new State() });

function report(more = {}) {
  const last = chat.messages.at(-1);
  print({
    status: chat.status,
    error: chat.error?.message ?? null,
    messages: chat.messages.length,
    role: last?.role,
    text: last?.role === "assistant" ? textOf(last) : null,
    parts: last?.parts,
    metadata: last?.metadata ?? null,
    ...more,
  });
}

/** Resumes the answer. `wasCut` is whether the page had only a part of it. */
async function resume() {
  const before = textOf(chat.messages.at(-1));
  await chat.resumeStream();
  report({ wasCut: before.length < textOf(chat.messages.at(-1)).length });
}

const send = () => chat.sendMessage({ text: "hi" }, { body });

const scenarios = {
  /** Reads the whole answer. */
  async whole() {
    await send();
    report();
  },
  /** The network breaks; the page resumes. */
  async cut() {
    if (kind === "websocket") begun.then(() => transport.close());
    await send();
    await resume();
  },
  /** The page disconnects, which stops nothing, and resumes. */
  async left() {
    const sent = send();
    await begun;
    await chat.stop();
    await sent;
    await resume();
  },
  /** The person stops the answer; then there is nothing to resume. */
  async stopped() {
    const sent = send();
    await begun;
    const answer = await fetch(`${url}/api/chat/${id}/stop`, { method: "POST" });
    print(await answer.json());
    await sent;
    report();
    print({ resumed: (await transport.reconnectToStream({ chatId: id })) !== null });
  },
  /** Another attempt may supersede the first. A page of an old SDK then resumes. */
  async superseded() {
    await send();
    const wasError = chat.status === "error";
    for (let tries = 0; chat.status === "error" && tries < 5; tries++) await chat.resumeStream();
    print({ wasError });
    report();
  },
};
await scenarios[scenario]();
if (kind === "websocket") transport.close();
