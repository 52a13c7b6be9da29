//! The `tailwater` program: parses the command line and runs one command.

fn main() -> std::process::ExitCode {
    tailwater::cli::main()
}
