//! The cloud-side developer's program: client commands, and `dev`, a whole Passerelle on this machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    passerelle::run(std::env::args_os().collect())
}
