// The edge answers everything below /api; the page has no other server. `target` alone keeps the page's host name, so that the
// edge sees a page of its own origin.
export default {
  server: { proxy: { "/api": { target: process.env.EDGE ?? "http://127.0.0.1:4000" } } },
};
