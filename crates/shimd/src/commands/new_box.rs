use std::collections::BTreeMap;
use std::env;

use clap::Args;
use vmm_rest::wire::CreateBoxRequest;

/// What a box is to be.
#[derive(Args, Debug)]
pub(super) struct NewBox {
    /// A name for it, beside its id
    #[arg(long)]
    name: Option<String>,
    /// A variable of its environment; without a value, that of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Where its command starts
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// How many virtual processors it gets
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// How much memory it gets, in MiB
    #[arg(short, long, value_name = "MIB")]
    memory: Option<u32>,
    /// What comes before the command, in place of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Let it go on when the daemon ends, which finds it again when it is next started
    #[arg(long)]
    outlive: bool,
    /// What it is made from: `idle`, or a file of the daemon's folder of images
    image: String,
    /// What it runs, in place of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl NewBox {
    pub(super) fn request(self) -> CreateBoxRequest {
        let mut request = CreateBoxRequest::of(self.image).detach(self.outlive);
        request.name = self.name;
        request.env = Some(self.env.iter().filter_map(|word| variable(word)).collect())
            .filter(|env: &BTreeMap<_, _>| !env.is_empty());
        request.working_dir = self.workdir;
        request.cpus = self.cpus;
        request.memory_mib = self.memory;
        request.entrypoint = self.entrypoint.map(|program| vec![program]);
        request.cmd = Some(self.command).filter(|command| !command.is_empty());
        request
    }
}

/// As docker has it: one that is not set here is not set there.
fn variable(word: &str) -> Option<(String, String)> {
    match word.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((word.to_owned(), env::var(word).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_value_is_taken_from_the_environment() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(variable("A=b=c"), pair("A", "b=c"));
        assert_eq!(variable("A="), pair("A", ""));
        assert_eq!(variable("PATH"), pair("PATH", &env::var("PATH").unwrap()));
        assert_eq!(variable("SURELY_NOT_SET_ANYWHERE"), None);
    }
}
