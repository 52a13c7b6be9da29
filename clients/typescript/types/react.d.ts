import type { ReactElement, ReactNode } from "react";
import type { Client, JobView, Queued, Submit, Submitted, TailwaterError, WatchOptions } from "../src/types.ts";

/** Gives the hooks below it their client. */
export declare function TailwaterProvider(props: { client: Client; children?: ReactNode }): ReactElement;
/** The client of the nearest `TailwaterProvider`. */
export declare function useTailwater(): Client;
/** What a job has produced so far; renders again as it grows. Without a job it is empty. */
export declare function useJob(
  job: string | null | undefined,
  options?: Pick<WatchOptions, "persist">,
): JobView & { ended: boolean; failure: TailwaterError | undefined };
/** Submits jobs. `job` is the id of the last one, known at once: pass it to `useJob`. */
export declare function useSubmit(): {
  status: "idle" | "queued" | "sent" | "failed";
  job: string | undefined;
  error: TailwaterError | undefined;
  submit: (submission: Submit) => Queued<Submitted>;
};
