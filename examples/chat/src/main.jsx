// A chat whose answers survive a reload, a lost connection, and the death of the worker that writes them.
//
//   tailwater up --chat-kind exec -- python3 examples/chat/answer.py
//   cd examples/chat && npm install && npm run dev
//
// With a model: `tailwater up --chat-kind chat`, and
// `tailwater worker --kind chat openai --base-url http://127.0.0.1:11434/v1 --model llama3.2`.
import { useChat } from "@ai-sdk/react";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

// A reload shows the same chat. Its answer comes from the log, also while it is being written.
const saved = JSON.parse(sessionStorage.getItem("chat"));
const chat = saved ?? { id: crypto.randomUUID(), messages: [] };

function Chat() {
  const { messages, sendMessage, status, error } = useChat({ ...chat, resume: saved !== null });
  const [text, setText] = useState("");
  useEffect(() => sessionStorage.setItem("chat", JSON.stringify({ id: chat.id, messages })), [messages]);

  function ask(event) {
    event.preventDefault();
    sendMessage({ text });
    setText("");
  }
  // Leaving the page stops nothing, so stopping is a request.
  const stop = () => fetch(`/api/chat/${chat.id}/stop`, { method: "POST" });

  return (
    <>
      {messages.map(({ id, role, parts }) => (
        <p key={id} data-role={role}>
          <b>{role}: </b>
          {parts.map((part, index) => part.type === "text" && <span key={index}>{part.text}</span>)}
        </p>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={ask}>
        <input aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} />
        <button disabled={status !== "ready"}>Send</button>
        <button type="button" onClick={stop} disabled={status === "ready"}>
          Stop
        </button>
      </form>
    </>
  );
}

createRoot(document.getElementById("app")).render(<Chat />);
