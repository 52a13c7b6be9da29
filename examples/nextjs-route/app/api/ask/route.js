// Submits a job with the server's token, and gives the page a token with which it may watch this one job. The page then follows
// the job at the edge: this handler ends at once, so it may run where functions are short-lived.
//
//   tailwater up --allow-origin http://127.0.0.1:3000
//   cd examples/nextjs-route && npm install && npm run dev
//
// With tokens:
//
//   openssl rand -base64 32 > secret && tailwater up --auth jwt --auth-secret secret
//   cd examples/nextjs-route && npm install
//   TAILWATER_TOKEN=$(tailwater token --auth-secret ../../secret --sub site --submit demo --ttl 1h) npm run dev

const edge = process.env.TAILWATER_EDGE ?? "http://127.0.0.1:4000";
const token = process.env.TAILWATER_TOKEN;

export async function POST(request) {
  const { words } = await request.json();
  // Check here who asks, and how often.
  const response = await fetch(`${edge}/api/jobs`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify({ kind: "demo", input: { words, rate: 20 } }),
  });
  const { id, watch_token, code, detail } = await response.json();
  if (!response.ok) return Response.json({ code, detail }, { status: 503 });
  // Only an edge that checks tokens gives one for watching.
  return Response.json({ edge, job: id, token: watch_token });
}
