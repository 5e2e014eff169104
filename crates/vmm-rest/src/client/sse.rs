/// An incremental parser of server-sent events.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    name: String,
    data: String,
}

/// The longest line, and the longest data of an event, in bytes; the rest is discarded. No event of this
/// API is longer.
const EVENT_MAX_BYTES: usize = 1 << 20;

/// A server-sent event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SseEvent {
    pub(super) name: String,
    pub(super) data: String,
}

impl SseParser {
    /// Parses the next chunk of the stream, and returns the events that it completes.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            let free = EVENT_MAX_BYTES.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(free)]);
            if line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                events.extend(self.parse_line(line.trim_end_matches(['\n', '\r'])));
            }
        }
        events
    }

    fn parse_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = SseEvent {
                name: std::mem::take(&mut self.name),
                data: std::mem::take(&mut self.data),
            };
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.data
                    .truncate(self.data.floor_char_boundary(EVENT_MAX_BYTES));
            }
            // A comment, or a field that this API does not use.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_boundaries_do_not_change_the_events() {
        let stream =
            ": hello\n\nevent: created\r\ndata: {\"a\":\ndata:1}\n\nid: 3\ndata: x\n\n:\n\nda";
        let expected = [("created", "{\"a\":\n1}"), ("", "x")].map(|(name, data)| SseEvent {
            name: name.to_owned(),
            data: data.to_owned(),
        });
        for size in 1..=stream.len() {
            let mut parser = SseParser::default();
            let events: Vec<_> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|chunk| parser.push(chunk))
                .collect();
            assert_eq!(events, expected, "chunks of {size} bytes");
        }
    }

    #[test]
    fn the_data_of_an_event_is_truncated() {
        let mut parser = SseParser::default();
        let line = format!("data: {}\n", "ä".repeat(EVENT_MAX_BYTES / 8));
        for _ in 0..8 {
            assert_eq!(parser.push(line.as_bytes()), []);
        }
        let events = parser.push(b"\ndata: x\n\n");
        assert!(
            events[0].data.len() <= EVENT_MAX_BYTES,
            "{}",
            events[0].data.len()
        );
        assert_eq!(events[1].data, "x");
    }
}
