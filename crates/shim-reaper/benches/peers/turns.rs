/// Round by round, whose turn it is: there and back, so that not always the same follows the same
/// and is disturbed by what the other puts off until after an exit.
pub(crate) fn turns(of: usize, rounds: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rounds).flat_map(move |round| {
        (0..of).map(move |turn| match round % 2 {
            0 => (round, turn),
            _ => (round, of - 1 - turn),
        })
    })
}
