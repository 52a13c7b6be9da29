//! The `tailwater` program: parses the command line and runs one command.

/// Gives memory back to the system once it is free. The system's own allocator keeps what lies
/// below something that is still in use: of 1.2 GiB that hostile requests had taken for a moment,
/// an edge kept all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    tailwater::cli::main()
}
