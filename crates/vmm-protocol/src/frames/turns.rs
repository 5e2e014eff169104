use std::collections::BTreeMap;

/// The order in which streams get the room of a connection that they share.
///
/// The first stream of an order is the last one of the next order. So a stream that always has data
/// does not keep others from sending.
#[derive(Debug, Default)]
pub struct Turns {
    /// The stream that is first next time, if it is still there.
    first: u32,
}

impl Turns {
    /// Returns the order in which the streams are served now.
    pub fn order<T>(&mut self, streams: &BTreeMap<u32, T>) -> Vec<u32> {
        let from_first = streams.range(self.first..);
        let order: Vec<_> = from_first
            .chain(streams.range(..self.first))
            .map(|(stream, _)| *stream)
            .collect();
        self.first = order.get(1).copied().unwrap_or_default();
        order
    }
}
