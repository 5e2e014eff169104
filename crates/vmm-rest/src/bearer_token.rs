use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[cfg(feature = "server")]
use subtle::ConstantTimeEq;

/// The secret that authenticates a client over TCP.
///
/// The `Debug` form does not show it. The server compares tokens in constant time.
#[derive(Clone)]
pub struct BearerToken(
    #[cfg_attr(
        not(any(feature = "client", feature = "server")),
        expect(dead_code, reason = "only the client and the server use it")
    )]
    String,
);

/// Why a text or a file is not a [`BearerToken`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The token file cannot be read.
    #[error("cannot read the token file {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The content of the file is not a token.
    #[error("the token in {} is invalid", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with the token.
        #[source]
        reason: Box<TokenError>,
    },
    /// The token is too short to be secret.
    #[error(
        "a token needs at least {} characters; create one with `openssl rand -hex 32`",
        BearerToken::MIN_CHARS
    )]
    TooShort,
    /// The token has characters that cannot be sent in an HTTP header.
    #[error("a token can only have visible ASCII characters, without spaces")]
    Characters,
}

impl BearerToken {
    const MIN_CHARS: usize = 16;

    /// Creates a token from a text, without the white space around it.
    ///
    /// # Errors
    ///
    /// [`TokenError::TooShort`] for fewer than 16 characters, and [`TokenError::Characters`] for
    /// characters that are not visible ASCII.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() < Self::MIN_CHARS {
            return Err(TokenError::TooShort);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads a token from a file. Warns if other users can read or change the file.
    ///
    /// This function blocks: in async code, call it with `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Read`] if the file cannot be read, and [`TokenError::File`] if its content is not
    /// a token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(failed)?;
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o027 != 0 {
            let path = path.display();
            tracing::warn!(%path, "other users can read or change the token; run `chmod g-w,o=` on its file");
        }
        Self::new(&text).map_err(|reason| TokenError::File {
            path: path.to_owned(),
            reason: Box::new(reason),
        })
    }

    #[cfg(feature = "server")]
    pub(crate) fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }

    #[cfg(feature = "client")]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[cfg(feature = "server")]
    #[test]
    fn a_token_matches_only_itself() {
        let token = BearerToken::new(" 0123456789abcdef\n").unwrap();
        assert!(token.matches(b"0123456789abcdef"));
        for other in [
            "",
            "0123456789abcde",
            "0123456789abcdeF",
            "0123456789abcdef0",
        ] {
            assert!(!token.matches(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{token:?}"), "BearerToken(..)");
    }

    #[test]
    fn an_invalid_token_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "short\n").unwrap();
        let error = BearerToken::read(&path).unwrap_err();
        assert!(error.to_string().contains(&*path.to_string_lossy()));
        let reason = error.source().unwrap().to_string();
        assert!(reason.contains("16"), "{reason}");
        fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(BearerToken::read(&path).unwrap().0, "0123456789abcdef");
    }

    #[test]
    fn short_tokens_and_non_ascii_tokens_are_rejected() {
        for text in ["", "short", "               short  "] {
            assert!(matches!(BearerToken::new(text), Err(TokenError::TooShort)));
        }
        for text in ["sixteen letters and more", "sixteen-lettérs-and-more"] {
            assert!(matches!(
                BearerToken::new(text),
                Err(TokenError::Characters)
            ));
        }
    }
}
