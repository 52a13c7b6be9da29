// The unmodified client of OpenAI for Node.js against a real edge. The argument is a JSON object:
//   url       the address of the edge
//   scenario  one of the functions below
//   body      fields that are sent with the request
// Prints one JSON object at its end; `openai_client.py` prints the same. A scenario that is interrupted from outside prints
// `{"begun": true}` after some text.
import { createRequire } from "node:module";
const load = createRequire(new URL("../../.tools/node/package.json", import.meta.url));
const { OpenAI } = load("openai");

const { url, scenario, body = {} } = JSON.parse(process.argv[2]);
let requests = 0;
const counted = (input, init) => (requests++, fetch(input, init));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", fetch: counted });
const print = (value) => console.log(JSON.stringify(value));
const messages = [{ role: "user", content: "hi" }];
const chat = { model: "demo", messages, ...body };
const answer = { model: "demo", input: "hi", ...body };
// src/config/edge.rs
const CANCEL_ANSWER_WAIT = 5000;

async function textOf(stream, onText = () => {}) {
  let text = "";
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    onText(text);
  }
  return text;
}

const scenarios = {
  async complete() {
    const { data, response } = await client.chat.completions.create(chat).withResponse();
    const again = await client.chat.completions.retrieve(data.id);
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    const [{ message, finish_reason }] = data.choices;
    const isSame = again.choices[0].message.content === message.content;
    const job = response.headers.get("x-tailwater-job");
    return { text: message.content, finish: finish_reason, isSame, isJob: job === data.id, models };
  },
  async stream() {
    return { text: await textOf(await client.chat.completions.create({ ...chat, stream: true })) };
  },
  /** Reads some events of the stream, drops it, and resumes with the id of the last one. */
  async resume() {
    const response = await client.chat.completions.create({ ...chat, stream: true }).asResponse();
    const job = response.headers.get("x-tailwater-job");
    let read = "";
    const decoder = new TextDecoder();
    for await (const bytes of response.body) {
      read += decoder.decode(bytes, { stream: true });
      if (read.split("\n\n").length > 6) break;
    }
    // One read may have brought more.
    const blocks = read.split("\n\n").slice(0, 6);
    const field = (block, name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
    const first = blocks.map((block) => JSON.parse(field(block, "data")).choices[0].delta.content ?? "").join("");
    const last = blocks.map((block) => field(block, "id")).findLast((id) => id);
    const path = `/chat/completions/${job}`;
    const rest = await textOf(await client.get(path, { stream: true, headers: { "Last-Event-ID": last } }));
    const whole = await textOf(await client.get(path, { stream: true, query: { stream: true } }));
    return { text: first + rest, isSame: whole === first + rest, hasBoth: first !== "" && rest !== "" };
  },
  async superseded() {
    let isBegun = false;
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    const text = await textOf(stream, (text) => {
      if (text.length < 40 || isBegun) return;
      isBegun = true;
      print({ begun: true });
    });
    return { text };
  },
  async refused() {
    const errors = [];
    const attempt = async (request) => {
      const before = requests;
      const error = await request().then(() => null, (error) => error);
      errors.push([error?.constructor.name, error?.status ?? null, error?.code, requests - before]);
    };
    await attempt(() => client.chat.completions.create({ ...chat, model: "unknown" }));
    await attempt(() => client.chat.completions.create({ ...chat, words: -1 }));
    await attempt(async () => textOf(await client.chat.completions.create({ ...chat, words: -1, stream: true })));
    await attempt(() => client.responses.retrieve("resp_unknown"));
    await attempt(() => client.responses.create({ ...answer, previous_response_id: "resp_1" }));
    await attempt(() => client.models.retrieve("unknown"));
    return { errors };
  },
  async background() {
    let response = await client.responses.create({ ...answer, background: true });
    const first = response.status;
    for (; ["queued", "in_progress"].includes(response.status); ) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      response = await client.responses.retrieve(response.id);
    }
    const whole = await client.responses.create(answer);
    return { first: ["queued", "in_progress"].includes(first), status: response.status, text: response.output_text, isSame: whole.output_text === response.output_text };
  },
  /** Drops the stream of a response, and continues after the last number. */
  async starting_after() {
    const events = [];
    let id;
    for await (const event of await client.responses.create({ ...answer, background: true, stream: true })) {
      events.push(event);
      id ??= event.response.id;
      if (events.length === 9) break;
    }
    const starting_after = events.at(-1).sequence_number;
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after })) events.push(event);
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const isDense = events.every((event, index) => event.sequence_number === index);
    const final = await client.responses.stream({ response_id: id }).finalResponse();
    const last = events.at(-1);
    return { text: deltas.map((event) => event.delta).join(""), isDense, last: last.type, isSame: final.output_text === last.response.output[0].content[0].text };
  },
  async cancel() {
    const { id } = await client.responses.create({ ...answer, background: true });
    const asked = Date.now();
    let response = await client.responses.cancel(id);
    // After that long the edge answers even if the worker has not stopped the job.
    const isLate = Date.now() - asked >= CANCEL_ANSWER_WAIT;
    while (isLate && ["queued", "in_progress"].includes(response.status)) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      response = await client.responses.retrieve(id);
    }
    const again = await client.responses.cancel(id);
    return { status: response.status, again: again.status };
  },
};
print(await scenarios[scenario]());
