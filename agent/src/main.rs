//! The agent's program: everything is in the library, so that `passerelle dev` can call the same function.

use std::process::ExitCode;

fn main() -> ExitCode {
    passerelle_agent::run(std::env::args_os())
}
