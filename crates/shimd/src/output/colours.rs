use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};

/// Whether it is a terminal, and the user has not set `NO_COLOR` or the like.
pub(crate) fn wants_colours(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}
