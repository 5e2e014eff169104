use std::collections::BTreeMap;
use std::env;

use clap::Args;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::RestartPolicy;

/// The arguments that describe a new box.
#[derive(Args, Debug)]
pub(super) struct BoxArgs {
    /// Name of the box
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable; without a value, copy it from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory limit in MiB
    #[arg(short, long, value_name = "MIB")]
    memory: Option<u32>,
    /// Program that runs the command, in place of the entrypoint of the image
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Keep the box running when the daemon ends; the next daemon finds it again
    #[arg(long)]
    outlive: bool,
    /// When to start the box again after it has ended: no, on-failure, on-failure:MAX, always or
    /// unless-stopped [default: no]
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// Image of the box: `idle`, an image of `shimd image build`, or a file in the image directory of
    /// the daemon
    image: String,
    /// Command to run, in place of the command of the image
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl BoxArgs {
    pub(super) fn into_request(self) -> CreateBoxRequest {
        let mut request = CreateBoxRequest::of(self.image).detach(self.outlive);
        request.restart_policy = self.restart.map(|policy| policy.to_string());
        request.name = self.name;
        request.env = Some(
            self.env
                .iter()
                .filter_map(|arg| parse_variable(arg))
                .collect(),
        )
        .filter(|env: &BTreeMap<_, _>| !env.is_empty());
        request.working_dir = self.workdir;
        request.cpus = self.cpus;
        request.memory_mib = self.memory;
        request.entrypoint = self.entrypoint.map(|program| vec![program]);
        request.cmd = Some(self.command).filter(|command| !command.is_empty());
        request
    }
}

/// Parses `NAME[=VALUE]` as docker does: returns `None` for a name without a value that is not set
/// in this environment.
pub(super) fn parse_variable(arg: &str) -> Option<(String, String)> {
    match arg.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((arg.to_owned(), env::var(arg).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_without_a_value_is_copied_from_the_environment() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(parse_variable("A=b=c"), pair("A", "b=c"));
        assert_eq!(parse_variable("A="), pair("A", ""));
        assert_eq!(
            parse_variable("PATH"),
            pair("PATH", &env::var("PATH").unwrap())
        );
        assert_eq!(parse_variable("SURELY_NOT_SET_ANYWHERE"), None);
    }
}
