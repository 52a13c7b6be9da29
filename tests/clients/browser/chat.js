// A chat in React with `useChat`, against an edge of another origin.
import { Chat, useChat } from "@ai-sdk/react";
import * as sdk from "ai";
import { createElement as make, useEffect } from "react";
import { createRoot } from "react-dom/client";

// A reload shows the same chat.
const saved = JSON.parse(sessionStorage.getItem("chat"));
const given = saved ?? { id: crypto.randomUUID(), messages: [] };
const textOf = ({ parts }) => parts.map(({ type, text }) => (type === "text" ? text : "")).join("");

function Page({ options }) {
  const { messages, ...rest } = useChat(options);
  useEffect(() => sessionStorage.setItem("chat", JSON.stringify({ id: given.id, messages })), [messages]);
  window.chat = { messages, ...rest };
  return messages.map((message) => make("p", { key: message.id, "data-role": message.role }, textOf(message)));
}

export function start(edge, kind, hasOwnChat) {
  const transport =
    kind === "http"
      ? new sdk.DefaultChatTransport({ api: `${edge}/api/chat` })
      : new sdk.WebSocketChatTransport({ url: `${edge.replace("http", "ws")}/ws`, protocols: ["ai-sdk.chat.v1"] });
  const resume = saved !== null;
  const options = hasOwnChat ? { chat: new Chat({ ...given, transport }), resume } : { ...given, transport, resume };
  createRoot(document.getElementById("app")).render(make(Page, { options }));
}
