use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// The source or destination of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `-`: a tar archive on stdin or stdout.
    Stream,
    Local(PathBuf),
    Guest {
        bx: String,
        /// Absolute.
        path: String,
    },
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(arg: &str) -> Result<Self, Infallible> {
        if arg == "-" {
            return Ok(Self::Stream);
        }
        Ok(match arg.split_once(':') {
            // A path with a slash or dot at its begin is local, as for docker.
            Some((bx, path)) if !bx.is_empty() && !arg.starts_with(['/', '.']) => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                Self::Guest {
                    bx: bx.to_owned(),
                    path: format!("{slash}{path}"),
                }
            }
            _ => Self::Local(arg.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_separates_a_box_from_its_path() {
        let place = |arg: &str| arg.parse::<Place>().unwrap();
        let guest = |path: &str| Place::Guest {
            bx: "web".to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(place("-"), Place::Stream);
        assert_eq!(place("web:/etc/."), guest("/etc/."));
        assert_eq!(place("web:etc:a"), guest("/etc:a"));
        assert_eq!(place("web:"), guest("/"));
        for local in ["a", "./a:b", "/a:b", "../a:b", ":a", "dir/"] {
            assert_eq!(place(local), Place::Local(local.into()));
        }
    }
}
