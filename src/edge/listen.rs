//! The listening sockets of an edge, one per thread. It accepts no connections.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{BACKLOG, SEND_BUFFER};

/// Listens at `addr`, once per thread; the kernel spreads connections over the sockets. With port
/// 0, all use the same free port.
///
/// # Errors
/// When the address is in use or does not belong to this machine.
pub fn bind(addr: SocketAddr, threads: usize) -> io::Result<Vec<TcpListener>> {
    // Checked without SO_REUSEPORT: with it, a second edge on the same address would silently take
    // half of the clients.
    let mut addr = addr;
    if addr.port() != 0 {
        drop(socket(addr, false)?);
    }
    let mut listeners = Vec::new();
    for _ in 0..threads.max(1) {
        let listener = TcpListener::from(socket(addr, threads > 1)?);
        addr = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
