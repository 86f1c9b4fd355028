//! The one binary; everything is in the library, whose map is `lib.rs`.

fn main() -> std::process::ExitCode {
    keyway::cli::run()
}
