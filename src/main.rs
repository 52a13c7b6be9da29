//! The `tailwater` program: parses the command line and runs one command.

/// Returns freed memory to the system. The system's own allocator keeps memory that lies below an
/// allocation still in use: after hostile requests had used 1.2 GiB for a moment, an edge kept all
/// of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tailwater::cli::main()
}
