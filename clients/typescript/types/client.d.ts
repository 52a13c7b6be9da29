import type { Connect, JobEvent, JobView, Missing, TailwaterError as Failure } from "../src/types.ts";

export type * from "../src/types.ts";

/** Connects to an edge, when there is something to watch. By default to the edge that served the client. */
export declare const connect: Connect;
/** A job without events. */
export declare const EMPTY: JobView;
/** The view after one more event. `item` must be the next one. */
export declare function apply(view: JobView, item: JobEvent | Missing): JobView;
/** Why a request or a watch has failed. */
export declare const TailwaterError: abstract new () => Failure;
