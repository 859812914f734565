//! `shoald`, the daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a supervisor must stay a process with one thread.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(shoal_node::supervisor::SUBCOMMAND) {
        return shoal_node::supervisor::main(arguments);
    }
    ExitCode::SUCCESS
}
