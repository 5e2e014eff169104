/// Takes a stream of server-sent events apart, however it is cut into pieces.
#[derive(Debug, Default)]
pub(super) struct Sse {
    line: Vec<u8>,
    name: String,
    data: String,
}

/// A line that is longer, or the data of an event, is none of a box; the rest of it is left out.
const MAX: usize = 1 << 20;

/// An event as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SentEvent {
    pub(super) name: String,
    pub(super) data: String,
}

impl Sse {
    /// The events that end in this piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<SentEvent> {
        let mut events = Vec::new();
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            if line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                events.extend(self.line(line.trim_end_matches(['\n', '\r'])));
            }
        }
        events
    }

    fn line(&mut self, line: &str) -> Option<SentEvent> {
        if line.is_empty() {
            let event = SentEvent {
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
                self.data.truncate(self.data.floor_char_boundary(MAX));
            }
            // A comment, or what is of no use here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream =
            ": hello\n\nevent: created\r\ndata: {\"a\":\ndata:1}\n\nid: 3\ndata: x\n\n:\n\nda";
        let wanted = [("created", "{\"a\":\n1}"), ("", "x")].map(|(name, data)| SentEvent {
            name: name.to_owned(),
            data: data.to_owned(),
        });
        for size in 1..=stream.len() {
            let mut sse = Sse::default();
            let events: Vec<_> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| sse.push(piece))
                .collect();
            assert_eq!(events, wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_is_no_longer_than_a_line_may_be() {
        let mut sse = Sse::default();
        let line = format!("data: {}\n", "ä".repeat(MAX / 8));
        for _ in 0..8 {
            assert_eq!(sse.push(line.as_bytes()), []);
        }
        let events = sse.push(b"\ndata: x\n\n");
        assert!(events[0].data.len() <= MAX, "{}", events[0].data.len());
        assert_eq!(events[1].data, "x");
    }
}
