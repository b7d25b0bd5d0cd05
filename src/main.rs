//! The program: parse, call one function, print one error.

use std::process::ExitCode;

fn main() -> ExitCode {
    match flashside::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flashside: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
