//! The command line: one file per command. The only module that prints or uses `anyhow`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the only place that prints"
)]

mod accounts;
mod args;
mod auth_args;
mod bench;
mod broker;
mod cancel;
mod client_token;
mod completions;
mod conformance;
mod doctor;
mod edge;
mod edge_client;
mod export;
mod follow;
mod guard;
mod guarded;
mod import;
mod jobs;
mod kinds;
mod log;
mod man;
mod metrics;
mod purge;
mod recorder;
mod revoke;
mod setup;
mod show;
mod state;
mod submit;
mod table;
mod tail;
mod terminal;
mod token;
mod top;
mod up;
mod worker;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::time::uptime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::edge::SOCKETIO_LOG_LIMIT;
use crate::nats::{LOG_FILTER, LOG_LIMITS};

/// Durable job streams over NATS: workers publish a job's output chunk by chunk, and every client
/// gets all of it, live and in order, each event once.
#[derive(Debug, Parser)]
#[command(
    name = "tailwater",
    version = env!("TAILWATER_VERSION"),
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    /// What to log on stderr: a level, or a filter such as `tailwater=debug,warn`.
    #[arg(long, global = true, env = "TAILWATER_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log JSON, one object a line.
    #[arg(long, global = true, env = "TAILWATER_LOG_JSON")]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpCommand),
    Setup(setup::SetupCommand),
    Accounts(accounts::AccountsCommand),
    Edge(edge::EdgeCommand),
    Recorder(recorder::RecorderCommand),
    Worker(worker::WorkerCommand),
    Submit(submit::SubmitCommand),
    Tail(tail::TailCommand),
    State(state::StateCommand),
    Jobs(jobs::JobsCommand),
    Kinds(kinds::KindsCommand),
    Top(top::TopCommand),
    Doctor(doctor::DoctorCommand),
    Cancel(cancel::CancelCommand),
    Purge(purge::PurgeCommand),
    Export(export::ExportCommand),
    Import(import::ImportCommand),
    Token(token::TokenCommand),
    Revoke(revoke::RevokeCommand),
    Bench(bench::BenchCommand),
    Completions(completions::CompletionsCommand),
    Man(man::ManCommand),
    Conformance(conformance::ConformanceCommand),
    #[command(hide = true)]
    Guard(guard::GuardCommand),
}

/// The command line is invalid: `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// Parses the command line and runs the command. Exit codes: 0 success, 1 the job failed, 2 the
/// command failed, 3 the job was cancelled, 64 invalid usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let shown = error.print();
            let wrong = error.use_stderr() || shown.is_err();
            return if wrong {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let log = start_log(&cli);
    let outcome = match cli.command {
        Command::Up(command) => command.run(),
        Command::Setup(command) => command.run(),
        Command::Accounts(command) => command.run(),
        Command::Edge(command) => command.run(),
        Command::Recorder(command) => command.run(),
        Command::Worker(command) => command.run(),
        Command::Submit(command) => command.run(),
        Command::Tail(command) => command.run(),
        Command::State(command) => command.run(),
        Command::Jobs(command) => command.run(),
        Command::Kinds(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Cancel(command) => command.run(),
        Command::Purge(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Token(command) => command.run(),
        Command::Revoke(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Completions(command) => command.run(Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
        Command::Conformance(command) => command.run(),
        Command::Guard(command) => command.run(),
    };
    if let Some(log) = log {
        log.flush();
    }
    outcome.unwrap_or_else(|error| {
        // The reader of the output has closed it.
        let closed = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
        if error.downcast_ref().is_some_and(closed) {
            return ExitCode::SUCCESS;
        }
        eprintln!("tailwater: {error:#}");
        ExitCode::from(args::FAILED)
    })
}

/// Starts the log. `None` if the thread that writes it cannot be started.
fn start_log(cli: &Cli) -> Option<log::LogWriter> {
    let serves = matches!(
        cli.command,
        Command::Up(_) | Command::Edge(_) | Command::Recorder(_) | Command::Worker(_)
    );
    let level = if serves { "info" } else { "warn" };
    let mut default = format!("error,{LOG_FILTER},tailwater={level}");
    if matches!(cli.command, Command::Up(_)) {
        // It prints the address of NATS itself.
        default += ",tailwater::nats=warn";
    }
    let filter =
        EnvFilter::try_new(cli.log.as_deref().unwrap_or(&default)).unwrap_or_else(|error| {
            eprintln!("tailwater: invalid log filter, using the default: {error}");
            EnvFilter::new(&default)
        });
    let limited = filter_fn(|metadata| {
        let is_of = |module: &str| {
            let rest = metadata.target().strip_prefix(module);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let mut limits = LOG_LIMITS.iter().chain([&SOCKETIO_LOG_LIMIT]);
        limits.all(|(module, level)| !is_of(module) || metadata.level() <= level)
    });
    // Without its thread, nothing is logged.
    let writer = log::LogWriter::to(std::io::stderr())
        .inspect_err(|error| eprintln!("tailwater: cannot write a log: {error}"))
        .ok()?;
    let log = tracing_subscriber::registry().with(filter).with(limited);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer.clone());
    if cli.log_json {
        log.with(lines.json()).init()
    } else if std::io::stderr().is_terminal() {
        // A person reads it: in colour, without the modules, and with the time since the start.
        log.with(lines.with_target(false).with_timer(uptime()))
            .init()
    } else {
        log.with(lines.with_ansi(false)).init()
    }
    Some(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example() {
        for command in Cli::command()
            .get_subcommands_mut()
            .filter(|command| !command.is_hide_set())
        {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
