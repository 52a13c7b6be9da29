// What a program in TypeScript may write. It is only compiled: tsc finds types that do not fit their use.
import { EMPTY, TailwaterError, apply, connect } from "tailwater";
import type { Client, JobView, Watch } from "tailwater";

export async function example(signal: AbortSignal): Promise<string> {
  const tw: Client = connect("https://edge.example", { token: async () => "secret", queue: "indexeddb", share: true });
  const queued = tw.submit({ kind: "demo", input: { words: 3 } }, { signal });
  const watch: Watch = tw.watch(queued.item.job ?? (await queued).job, { signal, onEvent: ({ type, seq }) => [type, seq] });
  for await (const item of watch) {
    if ("op" in item) continue;
    if (item.type === "model:chunk:v1" && "text" in item) item.text.trim();
  }
  // @ts-expect-error A status has a few values only.
  watch.status === "finished";
  const view: JobView = apply(EMPTY, { op: "missing", job: watch.job, from: 1, to: 2, reason: "expired" });
  const { jobs } = await tw.jobs({ status: "running", signal });
  const { output } = await tw.state(jobs[0].job, { wait: 10 });
  await tw.cancel(watch.job).catch((error: unknown) => error instanceof TailwaterError && error.code);
  return view.text + watch.text + output;
}
