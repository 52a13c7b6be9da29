"use client";
import { useEffect, useRef, useState } from "react";
import { connect } from "tailwater";

export default function Page() {
  const [text, setText] = useState("");
  const client = useRef(null);
  useEffect(() => () => client.current?.close(), []);

  async function ask() {
    client.current?.close();
    const response = await fetch("/api/ask", { method: "POST", body: JSON.stringify({ words: 60 }) });
    const { edge, job, token } = await response.json();
    client.current = connect(edge, { token });
    client.current.watch(job, { onChange: ({ text }) => setText(text) });
  }

  return (
    <main>
      <button onClick={ask}>Ask</button>
      <pre style={{ whiteSpace: "pre-wrap" }}>{text}</pre>
    </main>
  );
}
