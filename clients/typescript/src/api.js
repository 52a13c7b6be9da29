// Requests over HTTP: the token, and errors as the edge reports them. A request is repeated only after its token expired.

/** @import { Options } from "./types.ts" */
/** @typedef {ReturnType<typeof createApi>} Api */

/** Why a request failed; see types.ts. */
export class TailwaterError extends Error {
  name = "TailwaterError";
  /**
   * @param {string} code Stable, for programs.
   * @param {string} message For people.
   * @param {boolean} retry Whether the same request may succeed later.
   * @param {number} wait How long to wait before that, at least, in milliseconds.
   */
  constructor(code, message, retry = false, wait = 0) {
    super(message);
    this.code = code;
    this.retry = retry;
    this.wait = wait;
  }
}

/**
 * @param {string} url
 * @param {Options["token"]} given
 */
export function createApi(url, given) {
  /** @type {Promise<string | undefined> | undefined} */
  let asked;

  /**
   * The token; a function is asked once, until its token is refused.
   * @param {boolean} [refused]
   */
  async function token(refused) {
    if (typeof given !== "function") return given;
    if (refused) asked = undefined;
    try {
      return await (asked ??= Promise.resolve(given()));
    } catch (error) {
      asked = undefined;
      throw new TailwaterError("no_token", `No token: ${error}`, true);
    }
  }

  /**
   * @param {string} path
   * @param {RequestInit & { headers?: Record<string, string> }} [init]
   * @param {boolean} [refused] Whether the token was refused.
   * @returns {Promise<Response>}
   */
  async function request(path, init = {}, refused) {
    const bearer = await token(refused);
    const headers = { ...init.headers, ...(bearer && { authorization: `Bearer ${bearer}` }) };
    const response = await fetch(url + path, { ...init, headers }).catch((error) => {
      if (init.signal?.aborted) throw error;
      throw new TailwaterError("unreachable", error.message, true);
    });
    const { ok, status } = response;
    if (ok) return response;
    if (status === 401 && !refused && typeof given === "function") return request(path, init, true);
    const { code = `http_${status}`, title = code, detail = title } = await response.json().catch(() => ({}));
    const wait = 1000 * Number(response.headers.get("retry-after"));
    throw new TailwaterError(code, detail, status > 499 || status === 408 || status === 429, wait || 0);
  }

  return {
    url,
    token,
    request,

    /**
     * A JSON answer.
     * @param {string} path
     * @param {{ signal?: AbortSignal }} options The rest is the query.
     */
    async read(path, { signal, ...query }) {
      const given = Object.entries(query).filter(([, value]) => value != null);
      const search = new URLSearchParams(/** @type {[string, string][]} */ (given));
      return (await request(`${path}?${search}`, { headers: { accept: "application/json" }, signal })).json();
    },

    /**
     * @param {string} path
     * @param {unknown} body
     * @param {AbortSignal} [signal]
     * @param {string} [key] The idempotency key.
     */
    async post(path, body, signal, key) {
      const headers = { "content-type": "application/json", ...(key && { "idempotency-key": key }) };
      return (await request(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
    },
  };
}

/** Why a watch has no end. */
export const closed = () => new TailwaterError("closed", "Closed by this page.");

/** @param {string} job */
export const jobPath = (job) => `/api/jobs/${encodeURIComponent(job)}`;
