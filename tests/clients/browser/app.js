// A small page in React: what an application does with the hooks.
import { StrictMode, createElement as make, useState } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import { renderToString } from "react-dom/server.browser";
import { connect } from "tailwater";
import { TailwaterProvider, useJob, useSubmit } from "tailwater/react";

function Chat({ name, given }) {
  const { submit, job, status, error } = useSubmit();
  const { text, status: state, ended, missing } = useJob(given ?? job, { persist: "session" });
  const shown = { name, submitted: status, error: error?.code ?? null, state, ended, missing };
  return make(
    "div",
    { id: name },
    make("button", { onClick: () => submit(window.submission).catch(() => {}) }, "Submit"),
    make("output", {}, text),
    make("code", {}, JSON.stringify(shown)),
  );
}

function App({ client }) {
  const [isTwice, setTwice] = useState(false);
  const [job, setJob] = useState(null);
  globalThis.watchToo = (job) => (setJob(job), setTwice(true));
  return make(
    TailwaterProvider,
    { client },
    make(Chat, { name: "first" }),
    isTwice && make(Chat, { name: "second", given: job }),
  );
}

/** The page as a server renders it. Without a window, and without a connection. */
export const html = (url) => renderToString(make(StrictMode, {}, make(App, { client: connect(url) })));

export function start(url) {
  const client = connect(url);
  const app = make(StrictMode, {}, make(App, { client }));
  const root = document.getElementById("app");
  const mounted = root.childElementCount ? hydrateRoot(root, app, { onRecoverableError: reportError }) : createRoot(root);
  if (!root.childElementCount) mounted.render(app);
  window.unmount = () => mounted.unmount();
  window.client = client;
}
