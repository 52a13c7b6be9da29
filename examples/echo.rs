//! A WebSocket echo with the edge's own upgrade, which `scripts/autobahn.sh` tests. It prints its
//! address.
#![expect(clippy::print_stdout, reason = "its caller reads the address")]

use tailwater::{edge, runtime};

fn main() -> std::io::Result<()> {
    let listener = edge::bind(([127, 0, 0, 1], 0).into(), 1)?.remove(0);
    println!("ready ws://{}", listener.local_addr()?);
    runtime::single_threaded()?.block_on(edge::serve_echo(listener))
}
