//! `passerelle-hub`: see [`passerelle_hub::run`].

/// Messages are many small pieces of memory that come and go on several threads: the allocator of glibc was a tenth of the hub's
/// profile under calls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    passerelle_hub::run(std::env::args_os())
}
