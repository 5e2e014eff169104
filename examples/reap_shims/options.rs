/// What the command line asks for.
#[derive(Debug)]
pub struct Options {
    pub shims: usize,
    pub without_reaper: bool,
}

#[derive(Debug)]
pub enum Parsed {
    Run(Options),
    Help,
}

pub const HELP: &str = "\
Starts child processes as shims and plays the ways they die.

Usage: cargo run --example reap_shims -- [--shims N] [--without-reaper]

  --shims N          how many shims, 1 to 10000 (default 8)
  --without-reaper   the same deaths with nobody to collect them
  --help             this text

Exit status: 0 when no zombie is left and every registration was resolved, 1 otherwise, 2 for a
command line that cannot be understood. Without the reaper it is 0: leaving zombies is the point.
";

pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Parsed, String> {
    let mut options = Options {
        shims: 8,
        without_reaper: false,
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--without-reaper" => options.without_reaper = true,
            "--shims" => {
                let number = args.next().ok_or("--shims takes a number")?;
                options.shims = match number.parse() {
                    Ok(shims @ 1..=10_000) => shims,
                    _ => {
                        return Err(format!(
                            "--shims takes a number from 1 to 10000, not {number:?}"
                        ));
                    }
                };
            }
            "--help" | "-h" => return Ok(Parsed::Help),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Parsed::Run(options))
}
