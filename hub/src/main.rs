//! `passerelle-hub`: see [`passerelle_hub::run`].

fn main() -> std::process::ExitCode {
    passerelle_hub::run(std::env::args_os())
}
