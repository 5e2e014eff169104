use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// A secret that lets a client in over TCP.
///
/// Its `Debug` form does not show it; comparing takes the same time wherever two tokens differ.
#[derive(Clone)]
pub struct BearerToken(String);

/// Why something cannot be a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds none.
    #[error("{} holds no token: {reason}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        reason: Box<TokenError>,
    },
    /// It is too short to be a secret.
    #[error(
        "a token needs at least {} characters: try `openssl rand -hex 32`",
        BearerToken::MIN
    )]
    TooShort,
    /// It could not be sent in a header.
    #[error("a token consists of visible ASCII characters, without spaces")]
    Characters,
}

impl BearerToken {
    const MIN: usize = 16;

    /// Of this text, without the white space around it.
    ///
    /// # Errors
    ///
    /// [`TokenError::TooShort`], and [`TokenError::Characters`] if it could not be sent.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() < Self::MIN {
            return Err(TokenError::TooShort);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        Ok(Self(text.to_owned()))
    }

    /// Of a file's text. Reads the disk: to be called where one may block.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(failed)?;
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o027 != 0 {
            let path = path.display();
            tracing::warn!(%path, "others can read or change the token: chmod g-w,o= it");
        }
        Self::new(&text).map_err(|reason| TokenError::File {
            path: path.to_owned(),
            reason: Box::new(reason),
        })
    }

    pub(crate) fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }

    pub(crate) fn reveal(&self) -> &str {
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
    use super::*;

    #[test]
    fn a_token_matches_itself_only() {
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
    fn a_file_without_a_token_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "short\n").unwrap();
        let refused = BearerToken::read(&path).unwrap_err().to_string();
        assert!(
            refused.contains(&*path.to_string_lossy()) && refused.contains("16"),
            "{refused}"
        );
        fs::write(&path, "0123456789abcdef\n").unwrap();
        assert!(
            BearerToken::read(&path)
                .unwrap()
                .matches(b"0123456789abcdef")
        );
    }

    #[test]
    fn what_is_no_secret_or_cannot_be_sent_is_no_token() {
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
