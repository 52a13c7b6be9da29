// `tailwater/react`: hooks over the client. Rendering on a server opens no connection.

/** @import { Client, Queued, Submit, Submitted, TailwaterError, WatchOptions } from "./types.ts" */
import { createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { EMPTY } from "tailwater";

const Context = createContext(/** @type {Client | undefined} */ (undefined));

/**
 * Gives the hooks below it their client.
 * @param {{ client: Client, children?: import("react").ReactNode }} props
 */
export const TailwaterProvider = ({ client, children }) => createElement(Context.Provider, { value: client }, children);

/** The client of the nearest `TailwaterProvider`. */
export function useTailwater() {
  const client = useContext(Context);
  if (!client) throw new Error("No client: render a TailwaterProvider above this component.");
  return client;
}

/** @typedef {import("./types.ts").JobView & { ended: boolean, failure: TailwaterError | undefined }} Shown */
/** @type {Shown} */
const NOTHING = { ...EMPTY, ended: false, failure: undefined };

/**
 * What a job has produced so far; renders again as it grows. Without a job it is empty.
 * @param {string | null | undefined} job
 * @param {Pick<WatchOptions, "persist">} [options]
 * @returns {Shown}
 */
export function useJob(job, { persist } = {}) {
  const client = useTailwater();
  const store = useMemo(() => {
    let shown = NOTHING;
    return {
      read: () => shown,
      /** @param {() => void} changed */
      subscribe(changed) {
        if (!job) return () => {};
        const watch = client.watch(job, { persist });
        const update = () => {
          const { view, ended, failure } = watch;
          shown = { ...view, ended, failure };
          changed();
        };
        // It may have text already, from before a reload or from another component.
        update();
        const stop = watch.subscribe(update);
        return () => {
          stop();
          watch.close();
        };
      },
    };
  }, [client, job, persist]);
  return useSyncExternalStore(store.subscribe, store.read, () => NOTHING);
}

/** @typedef {{ status: "idle" | "queued" | "sent" | "failed", job: string | undefined, error: TailwaterError | undefined }} Submission */

/**
 * Submits jobs. `job` is the id of the last one, known at once: pass it to `useJob`.
 * @returns {Submission & { submit: (submission: Submit) => Queued<Submitted> }}
 */
export function useSubmit() {
  const client = useTailwater();
  const [state, setState] = useState(/** @type {Submission} */ ({ status: "idle", job: undefined, error: undefined }));
  const last = useRef(/** @type {Queued<Submitted> | undefined} */ (undefined));
  useEffect(() => () => void (last.current = undefined), []);
  const submit = useCallback(
    (/** @type {Submit} */ submission) => {
      const queued = client.submit(submission);
      last.current = queued;
      const show = (/** @type {TailwaterError} */ error) => {
        const { status, job } = queued.item;
        if (last.current === queued) setState({ status, job, error });
      };
      setState({ status: "queued", job: queued.item.job, error: undefined });
      queued.then(() => show(/** @type {any} */ (undefined)), show);
      return queued;
    },
    [client],
  );
  return { ...state, submit };
}
