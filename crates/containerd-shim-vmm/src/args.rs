use std::path::PathBuf;

use crate::error::ShimError;

/// The arguments of the program, in the form of the package `flag` of Go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// The namespace of containerd.
    pub(crate) namespace: String,
    /// The ID of the container.
    pub(crate) id: String,
    /// The bundle of the container, if it is not the working directory.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) action: Action,
}

/// What the program does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// Starts a server, or finds that of the pod, and prints its address.
    #[default]
    Start,
    /// Cleans up after a server that has ended, and prints how the container ended.
    Delete,
    /// Serves the Task API on the socket that is its stdin.
    Serve,
    /// Sends the events that a server has left in the directory of its pod, which is given as the bundle.
    Forward,
    /// Continues the cleanup of `delete` in the directory of a pod, which is given as the bundle, then sends its events.
    Finish,
    Version,
    Info,
}

impl Args {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, ShimError> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-') else {
                parsed.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "serve" => Action::Serve,
                    "forward" => Action::Forward,
                    "finish" => Action::Finish,
                    _ => return Err(ShimError::Usage(arg)),
                };
                return Ok(parsed);
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, mut value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || value.take().or_else(|| args.next()).unwrap_or_default();
            match name {
                "v" | "version" => parsed.action = Action::Version,
                "info" => parsed.action = Action::Info,
                "debug" => {}
                "namespace" => parsed.namespace = value(),
                "id" => parsed.id = value(),
                "bundle" => {
                    parsed.bundle = Some(value().into()).filter(|path: &PathBuf| path.is_absolute())
                }
                // Events go through the ttrpc address of containerd, in the environment.
                "address" | "publish-binary" | "socket" => drop(value()),
                _ => return Err(ShimError::Usage(arg)),
            }
        }
        match parsed.action {
            Action::Version | Action::Info => Ok(parsed),
            _ => Err(ShimError::Usage("no action".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ShimError> {
        Args::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn the_arguments_of_containerd_are_parsed() {
        let args = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd";
        let delete = parse(&format!("{args} -id a -bundle /b -debug delete")).unwrap();
        let expected = Args {
            namespace: "default".to_owned(),
            id: "a".to_owned(),
            bundle: Some("/b".into()),
            action: Action::Delete,
        };
        assert_eq!(delete, expected);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("--id=a start").unwrap().id, "a");
    }

    #[test]
    fn an_unknown_argument_is_an_error() {
        for line in ["-nope x start", "restart", "-id a"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
